"""Activations as code: every one that the graph knows, on every instruction set, on floats and at the edges."""

import numpy as np
import pytest
import torch

from codesign.compiler import compile_network
from codesign.compiler.emitter import ACTIVATIONS
from tests.codesign.compiler.native import HERE
from workloads import activations
from workloads.graph import Layer, LayerGraph, Op
from workloads.reference import activate

ARGUMENTS = {"leaky_relu": ["(0.2)"], "elu": ["(0.7)"], "hardtanh": ["(-0.4,1.5)"], "gelu": ["(none)", "(tanh)"]}
TEXTS = [name + text for name in activations.ACTIVATIONS for text in ARGUMENTS.get(name, [""])]


def graph(kind: str, count: int) -> LayerGraph:
    x = Layer("x", Op.INPUT, (1, count), k=count, c=count)
    y = Layer("y", Op.ACTIVATION, (1, count), ("x",), k=count, c=count, attributes={"kind": kind})
    return LayerGraph("activation", (x, y), ("y",)).verify()


def test_all_are_known() -> None:
    assert set(ACTIVATIONS) == set(activations.ACTIVATIONS)


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("text", TEXTS)
def test_activations_equal_torch(text: str, isa: str) -> None:
    ends = [0.0, -0.0, 3.0, -3.0, 6.0, 1e-30, 88.0, -88.0, 1e4, -1e4]
    x = np.concatenate([ends, np.linspace(-12, 12, 4001)]).astype(np.float32)[None]
    found = compile_network((graph(text, x.shape[1]), {}), isa=isa)(x)
    expected = activate(torch.from_numpy(x), text).numpy()
    assert np.nanmax(np.abs(found - expected)[np.abs(x) < 20]) <= 2e-6
    assert np.allclose(found, expected, rtol=1e-6, atol=2e-6, equal_nan=True)  # roots of numbers below zero


@pytest.mark.parametrize("text", TEXTS)
def test_what_is_not_a_number_stays_so(text: str) -> None:
    x = np.array([[0x7FC00000, 0x3F800000, 0xFF800001, 0x7FC12345]], np.uint32).view(np.float32)
    assert np.isnan(compile_network((graph(text, 4), {}))(x)).tolist() == [[True, False, True, True]]


@pytest.mark.parametrize("text", TEXTS)
def test_small_inputs_keep_their_digits(text: str) -> None:
    """Not of tiny ones alone do errors have to be small beside the largest number."""
    x = np.linspace(0 if text == "sqrt" else -1e-4, 1e-4, 200, dtype=np.float32)[None]
    found = compile_network((graph(text, x.shape[1]), {}))(x)
    expected = activate(torch.from_numpy(x), text).numpy()
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
