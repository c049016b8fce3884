"""The pipeline as a sentence: splits, read, classified, written. Map-only: nothing is shuffled after the read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import apache_beam as beam

from pipelines.job import Job
from schemas.block import Split
from transforms.classify import Classify
from transforms.live import LiveSource, ReadLive
from transforms.read import ReadSplits
from transforms.write import WriteLabels


def build(pipeline: beam.Pipeline, job: Job, left: Iterable[tuple[Split, int]], key: str) -> None:
    """Put the job's transforms into a pipeline. `left`: splits and the position each starts from."""
    (
        pipeline
        | "Splits" >> beam.Create(list(left), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Read" >> ReadSplits(key, job.source, job.sink)
        | "Classify" >> Classify(job.spec)
        | "Write" >> WriteLabels(key, job.spec)
    )


def build_live(pipeline: beam.Pipeline, job: Job, seats: int, key: str) -> None:
    """The same for a source without an end. `seats`: some times as many as there are parallel workers."""
    (
        pipeline
        | "Seats" >> beam.Create(list(range(seats)), reshuffle=False)
        | "Read" >> ReadLive(key, cast("LiveSource", job.source), job.sink)
        | "Classify" >> Classify(job.spec)
        | "Write" >> WriteLabels(key, job.spec)
    )
