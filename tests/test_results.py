"""The page of results is what the committed results give, and every listed run can be made."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks" / "methods"


def run(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, FOLDER / script, *words], capture_output=True, text=True, cwd=FOLDER)


def test_the_page_is_current() -> None:
    found = run("report.py", "--check")
    assert found.returncode == 0, found.stderr


def test_every_run_is_listed_and_its_options_exist() -> None:
    sys.path.insert(0, str(FOLDER))
    try:
        from run import runs  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(FOLDER))
    from codesign.prune import parse_options

    found = list(runs())
    assert len({one.result for one in found}) == len(found) > 50
    for one in found:
        parse_options(one.config.method, [f"{name}={value}" for name, value in one.config.options.items()])
    listed = run("run.py", "--list")
    assert listed.stdout.count("\n") == len(found)


def test_an_unknown_run_is_refused() -> None:
    found = run("run.py", "no_such_experiment")
    assert found.returncode == 1
    assert "no run 'no_such_experiment'; --list shows them" in found.stderr
