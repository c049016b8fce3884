"""Shows a running job as one line, and its result as tables. Without a terminal, prints a plain line every 10 s."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from typing import Any, Self

import pyarrow as pa
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tagstream.pipelines.report.report import Report, dead_lines, verdict
from tagstream.transforms.runtime.metrics import JobMetrics

PLAIN_EVERY = 10.0
SHORT = 20
"""A column of sample rows is never shortened if its cells have at most this many characters."""


class StatusLine(ABC):
    """Context manager that shows `note` and `line()` while a job runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.note = ""
        self.started = time.monotonic()
        self._stop = threading.Event()
        self._live = Live(self, console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._thread = threading.Thread(target=self._plain, daemon=True)

    @abstractmethod
    def line(self) -> str:
        """The state of the job now."""

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._live:
            self._live.stop()

    def __rich__(self) -> Text:
        return Text(self._noted(), no_wrap=True, overflow="ellipsis")

    def _noted(self) -> str:
        return " · ".join(([self.note] if self.note else []) + [self.line()])

    def _plain(self) -> None:
        while not self._stop.wait(PLAIN_EVERY):
            self.console.print(self._noted(), highlight=False, soft_wrap=True)


class ProgressLine(StatusLine):
    """The line of a job that ends. `rows`: rows of the whole input. `done`: rows that were done before this run."""

    def __init__(self, console: Console, metrics: JobMetrics, rows: int, done: int, engines: int = 1) -> None:
        super().__init__(console)
        self.metrics, self.rows, self.done, self.engines = metrics, rows, done, engines

    def line(self) -> str:
        """Rows, speed, padding, dead letters, time left, bottleneck."""
        now = self.metrics.snapshot()
        seconds = time.monotonic() - self.started
        computed = min(now.sequences // self.engines, self.rows) or now.rows_in
        if not computed:
            return f"starting … {seconds:.0f} s"
        done, left = self.done + now.rows_in, self.rows - self.done - now.rows_in
        speed = max(computed, now.rows_in) / seconds
        parts = [
            f"{done:,}/{self.rows:,} rows committed",
            f"{speed:,.0f} rows/s",
            f"{now.tokens / seconds:,.0f} tokens/s",
            f"padding {now.padding:.1%}",
            f"dead letters {now.dead_rows:,}",
            f"{_duration(left / speed)} left",
        ]
        if (bound := verdict(now)) is not None:
            parts.append(f"bounded by {bound}")
        return " · ".join(parts)


def print_notes(console: Console, metrics: JobMetrics) -> None:
    """Print the notes that came up while the models were loaded. Example: there is no certificate for this machine."""
    print_sentences(console, metrics.snapshot().notes)


def print_sentences(console: Console, notes: list[str]) -> None:
    """Print each note on a line of its own."""
    for note in notes:
        console.print("[yellow]note:[/]", Text(note), highlight=False, soft_wrap=True)


def print_report(console: Console, report: Report) -> None:
    """Print the table at the end of a job."""
    counts = report.counts
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    if report.input is not None:
        skipped = f" ({len(report.input.skipped):,} more were not read)" if report.input.skipped else ""
        table.add_row("files", f"{report.input.files:,}{skipped}")
    before = f" ({report.rows_before:,} were done before)" if report.rows_before else ""
    table.add_row("rows in", f"{counts.rows_in:,} of {report.rows_total:,}{before}")
    if not report.remote:
        table.add_row("rows out", f"{counts.rows_out:,}")
        table.add_row("dead letters", f"{counts.dead_rows:,}")
    for code, count, reason in dead_lines(counts.dead):
        table.add_row(f"  {code}", f"{count:,}  {reason}")
    if report.rows_left:
        table.add_row("rows left", f"{report.rows_left:,}: run the same command again to continue")
    for column in dict.fromkeys(column for column, _ in counts.labels):
        shares = [
            f"{label} {count:,} ({count / max(1, counts.rows_out):.1%})"
            for (name, label), count in counts.labels.most_common()
            if name == column
        ]
        table.add_row(column, ", ".join(shares[:8]) + (", …" if len(shares) > 8 else ""))
    if counts.truncated:
        table.add_row("truncated", f"{counts.truncated:,} texts were longer than the model takes, and were cut")
    if saved := counts.duplicates + counts.remembered:
        share = saved / max(1, counts.rows_in * report.engines)
        table.add_row("equal texts", f"{saved:,} ({share:.1%}) were answered without running a model")
    speed = f"{report.rows_per_s:,.0f} rows/s over {_duration(report.seconds)}"
    if not report.remote:
        speed += (
            f"; {counts.tokens:,} tokens, {counts.padding:.1%} padding; models loaded in {report.load_seconds:.1f} s"
        )
    table.add_row("speed", speed)
    if (bound := verdict(counts)) is not None:
        table.add_row("bounded by", bound)
    table.add_row("output", report.output)
    table.add_row("fingerprint", report.fingerprint)
    console.print(table)


def print_rows(console: Console, rows: pa.Table, title: str) -> None:
    """Print a few rows as a table.

    A label and its score share a cell, long texts are cut, and columns in which every value is false are left out.
    """
    records = [_beside_scores(record) for record in rows.to_pylist()]
    rows = rows.select([name for name in rows.column_names if not records or name in records[0]])
    names = [name for name in rows.column_names if any(record[name] is not False for record in records)]
    table = Table(title=title, title_justify="left", expand=True)
    for name in names:
        width = max((len(_cell(record[name])) for record in records), default=0)
        if width > SHORT:
            table.add_column(name, overflow="ellipsis", no_wrap=True, ratio=1)
        else:
            table.add_column(name, no_wrap=True, min_width=max(width, len(name)))
    for record in records:
        table.add_row(*(Text(_cell(record[name])) for name in names))
    console.print(table)


def _beside_scores(record: dict[str, Any]) -> dict[str, Any]:
    """Join a label and its score: `spam: ham, spam_score: 0.99` becomes `spam: ham 0.99`."""
    scores = {
        name: f"{name}_score"
        for name, value in record.items()
        if isinstance(value, str) and isinstance(record.get(f"{name}_score"), float)
    }
    shown = {n: f"{v} {record[scores[n]]:.2f}" if n in scores else v for n, v in record.items()}
    return {n: v for n, v in shown.items() if n not in scores.values()}


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else " ".join(str(value).split())


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"
