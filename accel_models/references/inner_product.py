"""A SIGMA-like array cycle by cycle: non-zero weights wait in multipliers, values come through ports with queues.

Y = W X of K x L times L x N. A round takes as many whole filters as fit the multipliers, or a piece of one filter that
is too long, with one multiplier for the sum so far. Multiplier i is fed by port i // (multipliers / ports). In a round

    configure   fixed cycles, in which nothing moves
    load        the controller puts all weights into the ports' queues; each port hands one on in a cycle
    stream      from the next cycle on the controller puts one column of X a cycle into the queues: every value that any
                multiplier of the port needs, once; each port hands one on in a cycle, to all its multipliers that wait
                for it; a folded filter's sum so far comes through port 0
    drain       when a cluster has all products of a column they pass the adder tree, log2 of the multipliers levels,
                and the fixed stages before and after it

The next round begins when the last sum is stored. Source: behaviour of the SIGMA controller of STONNE
(Munoz-Martinez et al., IISWC 2021), written anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accel_models.references.eie import Run
from accel_models.references.lowering import windows


@dataclass(frozen=True)
class Load:
    """What the multipliers hold in a round, one entry a multiplier in use.

    Attributes:
        filters, taps: int64, row and column of W. A folded filter's multiplier for the sum so far has tap -1.
    """

    filters: np.ndarray
    taps: np.ndarray


def loads(weight: np.ndarray, multipliers: int) -> list[Load]:
    """Rounds for a K x L matrix, filters in order."""
    found: list[Load] = []
    waiting: list[tuple[int, int]] = []
    for k, row in enumerate(weight):
        taps = np.flatnonzero(row).tolist()
        if len(waiting) + len(taps) > multipliers and waiting:
            found.append(_load(waiting))
            waiting = []
        if len(taps) <= multipliers:
            waiting += [(k, tap) for tap in taps]
            continue
        found.append(_load([(k, tap) for tap in taps[:multipliers]]))
        for start in range(multipliers, len(taps), multipliers - 1):
            found.append(_load([(k, -1), *((k, tap) for tap in taps[start : start + multipliers - 1])]))
    return [*found, _load(waiting)] if waiting else found


def _load(pairs: list[tuple[int, int]]) -> Load:
    filters, taps = zip(*pairs, strict=True)
    return Load(np.array(filters), np.array(taps))


def play(weight: np.ndarray, inputs: np.ndarray, output: np.ndarray, load: Load, fed: int, delivers_zeros: bool) -> int:
    """One round: adds the load's sums to `output` and returns the cycles from the load to the last delivery.

    Args:
        weight: (K, L). inputs: (L, N). output: (K, N), sums so far, changed in place. fed: multipliers of a port.
    """
    used = len(load.taps)
    port = np.arange(used) // fed
    before = output[load.filters[0]].copy() if load.taps[0] < 0 else None
    queues: list[list[tuple[int, int]]] = []  # of each port: (cycle in which it is put there, what)
    wanted: list[list[tuple[int, int]]] = []  # (column, tap) of each delivery; the tap is -1 for a sum, -2 for a weight
    for p in range(int(port[-1]) + 1):
        mine = load.taps[port == p]
        first = [(0, -2)] * int((mine >= 0).sum())
        items = [
            (n, tap)
            for n in range(inputs.shape[1])
            for tap in dict.fromkeys(mine.tolist())
            if tap < 0 or delivers_zeros or inputs[tap, n] != 0
        ]
        queues.append([(0, 0)] * len(first) + [(1 + n, 0) for n, _ in items])
        wanted.append(first + items)
    held = np.where(load.taps >= 0, weight[load.filters, load.taps], 1.0)
    cycle, at = 0, [0] * len(wanted)
    sums = np.zeros((len(output), inputs.shape[1]))
    if before is not None:
        output[load.filters[0]] = 0.0
    while any(at[p] < len(wanted[p]) for p in range(len(wanted))):
        for p in range(len(wanted)):
            if at[p] == len(wanted[p]) or queues[p][at[p]][0] > cycle:
                continue
            n, tap = wanted[p][at[p]]
            at[p] += 1
            if tap == -2:
                continue
            for i in range(p * fed, min((p + 1) * fed, used)):
                if load.taps[i] == tap:
                    value = before[n] if tap < 0 and before is not None else inputs[tap, n]
                    sums[load.filters[i], n] += held[i] * value
        cycle += 1
    output += sums
    return max(cycle, inputs.shape[1] + 1)


def layer(
    weight: np.ndarray, inputs: np.ndarray, stride: int = 1, padding: int = 0, *, multipliers: int = 256,
    ports: int = 128, configure_cycles: int = 1, pipeline_cycles: int = 4, delivers_zeros: bool = True,
) -> Run:  # fmt: skip
    """A convolution of one image, a linear layer, or a plain matrix product.

    Args:
        weight: (K, C, R, S) with inputs (C, H, W); or (K, L) with inputs (L,) or (L, N).

    Returns:
        Output (K, P, Q), (K,) or (K, N), and the cycles of all rounds.
    """
    if weight.ndim == 2 and inputs.ndim == 2:
        columns, shape = inputs, (inputs.shape[1],)
    else:
        columns, shape = windows(weight.shape, inputs, stride, padding)  # type: ignore[assignment]
    matrix = weight.reshape(len(weight), -1)
    output = np.zeros((len(weight), columns.shape[1]))
    fixed = configure_cycles + pipeline_cycles + int(np.ceil(np.log2(multipliers)))
    cycles = sum(
        fixed + play(matrix, columns, output, load, multipliers // ports, delivers_zeros)
        for load in loads(matrix, multipliers)
    )
    return Run(output.reshape(len(weight), *shape), cycles)
