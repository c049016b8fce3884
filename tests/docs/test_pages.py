"""The pages are true: files that they name are there, links lead somewhere, commands and specifications are taken."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from tagstream.schemas.spec import JobSpec
from tagstream.schemas.spec_file import load_spec
from tests.deploy.files import check_command
from tests.docs.pages import DOCS, ROOT, TOP, blocks, headings, pages, prose
from tests.docs.specs import complete

OTHERS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "models/RESULTS.md")),
    ROOT / "benchmarks/RESULTS.md",
    *pages(ROOT / "deploy"),
    *sorted(ROOT.glob("models/*/README.md")),
]
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+(?:\([^()]*\))?)\)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
COMMANDS = re.compile(r"(?:^|&& *|\$ *)(?:[A-Z]+=\S+ +)?(?:\.venv/bin/)?tagstream +([a-z].*?)(?= *&&| *#|$)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def anchors(page: Path) -> set[str]:
    """As MkDocs makes them for docs/, as GitHub does elsewhere; a second heading of the same words gets a number."""
    found: set[str] = set()
    for heading in headings(page):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        if DOCS in page.parents:
            ascii_only = unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()
            slug = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", ascii_only).strip().lower())
        else:
            slug = re.sub(r"[^\w\s-]", "", plain.lower()).replace(" ", "-")
        numbered = (slug, *(f"{slug}{'_' if DOCS in page.parents else '-'}{n}" for n in range(1, 100)))
        found.add(next(name for name in numbered if name not in found))
    return found


@pytest.mark.parametrize("page", [*pages(), *OTHERS], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Inside the repository: the file is there and has the heading. Nothing is fetched."""
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links to {target}, which is not there"
        assert not anchor or anchor in anchors(there), f"{name_of(page)} links to {target}: no such heading"


@pytest.mark.parametrize("page", [*pages(), *OTHERS], ids=name_of)
def test_files_that_are_named_are_there(page: Path) -> None:
    """Every path in code marks whose first part is a folder of this repository; ours are named from the top."""
    folder = page.parent
    for code in CODE.findall(prose(page)):
        path = code.split(" ")[0]
        if "/" not in path or not re.fullmatch(r"[\w./*-]+", path):
            continue
        ours = path.split("/")[0] in TOP or path.endswith((".py", ".md"))
        assert not ours or [*ROOT.glob(path), *folder.glob(path)], f"{name_of(page)} names {path}, which is not there"


@pytest.mark.parametrize("page", [*pages(), ROOT / "README.md"], ids=name_of)
def test_specifications_are_valid(page: Path, tmp_path: Path, monkeypatch) -> None:
    """Whole ones, and parts with the rest of a job around them."""
    for block in blocks(page):
        if block.kind == "yaml":
            given = yaml.safe_load(block.text)
            assert given.keys() <= JobSpec.model_fields.keys(), f"{name_of(page)}:{block.line}"
            complete(block.text, tmp_path / "job.yaml", monkeypatch)
            load_spec(str(tmp_path / "job.yaml"))


@pytest.mark.parametrize("page", [*pages(), *OTHERS], ids=name_of)
def test_commands_are_taken(page: Path) -> None:
    """Every `tagstream` command of a block that shows a shell, whether or not it is run, has options that exist."""
    for block in blocks(page):
        for line in block.text.splitlines() if block.kind in ("sh", "console") else ():
            for command in COMMANDS.findall(line):
                check_command(shlex.split(command))


def test_the_walk_names_fifteen_steps_in_order() -> None:
    """The design's first part: fifteen lines, each of which names a file."""
    part = (DOCS / "design.md").read_text(encoding="utf-8").partition("fifteen lines")[2].partition("\n## ")[0]
    steps = re.findall(r"^(\d+)\. (.*)$", part, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, 16))
    assert all(re.search(r"`(pipelines|transforms)/[\w/]+\.py`", line) for _, line in steps)


def test_the_site_builds(tmp_path: Path) -> None:
    """Without a warning: every page is in the navigation, every link and anchor is found."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "index.html").exists()
    assert not list((tmp_path / "site").rglob("*.py*"))
