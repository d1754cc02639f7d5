"""The page of results is what the committed results give, and every listed run can be made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_runs_that_were_made_again_stand_on_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.delitem(sys.modules, "report", raising=False)  # another benchmark's has the same name
    import report  # type: ignore[import-not-found]

    def result(epochs: int, test: float, **options: object) -> dict[str, object]:
        config = {"epochs": epochs, "seed": 0, "weights": str(tmp_path), "options": options}
        return {"run": "some run", "config": config, "test": test, "weights": 100, "nonzeros": 40}

    (tmp_path / "superseded").mkdir()
    before = result(12, 0.9, rho=[0.1, 1], density=0.4)
    (tmp_path / "superseded" / "mine.some-run.seed0.1.json").write_text(json.dumps(before))
    (tmp_path / "superseded" / "other.some-run.seed0.1.json").write_text(json.dumps(before))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    now = {"some run": [result(20, 0.91, density=0.4)]}
    assert list(report.superseded("mine", now)) == [
        "- some run, seed 0: 90.00%, 2.5x fewer weights; with epochs 12, rho [0.1, 1]"
    ]
    assert list(report.superseded("mine", {"some run": []})) == ["- some run, seed 0: 90.00%, 2.5x fewer weights"]
