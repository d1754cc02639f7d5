"""The documents' own commands, run as a reader would run them: every fenced block of README.md is a test.

A block runs in a folder that all blocks of its document share, in their order, with the installed `codesign` first on
the PATH. In ```console each line after `$ ` is a command and the lines below it are its output; ```bash is a script;
```python is a program of its own, and an ```output or ```text block right after it is what it prints. In expected
output `...` stands for anything and runs of blanks are equal. Comments on the lines above say more: `<!-- slow -->`,
`<!-- data -->`, `<!-- skip: why -->`. Pages in docs/ run only blocks with a comment: `<!-- run -->` or one of these.
"""

import doctest
import functools
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(
    r"^(?P<comments>(?:[ ]*<!--[^\n]*-->\n\n?)*)"
    r"(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
PROGRAMS = {"console", "bash", "sh", "shell", "python"}
TIMEOUT_S = {False: 300, True: 3600}


@dataclass(frozen=True)
class Block:
    """One fenced block: where it stands, what to run, what it should print, and the words of the comment above it."""

    place: str
    language: str
    body: str
    output: str | None
    comment: str

    @property
    def document(self) -> str:
        return self.place.partition(":")[0]

    @property
    def title(self) -> str:
        return f"{self.place} {self.body.strip().splitlines()[0][:50]}"

    @property
    def steps(self) -> list[tuple[list[str], str | None]]:
        """(command line, expected output or None) for each command of the block."""
        if self.language == "python":
            return [([sys.executable, "-c", self.body], self.output)]
        if not self.body.startswith("$ "):
            return [(["bash", "-euo", "pipefail", "-c", self.body], self.output)]
        steps: list[tuple[list[str], str | None]] = []
        for step in re.split(r"^\$ ", self.body, flags=re.MULTILINE)[1:]:
            command, output = re.fullmatch(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", step, re.DOTALL).groups()  # type: ignore[union-attr]
            steps.append((["bash", "-euo", "pipefail", "-c", command], output if output.strip() else None))
        return steps

    def marks(self) -> list[pytest.MarkDecorator]:
        words = set(re.findall(r"\w+", self.comment.partition("skip:")[0]))
        if unknown := words - {"run", "slow", "data"}:
            raise ValueError(f"{self.place}: {sorted(unknown)} above a block; known are run, slow, data, skip: why")
        marks = [getattr(pytest.mark, word) for word in sorted(words & {"slow", "data"})]
        marks.append(pytest.mark.xdist_group(self.document))
        if "skip:" in self.comment:
            marks.append(pytest.mark.skip(reason=self.comment.partition("skip:")[2].strip()))
        return marks


def read_blocks(text: str, name: str) -> list[Block]:
    """The blocks of a document that are run, in order."""
    fences, blocks = list(FENCE.finditer(text)), []
    for fence, after in zip_longest(fences, fences[1:]):
        body = textwrap.dedent(fence["body"])
        follows = after and after["language"] in {"output", "text"} and not text[fence.end() : after.start()].strip()
        comment = " ".join(re.findall(r"<!--(.*?)-->", fence["comments"]))
        place = f"{name}:{text.count(chr(10), 0, fence.start('language')) + 1}"
        if fence["language"] in PROGRAMS:
            output = textwrap.dedent(after["body"]) if after and follows else None
            blocks.append(Block(place, fence["language"], body, output, comment.strip()))
    return blocks


def documents() -> list[Block]:
    """README's blocks, and the commented ones of docs/."""
    blocks = read_blocks((ROOT / "README.md").read_text(), "README.md")
    for page in sorted((ROOT / "docs").glob("**/*.md")):
        blocks += [b for b in read_blocks(page.read_text(), str(page.relative_to(ROOT))) if b.comment]
    return blocks


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The working folder of a document, shared by its blocks."""
    return functools.cache(lambda document: tmp_path_factory.mktemp("document"))


@pytest.mark.parametrize("block", [pytest.param(b, marks=b.marks(), id=b.title) for b in documents()])
def test_block_runs_as_printed(block: Block, folder_of: Callable[[str], Path]) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    options = {"cwd": folder_of(block.document), "env": environment, "timeout": TIMEOUT_S["slow" in block.comment]}
    for command, expected in block.steps:
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
        assert run.returncode == 0, f"{block.place}: {command[-1]}\n{run.stdout}{run.stderr}"
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if expected is not None and not doctest.OutputChecker().check_output(expected, run.stdout, flags):
            pytest.fail(f"{block.place}: {command[-1]}\nexpected:\n{expected}\nprinted:\n{run.stdout}")


def test_blocks_are_found_with_their_marks_and_output() -> None:
    text = (
        "<!-- slow -->\n<!-- data -->\n```console\n$ a \\\n  b\nout\n$ c\n```\n"
        "```yaml\nkey: 1\n```\n```python\nprint(1)\n```\n\n```text\n1\n```\n"
    )
    console, python = read_blocks(text, "page.md")
    assert [(command[-1], output) for command, output in console.steps] == [("a \\\n  b", "out\n"), ("c", None)]
    assert [mark.name for mark in console.marks()] == ["data", "slow", "xdist_group"]
    assert (python.place, python.output) == ("page.md:12", "1\n")
