"""Pages: self-contained, escaped, whole or not at all, and without the sections whose record is absent."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from accel_models.result import describe_error
from reports.html import write_comparison, write_report
from reports.records import Accuracies, ReportRecord
from tests.reports.builders import ERROR, TIME_ERROR, after, before, price, report, result
from workloads.errors import ConfigError

VOID = {"meta", "br", "wbr", "link", "img", "hr", "input"}
EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Headings, tags, attributes and text of a page; checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a report with every section."""
    return write_report(tmp_path_factory.mktemp("report"), report())


def test_a_full_report_has_every_section_and_file(whole: Path) -> None:
    page = read(whole)
    assert page.headings == [
        "Accuracy", "Layers", "Candidates of the search", "Roofline", "Staircases", "The plan", "How it was made",
        "Notes", "What is not modelled",
    ]  # fmt: skip
    files = sorted(str(path.relative_to(whole.parent)) for path in whole.parent.rglob("*") if path.is_file())
    assert files == [
        "figures/front.png", "figures/layers.png", "figures/roofline.png", "figures/staircases.png", "report.html",
        "report.json",
    ]  # fmt: skip
    assert ReportRecord.from_dict(json.loads((whole.parent / "report.json").read_text())) == report()


def test_the_numbers_are_on_the_page(whole: Path) -> None:
    text = read(whole).text
    for wanted in (
        "450 µs → 400 µs",  # latency
        "0.89x of before (80% interval 0.84x to 0.93x)",
        "80% interval of the latency after 352 µs to 448 µs",
        "3.00 k → 2.00 k",  # multiply-accumulates
        "91.73% → 90.12%",  # test accuracy
        "measured in fp32, priced in int8",
        "92.00% ± 0.86",  # held-out, sqrt(0.92 * 0.08 / 1000)
        "budget latency=0.9x : 400 µs, limit 405 µs: ✓ kept ; it binds",
        "11% of the time before lies in layers from which nothing was removed",
        "Another 67% lies in layers that lost channels or weights and got no faster",
        "13 of 16 channels are computed as 16: the machine works in multiples of 8",
        "add work does not shrink with inner channels",
        "★ the pick",
        "Channels kept by group: 21 of 24",
        "Weights kept by layer: 40 of 90",
        "codesign search net --budget latency=0.9x",
        "search 2.5 s, finetune 40.0 s; 42.5 s in all",
        "codesign 1.2.3",
        "a note",
        "something else",
    ):
        assert wanted.replace(" : ", ": ").replace(" ;", ";") in text.replace(" : ", ": ").replace(" ;", ";"), wanted


def test_the_models_error_stands_beside_every_prediction(whole: Path) -> None:
    """Headline, layers, candidates, staircases and how it was made."""
    assert read(whole).text.lower().count(describe_error(ERROR).lower()) == 5


def test_an_unknown_error_is_said(tmp_path: Path) -> None:
    path = write_report(tmp_path, ReportRecord("net", dataclasses.replace(before(), error=None)))
    assert "error unknown: no published measurements" in read(path).text


def test_the_page_fetches_and_runs_nothing(whole: Path) -> None:
    page, text = read(whole), whole.read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object", "img", "image", "base"} & page.tags
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#[^)]+\)", "", text)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "xlink:href", "src"):
            assert (value or "").startswith("#"), "only marks within the page itself"


def test_the_page_is_fit_for_phones_and_print(whole: Path) -> None:
    text = whole.read_text(encoding="utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "@media print" in text
    assert text.count("<table>") == len(re.findall(r'<div class="scroll"[^>]*>\s*<table>', text))


def test_names_are_escaped_everywhere(tmp_path: Path) -> None:
    evil = price(EVIL, kernel=EVIL, bound="compute")
    dense = result(evil, price("b"), graph=EVIL, target=EVIL, title=EVIL, notes=(EVIL,))
    full = report()
    assert full.plan is not None
    assert full.front is not None
    record = report(
        title=EVIL, model=EVIL, data=EVIL, command=EVIL, release=EVIL, created=EVIL, before=dense, after=dense,
        notes=(EVIL,), not_modelled=(EVIL,), phase_seconds={EVIL: 1.0},
        plan=dataclasses.replace(
            full.plan,
            groups=(dataclasses.replace(full.plan.groups[0], group=EVIL, layers=(EVIL, "b")),),
            masks=(dataclasses.replace(full.plan.masks[0], layer=EVIL, granularity=EVIL),),
        ),
        front=dataclasses.replace(
            full.front, points=(dataclasses.replace(full.front.points[1], choices={EVIL: EVIL}),)
        ),
        staircases=(dataclasses.replace(full.staircases[0], group=EVIL),),
        budgets=(dataclasses.replace(full.budgets[0], text=EVIL),),
        accuracies=Accuracies(dense_test=0.9, precision=EVIL),
    )  # fmt: skip
    for path in (
        write_report(tmp_path / "one", record),
        write_report(tmp_path / "two", ReportRecord(EVIL, dense)),
        write_comparison(tmp_path / "three", [dense, dense], command=EVIL),
    ):
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text.lower()
        assert "script" not in read(path).tags
        assert EVIL in "".join(read(path).words).replace("\n", "")


@pytest.mark.parametrize(
    ("present", "heading"),
    [
        ({"accuracies": report().accuracies}, "Accuracy"),
        ({"front": report().front}, "Candidates of the search"),
        ({"roofline_before": report().roofline_before}, "Roofline"),
        ({"staircases": report().staircases}, "Staircases"),
        ({"plan": report().plan}, "The plan"),
        ({"notes": ("a note",)}, "Notes"),
    ],
)
def test_a_section_is_there_exactly_if_its_record_is(present: dict[str, Any], heading: str, tmp_path: Path) -> None:
    always = ["Layers", "How it was made", "What is not modelled"]
    found = read(write_report(tmp_path, ReportRecord("net", before(), **present))).headings
    assert heading in found
    assert [name for name in found if name != heading] == always
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()} - {"layers"}
    assert drawn == {name.removesuffix("_before") for name in present} & {"front", "roofline", "staircases"}


def test_one_simulation_alone_is_a_report(tmp_path: Path) -> None:
    path = write_comparison(tmp_path, [before()], command="codesign simulate net")
    page = read(path)
    assert path.name == "report.html"
    assert page.headings == ["Layers", "How it was made", "What is not modelled"]
    assert "net on A machine" in page.text
    assert "→" not in page.text
    assert ReportRecord.from_dict(json.loads((tmp_path / "report.json").read_text())).before == before()


def test_an_empty_simulation_is_a_report(tmp_path: Path) -> None:
    assert read(write_report(tmp_path, ReportRecord("nothing", result()))).headings[0] == "Layers"
    assert read(write_report(tmp_path, ReportRecord("no time", result(price(useful=0))))).headings[0] == "Layers"


def test_a_missed_budget_is_said_in_words(tmp_path: Path) -> None:
    missed = dataclasses.replace(report().budgets[0], limit=300e-6, binding=False)
    record = ReportRecord("net", before(), budgets=(missed,))
    assert "✗ not kept" in read(write_report(tmp_path, record)).text


def test_several_machines(tmp_path: Path) -> None:
    fast = result(price("a", macs=3000), target="fast", title="Fast", notes=("one note",), error=None)
    path = write_comparison(tmp_path, [before(), fast], command="codesign simulate net", seed=3)
    page = read(path)
    assert path.name == "comparison.html"
    assert page.headings == ["Layers", "How it was made", "Notes", "What is not modelled"]
    for wanted in (str(TIME_ERROR), "error unknown", "Fast: one note", "396 µs to 504 µs", "net on 2 machines"):
        assert wanted in page.text, wanted
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["target"] for row in stored["rows"]] == ["machine", "fast"]
    assert (tmp_path / "figures" / "targets.png").exists()


def test_same_record_same_files(tmp_path: Path, whole: Path) -> None:
    again = write_report(tmp_path, report())
    for path in whole.parent.rglob("*.*"):
        assert path.read_bytes() == (again.parent / path.relative_to(whole.parent)).read_bytes(), path.name


def test_figures_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    write_report(tmp_path, ReportRecord("net", before(), front=report().front))
    assert (tmp_path / "figures" / "front.png").exists()
    (tmp_path / "figures" / "mine.png").write_bytes(b"kept")
    write_report(tmp_path, ReportRecord("net", before()))
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["layers.png", "mine.png"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (
        lambda: write_report(tmp_path / "file" / "report", ReportRecord("net", before())),
        lambda: write_comparison(tmp_path / "file", [before(), before()]),
    ):
        with pytest.raises(ConfigError, match="cannot be written") as caught:
            write()
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_bad_record_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size_bytes"):
        write_report(tmp_path / "out", report(size_bytes=(1.0, float("inf"))))
    with pytest.raises(ConfigError, match="simulate both on one machine"):
        write_report(tmp_path / "out", report(after=dataclasses.replace(after(), target="other")))
    assert not (tmp_path / "out").exists()


def test_reading_this_package_loads_nothing_heavy() -> None:
    code = (
        "import sys; import reports.html, reports.curves;"
        "print([name for name in ('torch', 'matplotlib', 'jinja2', 'scipy', 'codesign') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
