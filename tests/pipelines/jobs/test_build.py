"""Read, Infer and Write must run fused in one process. Where they do not, the job fails, and no row is dropped."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import apache_beam as beam
import pytest
from rich.console import Console

from tagstream.pipelines.jobs.build import build
from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.report.progress import ProgressLine
from tagstream.pipelines.runners.local import execute
from tagstream.schemas.block import Block
from tagstream.schemas.errors import RunnerError
from tagstream.schemas.spec_file import load_spec
from tagstream.transforms.io.common.open_writers import OpenWriters
from tagstream.transforms.io.memory import Memory
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.stages.infer import Infer
from tagstream.transforms.stages.read import ReadSplits
from tagstream.transforms.stages.write import WriteOutput
from tests.pipelines.bulk_jobs import CONSTANT

ROWS = 100


@pytest.fixture
def job() -> Iterator[Job]:
    """100 rows in four splits, ready to run."""
    rows = Memory({"text": [f"text {i}" for i in range(ROWS)]})
    spec = load_spec(
        None,
        {
            "source": {"type": "memory", "rows": rows, "split_rows": 25},
            "infer": [CONSTANT],
            "sink": {"type": "memory", "rows": Memory()},
            "blocks": {"rows": 5},
        },
    )
    with Job.open(spec) as opened:
        opened.sink.prepare(opened.fingerprint(), overwrite=False)
        yield opened


def run(job: Job, fill: Callable[[beam.Pipeline], object]) -> None:
    line = ProgressLine(Console(file=io.StringIO()), job.context.metrics, ROWS, 0)
    execute(job.context, fill, line)


def labels(job: Job) -> int:
    return job.spec.sink.rows.labels().num_rows


def test_fused(job: Job) -> None:
    """The pipeline as it is built commits every row."""
    run(job, lambda pipeline: build(pipeline, job, job.resume()[1]))
    assert labels(job) == ROWS
    assert job.context.metrics.snapshot().dropped == 0


@pytest.mark.parametrize("shuffled_after", ["read", "infer"])
def test_write_in_another_process(job: Job, shuffled_after: str) -> None:
    """Behind a shuffle another worker writes, whose context has no writer of the split. The error says what to do."""
    elsewhere = JobContext("elsewhere")  # a worker process has a context of its own
    read = ReadSplits(job.context, job.source, job.sink)
    if shuffled_after == "read":
        steps = [read, beam.Reshuffle(), Infer(elsewhere, job.spec)]
    else:
        steps = [read, Infer(job.context, job.spec), beam.Reshuffle()]

    def fill(pipeline: beam.Pipeline) -> None:
        at = pipeline | beam.Create(job.resume()[1])
        for step in [*steps, WriteOutput(elsewhere, job.spec)]:
            at |= step

    job.context.failures = elsewhere.failures
    with elsewhere, pytest.raises(RunnerError, match=r"must run in one process\. Choose another runner") as raised:
        run(job, fill)
    assert raised.value.exit_code == 6
    assert labels(job) == 0
    assert elsewhere.metrics.snapshot().dropped == 0


def _give_up(block: Block, context: JobContext, given_up: set[str]) -> Block:
    """As a lost race does: closes the split's writer when its second block has come."""
    split = block.span.split
    if split in given_up:
        context.resource(OpenWriters).close_one(split)
    given_up.add(split)
    return block


def test_a_split_that_was_given_up(job: Job) -> None:
    """After a lost race blocks of the split still arrive. They are dropped, and the next pass commits their rows."""
    splits = job.resume()[1]

    def fill(pipeline: beam.Pipeline) -> None:
        (
            pipeline
            | beam.Create(splits[:1])
            | ReadSplits(job.context, job.source, job.sink)
            | Infer(job.context, job.spec)
            | beam.Map(_give_up, job.context, set())
            | WriteOutput(job.context, job.spec)
        )

    run(job, fill)
    assert job.context.metrics.snapshot().dropped > 0
    assert labels(job) < 25
    run(job, lambda pipeline: build(pipeline, job, job.resume()[1]))
    assert labels(job) == ROWS
