"""Writes figures to a JSON file and to a section of RESULTS.md, with machine, versions, date and command."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tagstream.transforms.runtime.machine import cpu_model, usable_cores

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = """# Measured

Each section is written by the command that it names, with `--record`; nothing here is typed by hand.
"""


def machine() -> str:
    """CPU model and cores that this process may use."""
    return f"{cpu_model()}, {usable_cores()} cores, {platform.system()}"


BUSY_BEFORE = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
"""Load average when this module was imported: above 0.5 the machine had other work, and no figure is sure."""


def versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def save(
    name: str,
    figures: dict[str, Any],
    lines: list[str],
    packages: dict[str, str],
    path: Path | None,
    *,
    record: bool,
    section: str = "",
) -> None:
    """Print the Markdown `lines`, and write the figures to `path`. With `record`, put the lines into RESULTS.md.

    `section`: the name of the section there; by default the benchmark's name.
    """
    print("\n".join(lines))
    figures = {
        **figures,
        "machine": machine(),
        "load_before": BUSY_BEFORE and round(BUSY_BEFORE, 2),
        "versions": packages,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m benchmarks.{name} " + " ".join(_arguments()),
    }
    if path is not None:
        path.write_text(json.dumps(figures, indent=2) + "\n")
    if record:
        about = [
            f"`{figures['command'].strip()}` on {figures['date']}  ",
            f"{figures['machine']}, load average {figures['load_before']} before; "
            + ", ".join(f"{k} {v}" for k, v in packages.items()),
        ]
        old = RESULTS.read_text() if RESULTS.is_file() else _HEAD
        RESULTS.write_text(_replace(old, section or name, "\n".join([*about, "", *lines])))


def _arguments() -> list[str]:
    """The arguments of this command, without those that say where the figures go."""
    kept, skip = [], False
    for argument in sys.argv[1:]:
        if skip or argument == "--record" or argument.startswith("--json"):
            skip = argument == "--json"
            continue
        kept.append(argument)
    return kept


def _replace(document: str, name: str, body: str) -> str:
    parts = re.split(r"^## ", document, flags=re.MULTILINE)
    sections = {part.partition("\n")[0].strip(): part.partition("\n")[2].strip() for part in parts[1:]}
    sections[name] = body
    return parts[0].strip() + "\n" + "".join(f"\n## {n}\n\n{b}\n" for n, b in sorted(sections.items()))
