"""Labels the rows of an output again because the model has changed: `--reclassify`.

The rows to label again become new splits in the plan of the output, and the output gets the new model's fingerprint.
A second `--reclassify` with the same model changes nothing, for example after a kill or in tomorrow's cron job. The
run then finds the splits that are not done in the plan.
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
    """Which labelled rows to label again.

    `below`: only rows with a smaller score. `labels`: only rows with one of these labels. Without both, all rows. With
    both, only rows for which both are true.
    """

    below: float | None = None
    labels: tuple[str, ...] = ()


def reclassify(job: Job, fingerprint: Fingerprint, choice: Choice, console: Console) -> None:
    """Hand the output over to the job with `fingerprint`. Must come before `prepare`.

    Raises SpecError if the sink can't replace labels.
    """
    sink = job.sink
    if not isinstance(sink, ReclassifyingSink):
        raise SpecError(
            "--reclassify needs a sink that finds rows by key: a sql or duckdb sink with mode: update or upsert. A "
            f"{job.spec.sink.type} sink can't do that. Replace the whole output with --overwrite, or choose another one"
        )
    if job.live:
        raise SpecError("--reclassify needs an input that ends: for a topic, give --set source.until=latest")
    for _ in range(3):
        held = sink.made_by()
        if held is None or held.hash == fingerprint.hash:
            return
        plan = sink.plan()
        more = _again(job, plan, choice)
        if sink.reclassify(fingerprint, len(plan), more):
            rows = sum(split.rows for split in more)
            console.print(f"the model has changed: looking at {rows:,} labelled rows again", highlight=False)
            return
    raise LedgerError("other processes keep changing the plan of the output. End them, and start the job again")


def _again(job: Job, plan: list[Split], choice: Choice) -> list[Split]:
    """One new split for each split of the input. It covers the rows that are done."""
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
