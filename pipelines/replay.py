"""Running a job's dead letters again: what succeeds now is appended to the output, the rest is dead-lettered anew."""

from __future__ import annotations

from rich.console import Console

from pipelines.job import Job
from pipelines.report import Report
from pipelines.run import run_opened
from schemas.errors import SpecError
from schemas.spec import JobSpec, ParquetSink
from transforms.io import open_sink
from transforms.io.dead_letters import DeadLetterSource
from transforms.io.folder import Folder


def replay_job(spec: JobSpec, console: Console) -> Report:
    """Replay all dead letters of the job. A replay that is killed goes on where it stopped. Raises TagstreamError."""
    if not isinstance(spec.sink, ParquetSink):
        raise SpecError(f"replay reads the dead letters of a parquet sink; this one is {spec.sink.type}")
    letters = Folder(getattr(spec.dead_letters, "path", None) or spec.sink.path.rstrip("/") + "-dead")
    spec = spec.model_copy(update={"max_dead": 1.0})
    sink = open_sink(spec)
    source = DeadLetterSource(spec, letters)
    source.retire(sink.progress())
    source = DeadLetterSource(spec, letters)
    job = Job(spec, source, sink, source.splits(), replays=True)
    report = run_opened(job, console)
    source.retire(sink.progress())
    return report
