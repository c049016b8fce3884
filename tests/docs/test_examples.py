"""The guides' examples run: files are written from blocks with a title, and commands of `console` blocks are run.

A line that begins with `$ ` is a command; `# exit code N` behind it says how it ends. The lines below it must be in
what it prints, in this order; `…` stands for anything, and the width of blanks does not matter. Blocks of `sh` are not
run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tagstream.pipelines.cli.main import app
from tests.docs.pages import ROOT, Block, blocks, pages

WITH_EXAMPLES = [page for page in pages() if any(block.kind == "console" for block in blocks(page))]


def run(command: str) -> tuple[int, str]:
    """Exit code and output. `tagstream` runs in this process: models and libraries are loaded once for all examples."""
    program, *arguments = shlex.split(command)
    if program == "tagstream":
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})
        return done.exit_code, done.output
    assert program == "python", f"an example may run tagstream and python, not {program}"
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    return process.returncode, process.stdout + process.stderr


def check(block: Block, page: str) -> None:
    lines = block.text.splitlines()
    for number, line in enumerate(lines):
        if not line.startswith("$ "):
            continue
        command, _, comment = line.removeprefix("$ ").partition("  # ")
        where = f"{page}:{block.line + number + 1}: {command}"
        wanted = re.search(r"exit code (\d+)", comment)
        code, output = run(command)
        assert code == (int(wanted[1]) if wanted else 0), f"{where}\n{output}"
        rest = " ".join(output.split())
        for expected in lines[number + 1 :]:
            if expected.startswith("$ "):
                break
            pattern = ".*?".join(re.escape(part.strip()) for part in " ".join(expected.split()).split("…"))
            found = re.search(pattern, rest)
            assert found, f"{where}\ndoes not print: {expected}\nbut: {output}"
            rest = rest[found.end() :]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
@pytest.mark.xdist_group("docs")
def test_examples_run(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.kind == "console":
            check(block, str(page.relative_to(ROOT)))
