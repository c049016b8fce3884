"""The guides' examples run: files are written from blocks with a title, and commands of `console` blocks are run.

A line that begins with `$ ` is a command; `# exit code N` behind it says how it ends. The lines below it must be in
what it prints, in this order; `…` stands for anything, and the width of blanks does not matter. Blocks of `sh` are not
run. Blocks of `python` without a title run one after the other, in one module a page; a block of `text` that follows
one is what it prints.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tagstream.pipelines.cli.main import app
from tests.docs.pages import ROOT, Block, blocks, pages


def runs(block: Block) -> bool:
    return block.kind == "console" or (block.kind == "python" and block.title is None)


WITH_EXAMPLES = [page for page in pages() if any(runs(block) for block in blocks(page))]


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
        check_output(takewhile(lambda line: not line.startswith("$ "), lines[number + 1 :]), output, where)


def check_output(lines: Iterable[str], output: str, where: str) -> None:
    rest = " ".join(output.split())
    for expected in lines:
        pattern = ".*?".join(re.escape(part.strip()) for part in " ".join(expected.split()).split("…"))
        found = re.search(pattern, rest)
        assert found, f"{where}\ndoes not print: {expected}\nbut: {output}"
        rest = rest[found.end() :]


def run_python(block: Block, names: dict[str, Any], where: str) -> str:
    """What the block prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = "\n" * block.line + block.text  # a traceback names the line of the page
        exec(compile(code, where, "exec"), names)
    return printed.getvalue()


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
@pytest.mark.xdist_group("docs")
def test_examples_run(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = str(page.relative_to(ROOT))
    names: dict[str, Any] = {"__name__": page.stem}
    printed = None
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.kind == "console":
            check(block, name)
        elif block.kind == "python":
            printed = run_python(block, names, name)
            continue
        elif block.kind == "text" and printed is not None:
            check_output(block.text.splitlines(), printed, f"{name}:{block.line}")
        printed = None
