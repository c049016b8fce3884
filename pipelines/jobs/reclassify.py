"""Another model for an output that has labels: `--reclassify`. What is labelled again becomes splits of their own.

Asked again, by a rerun after a kill or by tomorrow's cron, it does nothing: the output is that model's by then, and the
splits that are not done yet are found in the plan.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from rich.console import Console

from tagstream.pipelines.jobs.job import Job
from tagstream.schemas.block import AGAIN, Split, split_id
from tagstream.schemas.errors import LedgerError, SpecError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.transforms.io.contracts import Again, ReclassifyingSink, again_of


@dataclass(frozen=True)
class Choice:
    """Which labelled rows: all, or those whose score is below `below` and whose label is in `labels`, where given."""

    below: float | None = None
    labels: tuple[str, ...] = ()


def reclassify(job: Job, fingerprint: Fingerprint, choice: Choice, console: Console) -> None:
    """Hand the output over to another fingerprint, before `prepare`. Raises SpecError if the sink can't."""
    sink = job.sink
    if not isinstance(sink, ReclassifyingSink):
        raise SpecError(
            f"--reclassify replaces labels by key, in a sql or duckdb sink with mode: update or upsert; a "
            f"{job.spec.sink.type} sink can't. --overwrite replaces the output; another one can be written beside it"
        )
    if job.live:
        raise SpecError("--reclassify is for input that ends; bound a topic with --set source.until=latest")
    for _ in range(3):
        held = sink.made_by()
        if held is None or held.hash == fingerprint.hash:
            return
        plan = sink.plan()
        more = _again(job, plan, choice)
        if sink.reclassify(fingerprint, len(plan), more):
            rows = sum(split.rows for split in more)
            console.print(f"another model: looking at {rows:,} labelled rows again", highlight=False)
            return
    raise LedgerError("other processes change the output's plan all the time; end them first")


def _again(job: Job, plan: list[Split], choice: Choice) -> list[Split]:
    """For each split of the input the part that is done, in the next round."""
    progress = job.sink.progress()
    number = 1 + max((again.number for again in map(again_of, plan) if again), default=0)
    splits = []
    for split in job.splits_of(plan):
        done = progress.get(split.id)
        if again_of(split) is not None or done is None or done.stop == split.start:
            continue
        again = Again(split.id, number, choice.below, choice.labels)
        name = split_id("again", of=split.id, number=number)
        payload = {**split.payload, AGAIN: asdict(again)}
        splits.append(replace(split, id=name, stop=done.stop, payload=payload))
    return splits
