"""Bulk and live must agree: one range of a topic through both paths, and every label compared."""

from __future__ import annotations

import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
from rich.console import Console

from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.block import POSITION
from tagstream.schemas.errors import SourceError, SpecError
from tagstream.schemas.memory_spec import MemorySink
from tagstream.schemas.runner_spec import LocalRunner
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.memory import Memory
from tagstream.transforms.runtime.job_context import JobContext

EXAMPLES = 5


@dataclass
class Verdict:
    """What was compared. `examples`: split, position and both rows of the first that differ."""

    rows: int
    dead: int
    different: int
    examples: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_job(spec: JobSpec, console: Console, seconds: float) -> Verdict:
    """Label what is in the source's topics now, from `source.start` on, live and in bulk; touches no output.

    Raises SpecError for another source, SourceError if the live path does not get there within `seconds`.
    """
    tag = uuid.uuid4().hex[:8]
    sources = spec.source.both_ways(f"{spec.name}-verify-{tag}")
    if sources is None:
        raise SpecError(f"verify compares the live and the bulk path of a Kafka source; this one is {spec.source.type}")
    labels = {"bulk": Memory(), "live": Memory()}
    bulk, live = (
        spec.model_copy(
            update={
                "name": f"{spec.name}-verify-{tag}",
                "source": source,
                "sink": MemorySink(rows=labels[path], commit_every=0.2),
                "dead_letters": None,
                "runner": LocalRunner(),
                "max_dead": 1.0,
            }
        )
        for path, source in zip(("bulk", "live"), sources, strict=True)
    )
    run_job(bulk, console)
    ends = dict(labels["bulk"].ends)
    context = JobContext(live.name)
    arrived = threading.Event()

    def stop_in_time() -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not arrived.is_set():
            if all(labels["live"].ends.get(split, -1) >= end for split, end in ends.items()):
                arrived.set()
            time.sleep(0.1)
        context.stop.request()

    watcher = threading.Thread(target=stop_in_time, daemon=True)
    watcher.start()
    run_job(live, console, context=context)
    watcher.join(1)
    if not arrived.is_set():
        raise SourceError(f"the live path did not read {len(ends)} partitions to their ends within {seconds:g} s")
    return _compare(labels["bulk"], labels["live"], ends)


def _compare(bulk: Memory, live: Memory, ends: dict[str, int]) -> Verdict:
    verdict = Verdict(0, 0, 0)
    for split, end in ends.items():
        here, there = (_rows(side, split, end, 0) for side in (bulk, live))
        dead_here, dead_there = (_rows(side, split, end, 1) for side in (bulk, live))
        verdict.rows += len(here)
        verdict.dead += len(dead_here)
        for left, right in ((here, there), (dead_here, dead_there)):
            for position in sorted(left.keys() | right.keys()):
                one, other = left.get(position), right.get(position)
                if one is None or other is None or not _alike(one, other):
                    verdict.different += 1
                    if len(verdict.examples) < EXAMPLES:
                        verdict.examples.append({"split": split, "position": position, "bulk": one, "live": other})
    return verdict


def _rows(side: Memory, split: str, end: int, part: int) -> dict[int, dict[str, Any]]:
    """Rows by position below `end`; part 0: labels, 1: dead letters."""
    batches = [b for key in sorted(side.commits) if key[0] == split for b in side.commits[key][part]]
    rows = pa.Table.from_batches(batches).to_pylist() if batches else []
    name = "position" if part else POSITION
    return {row[name]: row for row in rows if row[name] < end}


def _alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal, scores up to the rounding of another micro-batch."""
    return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-4 or (one != one and other != other)  # noqa: PLR0124  NaN
    if isinstance(one, dict) and isinstance(other, dict):
        return _alike(one, other)
    return bool(one == other)
