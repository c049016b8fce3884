"""Computes how many workers a number of rows a day needs, and which stage limits them. A model, not a measurement.

No more than two workers were measured. Workers share nothing but the broker or the store, so the throughput is the
number of workers times the rate of one, minus the time lost in restarts and at the end of a bulk job. The slowest stage
sets the rate of one worker. Every input figure is a field below, with its source.

    python -m benchmarks.scaling [--json FILE] [--set FIELD=NUMBER …] [--record]
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.results import save

DAY = 86_400.0
TARGETS = (10**6, 10**7, 10**8, 10**9, 10**10)


@dataclass(frozen=True)
class Figures:
    """The input figures. m: measured, by the benchmark if one is named, otherwise once by hand. a: assumed."""

    tokens: float = 46.0
    """a: mean tokens of a text"""
    text_bytes: float = 230.0
    """a: of a message or row, labels about as much again"""
    cpu_infer_per_core: float = 75.0
    """m: rows/s, six layers of width 384, fp32; benchmarks.bulk"""
    tokenise_per_core: float = 7_900.0
    """m: texts/s, 50 tokens"""
    pipeline_per_process: float = 380_000.0
    """m: rows/s that one core reads and writes as Parquet without a model; benchmarks.overhead, halved"""
    kafka_per_process: float = 15_000.0
    """m: records/s that one worker process reads, writes and commits with kafka-python"""
    kafka_commit_s: float = 0.013
    """m: seconds of a transaction beside its records"""
    kafka_record_s: float = 0.00006
    """m: seconds a record within a transaction"""
    block_rows: float = 2_048.0
    """default of blocks.rows"""
    cpu_cores: float = 4.0
    """a: of a CPU worker"""
    gpu_cores: float = 8.0
    """a: beside one GPU"""
    model_parameters: float = 10.6e6
    """m: without the embeddings; six layers of width 384"""
    gpu_flops: float = 120e12
    """a: peak in bf16, a middling inference GPU"""
    gpu_used: float = 0.2
    """a: share of the peak that short texts in micro-batches reach"""
    failures_per_worker_day: float = 1 / 30
    """a: a worker dies once a month"""
    recovery_s: float = 30.0
    """m: Flink restarts the whole job; the worst seen in the tests was less"""
    split_rows: float = 1e6
    """a setting: rows in a split, and so in an output file"""
    replication: float = 3.0
    """a: copies that a topic keeps"""
    broker_mb_s: float = 50.0
    """a: that one broker takes, copies included"""


@dataclass(frozen=True)
class Plan:
    """What a target needs. `bound`: the stage that limits one worker."""

    rows_per_day: int
    source: str
    worker: str
    workers: int
    per_worker: float
    bound: str
    units: int
    """Partitions that a topic needs, or files that a day writes."""
    mb_per_s: float
    brokers: int


def stages(f: Figures, worker: str, source: str) -> dict[str, float]:
    """Rows a second that each stage of one worker can do. The stages overlap."""
    if worker == "gpu":
        layers, width = 6, 384
        flops = 2 * f.model_parameters * f.tokens + 4 * layers * width * f.tokens**2
        infer, tokenise = f.gpu_flops * f.gpu_used / flops, f.tokenise_per_core * f.gpu_cores
    else:
        infer, tokenise = f.cpu_infer_per_core * f.cpu_cores, f.tokenise_per_core * f.cpu_cores
    moved = {"kafka": f.kafka_per_process} if source == "topic" else {"files": f.pipeline_per_process}
    return {"infer": infer, "tokenise": tokenise, **moved}


def useful(f: Figures, workers: int, rows: float, source: str) -> float:
    """Useful share of the workers' time. The rest is lost in restarts and in waiting for the last splits of a job."""
    lost = min(0.9, workers * f.failures_per_worker_day * f.recovery_s / DAY)
    splits = max(1.0, rows / f.split_rows)
    tail = 1.0 if source == "topic" else splits / (splits + min(workers, splits) / 2)
    return (1 - lost) * tail


def plan(f: Figures, rows: int, worker: str, source: str) -> Plan:
    """The fewest workers that do `rows` in a day."""
    rates = stages(f, worker, source)
    bound = min(rates, key=lambda stage: rates[stage])
    rate, needed = rates[bound], rows / DAY
    workers = max(1, math.ceil(needed / rate))
    while workers * rate * useful(f, workers, rows, source) < needed:
        workers += 1
    partition = f.block_rows / (f.kafka_commit_s + f.kafka_record_s * f.block_rows)
    units = max(workers, math.ceil(needed / partition)) if source == "topic" else math.ceil(rows / f.split_rows)
    mb = needed * 2 * f.text_bytes / 1e6
    brokers = max(1, math.ceil(mb / 2 * (f.replication + 1) / f.broker_mb_s)) if source == "topic" else 0
    return Plan(rows, source, worker, workers, round(rate, 1), bound, units, round(mb, 2), brokers)


def plans(f: Figures) -> list[Plan]:
    kinds = [(worker, source) for worker in ("cpu", "gpu") for source in ("topic", "files")]
    return [plan(f, rows, *kind) for kind in kinds for rows in TARGETS]


def table(found: list[Plan]) -> list[str]:
    """Markdown."""
    heads = ("rows a day", "rows/s", "source", "worker", "workers", "rows/s of one, bound", "partitions, files", "MB/s")
    cells = [
        (
            f"10^{round(math.log10(p.rows_per_day))}",
            f"{p.rows_per_day / DAY:,.0f}",
            p.source,
            p.worker,
            f"{p.workers:,}",
            f"{p.per_worker:,.0f}, {p.bound}",
            f"{p.units:,}",
            f"{p.mb_per_s:g}",
        )
        for p in found
    ]
    return ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *cells)]


def _figures(changes: list[str]) -> Figures:
    changed: dict[str, Any] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in {field.name for field in fields(Figures)}:
            raise SystemExit(f"--set {name}: there are {', '.join(field.name for field in fields(Figures))}")
        changed[name] = float(value)
    return replace(Figures(), **changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=NUMBER", help="another figure than the default")
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    figures = _figures(options.set)
    found = plans(figures)
    data = {"figures": asdict(figures), "plans": [asdict(p) for p in found]}
    save("scaling", data, table(found), {}, options.json, record=options.record)
    most = found[len(TARGETS) - 1]
    print(json.dumps({"workers_for_10^10": most.workers, "bound": most.bound}))


if __name__ == "__main__":
    main()
