"""What the tests of the documentation share: its pages, their blocks of code, their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOP = ("api", "benchmarks", "deploy", "docs", "examples", "models", "pipelines", "schemas", "tests", "transforms")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<kind>\w*)(?P<more>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced block: `kind` is its language, `title` the name of the file that it is, if it is one."""

    kind: str
    title: str | None
    text: str
    line: int


def pages(folder: Path = DOCS) -> list[Path]:
    found = sorted(folder.rglob("*.md"))
    assert found
    return found


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for fence in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', fence["more"])
        line = text[: fence.start()].count("\n") + 1
        yield Block(fence["kind"], title[1] if title else None, fence["text"], line)


def prose(page: Path) -> str:
    """A page without its fenced blocks; lines keep their numbers."""
    return _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[str]:
    return [match[1] for match in re.finditer(r"^#{1,6} +(.+?) *#*$", prose(page), re.MULTILINE)]
