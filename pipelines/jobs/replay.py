"""Runs the dead letters of a job again. Rows that succeed now join the output; the others become dead letters anew."""

from __future__ import annotations

from rich.console import Console

from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.jobs.run import run_opened
from tagstream.pipelines.report.report import Report
from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import ReplayingSink
from tagstream.transforms.io.registry import open_sink, open_source
from tagstream.transforms.runtime.job_context import JobContext


def replay_job(spec: JobSpec, console: Console) -> Report:
    """Replay all dead letters of the job. After a kill, the next replay continues. Raises TagstreamError."""
    spec = spec.model_copy(update={"max_dead": 1.0})
    context = JobContext(spec.name)
    sink = open_sink(spec, context)
    if not isinstance(sink, ReplayingSink):
        raise SpecError(f"replay can't read the dead letters of a {spec.sink.type} sink")
    letters = sink.dead_letters(lambda: open_source(spec, context).kept)
    with Job(spec, letters, sink, letters.splits(), replays=True, context=context) as job:
        report = run_opened(job, console)
    letters.retire(sink.progress())
    return report
