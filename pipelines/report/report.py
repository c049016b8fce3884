"""The result of a job in numbers: for the table at its end, the JSON report, and the advice for more speed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagstream.schemas.errors import REASONS, DeadCode, SinkError
from tagstream.transforms.io.contracts import InputCounts
from tagstream.transforms.runtime.metrics import STAGES, Snapshot

_SKIPPED = 100
"""Files that are not read: how many the JSON report names."""

ADVICE = {
    "read": "reading the input: fewer or smaller kept columns, a faster disk or network",
    "tokenise": "tokenising: more CPU cores",
    "infer": "the model: `tagstream optimize`, a smaller one, or a GPU",
    "write": "writing the output: a faster disk or network, a lighter compression",
}


@dataclass
class Report:
    """The result of one run.

    `rows_total`: rows of the input. `rows_before`: rows that earlier runs have done. `rows_left`: rows that are still
    to do. `seconds`, `load_seconds`: wall time of the run, and of loading the models.
    """

    job: str
    state: str
    fingerprint: str
    rows_total: int
    rows_before: int
    rows_left: int
    seconds: float
    load_seconds: float
    counts: Snapshot
    output: str
    remote: bool = False
    """Whether workers on other machines did the work. This process then knows only the numbers of the ledger."""
    engines: int = 1
    """How many models have inferred each row."""
    input: InputCounts | None = None
    """What there was to read, if the source reads files."""

    @property
    def rows_per_s(self) -> float:
        return self.counts.rows_in / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for `--report`."""
        counts = self.counts
        labels: dict[str, dict[str, int]] = {}
        for (column, label), count in counts.labels.most_common():
            labels.setdefault(column, {})[label] = count
        unknown: dict[str, Any] = {}
        if self.remote:
            names = (
                "rows_out",
                "dead_letters",
                "labels",
                "truncated",
                "duplicates",
                "remembered",
                "commits",
                "dropped",
                "tokens",
                "tokens_per_s",
                "padding",
                "micro_batches",
                "busy_seconds",
                "bottleneck",
                "advice",
            )
            unknown = dict.fromkeys(names)
        return {
            "job": self.job,
            "state": self.state,
            "fingerprint": self.fingerprint,
            "output": self.output,
            "files": self.input and self.input.files,
            "skipped_files": self.input and len(self.input.skipped),
            "skipped": self.input and list(self.input.skipped[:_SKIPPED]),
            "rows_total": self.rows_total,
            "rows_before": self.rows_before,
            "rows_left": self.rows_left,
            "rows_in": counts.rows_in,
            "rows_out": counts.rows_out,
            "dead_letters": dict(counts.dead),
            "labels": labels,
            "truncated": counts.truncated,
            "duplicates": counts.duplicates,
            "remembered": counts.remembered,
            "commits": counts.commits,
            "dropped": counts.dropped,
            "seconds": round(self.seconds, 3),
            "load_seconds": round(self.load_seconds, 3),
            "rows_per_s": round(self.rows_per_s, 1),
            "tokens": counts.tokens,
            "tokens_per_s": round(counts.tokens / self.seconds, 1) if self.seconds else 0.0,
            "padding": round(counts.padding, 4),
            "micro_batches": counts.micro_batches,
            "busy_seconds": {stage: round(counts.busy[stage], 3) for stage in STAGES},
            "bottleneck": bottleneck(counts),
            "advice": verdict(counts),
            **unknown,
        }


def write_json(path: str, data: dict[str, Any]) -> None:
    """Write the file that `--report` asks for. Raises SinkError."""
    try:
        Path(path).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SinkError(f"--report {path}: can't be written: {error.strerror}") from None


def bottleneck(counts: Snapshot) -> str | None:
    """The stage that was busy longest. None before any stage was busy."""
    if not counts.busy:
        return None
    stage, _ = Counter(counts.busy).most_common(1)[0]
    return stage


def verdict(counts: Snapshot) -> str | None:
    """The stage that bounds the job's speed, and what to change. None before any stage was busy."""
    stage = bottleneck(counts)
    return None if stage is None else ADVICE[stage]


def dead_lines(dead: Counter[str]) -> list[tuple[str, int, str]]:
    """Code, count and reason for each kind of dead letter."""
    return [(code, count, REASONS[DeadCode(code)]) for code, count in dead.most_common()]
