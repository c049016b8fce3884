"""The pipeline as a sentence: take the splits, read their rows, infer, write.

Read, Infer and Write must run fused, in one process. Read opens the writer of each split, because the sink's chain says
where reading begins, and Write commits through that same writer. So nothing may be shuffled after Read: there must be
no Reshuffle and no GroupByKey. The local runner and Flink fuse these steps. On a runner that does not, Write raises a
RunnerError at the first block that another process has read (`stages.write.NOT_FUSED`); no row is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import apache_beam as beam

from tagstream.pipelines.jobs.job import Job
from tagstream.schemas.block import Split
from tagstream.transforms.io.contracts import LiveSource
from tagstream.transforms.stages.infer import Infer
from tagstream.transforms.stages.read import ReadSplits
from tagstream.transforms.stages.read_live import ReadLive
from tagstream.transforms.stages.write import WriteOutput

Expected = list[dict[str, Any]] | None


def build(pipeline: beam.Pipeline, job: Job, left: Iterable[tuple[Split, int]], expected: Expected = None) -> None:
    """Put the job's transforms into a pipeline.

    `left`: splits and the position each starts from; `expected`: `Job.expectations`, where workers are elsewhere.
    """
    (
        pipeline
        | "Splits" >> beam.Create(list(left), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> ReadSplits(job.context, job.source, job.sink)
        | "Infer" >> Infer(job.context, job.spec, expected)
        | "Write" >> WriteOutput(job.context, job.spec)
    )


def build_live(pipeline: beam.Pipeline, job: Job, seats: int, expected: Expected = None) -> None:
    """The same for a source without an end. `seats`: some times as many as there are parallel workers."""
    (
        pipeline
        | "Seats" >> beam.Create(list(range(seats)), reshuffle=False)
        | "Read" >> ReadLive(job.context, cast("LiveSource", job.source), job.sink)
        | "Infer" >> Infer(job.context, job.spec, expected)
        | "Write" >> WriteOutput(job.context, job.spec)
    )
