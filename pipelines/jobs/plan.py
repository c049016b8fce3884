"""Tells what a job would do: splits, rows done and left, columns, expected speed. Loads no model and changes nothing.

With `backend: auto` the weights are read to hash them, and an invalid certificate is an error here as it is in `run`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tagstream.pipelines.jobs.job import Job
from tagstream.schemas.block import TEXT
from tagstream.schemas.errors import SpecError
from tagstream.schemas.runner_spec import FlinkRunner
from tagstream.schemas.spec import AutoBackend, ConstantBackend, InferEntry, JobSpec
from tagstream.transforms.inference.backends.auto import certified_rows_per_s
from tagstream.transforms.inference.backends.huggingface import files_of
from tagstream.transforms.io.contracts import Progress

BYTES_A_TOKEN = 4.0
EFFICIENCY = 0.5
"""Share of a plain matrix product's speed that a transformer reaches on the same processor; measured 0.4 to 0.6."""

MEASURED = "the engine alone, as `tagstream optimize` measured it on this machine with its sample"
PRETENDED = "the constant backend's ms_per_row"


@dataclass
class Plan:
    """See the module. `rows_per_s`: None if nothing is known. `speed_from`: where that number comes from."""

    job: str
    splits: int
    splits_done: int
    rows: int
    rows_done: int
    foreign_splits: int
    columns: dict[str, str]
    rows_per_s: float | None
    speed_from: str
    output: str
    advice: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Input files that were rewritten since they were labelled."""
    files: int | None = None
    skipped_files: int | None = None
    notes: list[str] = field(default_factory=list)
    """What the user should know about the input."""

    @property
    def rows_left(self) -> int:
        return self.rows - self.rows_done

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "rows_left": self.rows_left}


def plan_job(spec: JobSpec, limit: int | None = None) -> Plan:
    """Make the plan from input, output and model config. Raises TagstreamError."""
    job = Job.open(spec, limit)
    if job.live:
        raise SpecError(
            "plan needs an input that ends: for the messages that are in a topic now, give --set source.until=latest"
        )
    progress = job.sink.progress()
    left = job.left(progress)
    rows_per_s, speed_from = _measured(progress)
    if rows_per_s is None and left:
        rows_per_s, speed_from = _estimated(job)
    return Plan(
        job=spec.name,
        splits=len(job.splits),
        splits_done=len(job.splits) - len(left),
        rows=job.rows,
        rows_done=job.rows_done(progress),
        foreign_splits=job.foreign(progress),
        columns={field.name: str(field.type) for field in job.columns},
        rows_per_s=rows_per_s and round(rows_per_s, 1),
        speed_from=speed_from,
        output=spec.output,
        advice=_advice(spec, len(left)),
        changed=sorted(job.changed(progress)),
        files=job.input.files if job.input else None,
        skipped_files=len(job.input.skipped) if job.input else None,
        notes=job.notes,
    )


def print_plan(console: Console, plan: Plan) -> None:
    """Print the plan as a table."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    if plan.files is not None:
        table.add_row("files", f"{plan.files:,}")
    table.add_row("splits", f"{plan.splits:,} ({plan.splits_done:,} done)")
    table.add_row("rows", f"{plan.rows:,}")
    table.add_row("rows done", f"{plan.rows_done:,}")
    table.add_row("rows left", f"{plan.rows_left:,}")
    if plan.foreign_splits:
        table.add_row("", f"the output also holds {plan.foreign_splits} splits whose input is gone or has changed")
    for name in plan.changed:
        table.add_row("rewritten", Text(name))
    if plan.rows_left:
        speed = f"{plan.rows_per_s:,.0f} rows/s" if plan.rows_per_s else "unknown"
        table.add_row("expected speed", f"{speed} ({plan.speed_from})")
        if plan.rows_per_s:
            table.add_row("expected time", f"{plan.rows_left / plan.rows_per_s / 60:,.1f} minutes on this machine")
    else:
        table.add_row("", "nothing to do")
    table.add_row("columns", ", ".join(f"{name}: {kind}" for name, kind in plan.columns.items()))
    table.add_row("output", plan.output)
    for sentence in plan.advice:
        table.add_row("advice", sentence)
    for sentence in plan.notes:
        table.add_row("note", Text(sentence))
    console.print(table)


def _advice(spec: JobSpec, left: int) -> list[str]:
    """Advice for a cluster: how to use all slots, and how to hold each model in memory only once."""
    if not isinstance(spec.runner, FlinkRunner):
        return []
    found = []
    if 0 < left < spec.runner.parallelism:
        found.append(f"{left} splits leave some of the {spec.runner.parallelism} slots idle: lower source.split_rows")
    if any(c.backend.needs_model for c in spec.infer):
        found.append(
            "the slots of a task manager share one worker process and one model. Two task managers on one GPU would "
            "hold the model twice, with smaller micro-batches: run one task manager for each GPU"
        )
    return found


def _measured(progress: dict[str, Progress]) -> tuple[float | None, str]:
    rows = sum(p.rows for p in progress.values())
    seconds = sum(p.seconds for p in progress.values())
    return (rows / seconds, "measured by the commits of this output") if rows and seconds else (None, "")


def _estimated(job: Job) -> tuple[float | None, str]:
    """Rows per second, from the sum of all entries' seconds per row.

    For an entry without a certificate, the speed is estimated from the size of the model, the length of the first rows
    and the speed of a matrix product on this CPU.
    """
    seconds, known_from, unknown = 0.0, PRETENDED, []
    for entry in job.spec.infer:
        backend = entry.backend
        if isinstance(backend, ConstantBackend):
            seconds += backend.ms_per_row / 1000
        elif isinstance(backend, AutoBackend) and (certified := certified_rows_per_s(entry)):
            seconds, known_from = seconds + 1 / certified, MEASURED
        else:
            unknown.append(entry)
    if not unknown:
        return (1 / seconds, known_from) if seconds else (None, "no model: as fast as the input can be read")
    block = next((b for split in job.splits[:1] for b in job.source.read(split, split.start)), None)
    if block is None or not block.batch.num_rows:
        return None, "the first block has no rows"
    size = np.nan_to_num(pc.binary_length(block.batch.column(TEXT)).to_numpy(zero_copy_only=False).astype(float))
    work = sum(_flops_a_row(entry, size) for entry in unknown)
    seconds += work / (EFFICIENCY * _matmul_flops())
    return 1 / seconds, "a rough estimate from the model's size and this CPU; a GPU is faster"


def _flops_a_row(entry: InferEntry, size: Any) -> float:
    """FLOP for a row: 2 for each weight and token. A layer has 4 h² weights of attention and 2 h i of feed-forward.

    Embeddings are look-ups and cost nothing. `size`: bytes of the first rows' texts.
    """
    config = files_of(entry).config
    hidden = config.get("hidden_size") or config.get("dim") or config.get("n_embd") or 768
    layers = config.get("num_hidden_layers") or config.get("n_layers") or config.get("n_layer") or 12
    inner = config.get("intermediate_size") or config.get("hidden_dim") or 4 * hidden
    window = entry.max_length or config.get("max_position_embeddings") or 512
    tokens = float(np.minimum(size / BYTES_A_TOKEN + 2, window).mean())
    return 2.0 * layers * (4 * hidden**2 + 2 * hidden * inner) * tokens


def _matmul_flops() -> float:
    """FLOP/s of a float32 matrix product on this CPU, the best of three."""
    n = 1024
    a = np.ones((n, n), np.float32)
    best = 0.0
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        best = max(best, 2.0 * n**3 / (time.perf_counter() - started))
    return best
