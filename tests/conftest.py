"""What every test can rely on: one thread a worker, fixed seeds, a cache of its own, and real data or a reason to skip.

The thread count is set here, before any test module imports NumPy or torch, which read it once at import.
"""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores: one thread each
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)  # deadlines fail on busy machines
hypothesis.settings.load_profile("repeatable")


def missing_data(*parts: str) -> str | None:
    """Why the real data sets cannot be used, or None; `parts` are what must lie below CODESIGN_DATA."""
    root = os.environ.get("CODESIGN_DATA")
    if not root:
        return "CODESIGN_DATA is not set; point it to a folder with cifar-10-batches-bin/, MNIST/raw/ and weights/"
    absent = [part for part in parts or ("",) if not Path(root, part).exists()]
    return f"CODESIGN_DATA={root} lacks {', '.join(absent) or 'everything'}" if absent else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for `data_dir` is a data test; one whose data are not there is skipped with the reason."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        for mark in item.iter_markers("data"):
            if reason := missing_data(*mark.args):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets, laid out as the public downloads are."""
    return Path(os.environ["CODESIGN_DATA"])


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """XDG_CACHE_HOME for the whole session, child processes included: the user's own cache is never read or written."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def native() -> None:
    """For tests that run native code: skipped where the compiler makes none."""
    from codesign.compiler.isa import host_isas
    from workloads.errors import ConfigError

    try:
        host_isas()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same global random state before every test, whatever ran before it; torch's if it is loaded."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
