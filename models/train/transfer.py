"""Measures a classifier on a source that its training never saw: one whole source is left out of training."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from models.train.measure import Classifier, Figures, of_source
from tagstream.models import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.train.task import Task

RECORD = ROOT / "transfer.json"


def run(task: Task, source: str, share: float, data: Path, make: Callable[[Path], None]) -> None:
    """Train without `source` into a temporary folder, measure on the source's held-out rows, and record the figures.

    `share`: the share of the other sources' texts that `make` learns from.
    """
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        figures = of_source(Classifier(Path(folder)), task, data, source)
    record = recorded()
    part = f", {share:.0%} of the texts" if share < 1 else ""
    record[f"{task.name} without {source}{part}"] = [one.plain() for one in figures]
    RECORD.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n", encoding="utf-8")


def recorded() -> dict[str, list[dict[str, object]]]:
    if not RECORD.exists():
        return {}
    found: dict[str, list[dict[str, object]]] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def figures_of(task: Task) -> list[Figures]:
    """The recorded figures of a task. Each set's name includes the source that was left out."""
    found = []
    for name, entries in recorded().items():
        if name.startswith(f"{task.name} without "):
            found += [Figures(**{**one, "set": f"{one['set']} ({name})"}) for one in entries]  # type: ignore[arg-type]
    return found
