"""Writes the measured figures to `models/RESULTS.md` and to every model card."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from models.train import transfer
from models.train.export import size_of
from models.train.measure import Figures, measure
from models.train.tasks import TASKS
from tagstream.models import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

COMMAND = "python -m models.train results --data FOLDER"
INTRODUCTION = f"""Written by `{COMMAND}`; not edited by hand.

Rows were kept out of training by a hash of their normal form (case, digits, punctuation and spacing folded away),
SST-2 by sentence. Scored on a CPU through `AutoModelForSequenceClassification`, ARITHMETIC. ECE: expected calibration
error of the winning label, 15 bins. Sets, sizes and licences of the data: see the model cards."""
BEGIN, END = f"<!-- figures: written by `{COMMAND}` -->", "<!-- end of figures -->"


def write(data: Path, *, fast: bool = False) -> None:
    """Measure the bundled folders, and rewrite the results file and the cards' figures."""
    parts = [
        "# Results of the bundled classifiers",
        INTRODUCTION.replace("ARITHMETIC", "in bfloat16 arithmetic over float32 weights" if fast else "in float32"),
    ]
    for name, task in sorted(TASKS.items()):
        folder = ROOT / name
        figures = table([*measure(folder, task, data, fast=fast), *transfer.figures_of(task)], task.labels)
        size = f"Size of the folder: {size_of(folder) / 1e6:.1f} MB."
        parts += [f"## tagstream/{name}", figures, size]
        _fill(folder / "README.md", figures)
    (ROOT / "RESULTS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def table(figures: Sequence[Figures], labels: Sequence[str]) -> str:
    heads = ["set", "rows", "accuracy", "macro-F1", *(f"F1 {label}" for label in labels), "ECE", "recall", "false pos."]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for one in figures:
        per_label = one.f1 or (None,) * len(labels)
        values = [one.accuracy, one.macro_f1, *per_label, one.ece, one.recall, one.false_positives]
        shown = ["" if value is None else f"{value:.4f}" for value in values]
        lines.append(" | ".join([one.set, f"{one.rows:,}", *shown]))
    return "\n".join(f"| {line} |" for line in lines)


def _fill(card: Path, figures: str) -> None:
    text = card.read_text(encoding="utf-8")
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    filled = re.sub(pattern, lambda _: f"{BEGIN}\n\n{figures}\n\n{END}", text, flags=re.DOTALL)
    card.write_text(filled, encoding="utf-8")
