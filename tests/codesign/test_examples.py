"""The scripts that users copy: short, and they print and write what they promise, from any folder."""

from __future__ import annotations

import html
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from accel_models import target, targets
from pruning.plan import PruningPlan
from workloads.lowering import lower
from workloads.models import build, example_input

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("compare_targets", "prune_for_budget", "sweep_hardware")

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run an example with words in an empty folder; what it printed."""

    def script(name: str, *words: object) -> str:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert not list((tmp_path / "here").iterdir()), "wrote beside what it was told to"
        return capsys.readouterr().out

    return script


def test_these_are_all_examples() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_short_with_a_usage_line(name: str) -> None:
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) < 60
    assert f"    python examples/{name}.py [" in text


@pytest.mark.parametrize("name", NAMES)
def test_help_exits_and_writes_nothing(name: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(name, "--help")
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


class TestSweepHardware:
    def table(self, printed: str) -> list[tuple[float, float, str]]:
        """(value, milliseconds, where the time goes) of every line."""
        found = [re.fullmatch(r" *([\d.e+]+) +([\d.]+)  (.*)", line) for line in printed.splitlines()]
        return [(float(row[1]), float(row[2]), row[3]) for row in found if row]

    def test_a_line_for_every_value(self, run: Run) -> None:
        printed = run("sweep_hardware", "digits_cnn", "--values", 0.5, 8, 512)
        assert printed.startswith("digits_cnn on ideal: memories.0.bandwidth_bytes_per_cycle\n")
        rows = self.table(printed)
        assert [value for value, _, _ in rows] == [0.5, 8, 512]
        slow, middle, fast = (ms for _, ms, _ in rows)
        assert slow > middle > fast
        assert rows[0][2].startswith("memory 9"), "bound by bandwidth"
        assert rows[2][2].startswith("useful 100%"), "bound by multiplications"
        graph = lower(build("digits_cnn"), example_input("digits_cnn"))
        assert middle == pytest.approx(target("ideal").simulate(graph).latency_s * 1e3, abs=5e-4)

    def test_defaults(self, run: Run) -> None:
        rows = self.table(run("sweep_hardware"))
        assert [value for value, _, _ in rows] == [1, 2, 4, 8, 16, 32]
        times = [ms for _, ms, _ in rows]
        assert times == sorted(times, reverse=True)

    def test_another_machine_and_field(self, run: Run) -> None:
        machine = ("--target", "ethos_u55_256", "--field", "clock_hz")
        (_, slow, _), (_, fast, _) = self.table(run("sweep_hardware", "digits_cnn", *machine, "--values", 1e8, 4e8))
        assert slow == pytest.approx(4 * fast, abs=4e-3)  # printed to the microsecond


class TestCompareTargets:
    def test_a_line_for_every_machine_and_a_page(self, run: Run, tmp_path: Path) -> None:
        printed = run("compare_targets", "digits_cnn", "--out", tmp_path / "page")
        for name in targets():
            row = re.search(rf"^{name} +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)
            assert row, name
            dense, half, ratio, energy = map(float, row.groups())
            assert 0 < half <= dense  # an array of 256 columns does not see the half of 32
            assert 0.2 < ratio <= 1
            assert energy > 0
            assert ratio == pytest.approx(half / dense, abs=0.01)
        page = tmp_path / "page" / "comparison.html"
        assert printed.rstrip().endswith(f"page: {page}")
        text = html.unescape(page.read_text())
        assert all(target(name).spec.title in text for name in targets())


class TestPruneForBudget:
    def test_prunes_below_the_budget_and_stays_accurate(self, run: Run, tmp_path: Path) -> None:
        printed = run("prune_for_budget", "--out", tmp_path / "budget")
        plan = PruningPlan.load(tmp_path / "budget" / "plan.json")
        assert printed.startswith(str(plan))
        line = re.compile(r"^(dense |pruned): .*latency ([\d.]+) us.*accuracy ([\d.]+)% \(test, fp32\)", re.MULTILINE)
        (_, dense_us, dense), (_, small_us, small) = line.findall(printed)
        assert float(small_us) <= 0.6 * float(dense_us)
        assert min(float(dense), float(small)) > 95
        smaller = plan.apply(build("digits_cnn"), (example_input("digits_cnn"),))
        result = target("ethos_u55_256").simulate(lower(smaller, example_input("digits_cnn")))
        assert result.latency_s * 1e6 == pytest.approx(float(small_us), abs=1e-3)
