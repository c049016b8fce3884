"""The submitting side finds a worker's error in the traceback that Flink reports."""

from __future__ import annotations

import socket
import traceback

import apache_beam as beam
import pytest

from tagstream.pipelines.runners import submit as remote
from tagstream.pipelines.runners.submit import known_error
from tagstream.schemas.errors import LedgerError, RunnerError, SourceError, TagstreamError
from tagstream.transforms.runtime.job_context import JobContext


def trace_of(error: TagstreamError) -> str:
    """A traceback as Flink reports it: the worker's, with the step's name from Beam, and Java's own below."""
    try:
        with JobContext().failing():
            raise error
    except TagstreamError:
        text = traceback.format_exc()
    name = f"{type(error).__module__}.{type(error).__name__}"
    again = f"\nDuring handling …\n\n{name}: {error} [while running 'Read/ParDo']\n"
    return f"java.lang.RuntimeException: Error received from SDK harness\n{text}{again}\tat java.base/Thread.run"


@pytest.mark.parametrize("kind", [SourceError, LedgerError])
def test_final_error_ends_the_job(kind: type[TagstreamError]) -> None:
    """The error has its kind, and its message without Beam's words."""
    found = known_error(trace_of(kind("topic 'x' does not exist; create it first")))
    assert type(found) is kind
    assert str(found) == "topic 'x' does not exist; create it first"


def test_job_server_that_is_none() -> None:
    """If the program at the job server's address never answers, the user is told after a while."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        options = ["--runner=PortableRunner", f"--job_endpoint=127.0.0.1:{server.getsockname()[1]}"]
        options += ["--environment_type=EXTERNAL", "--environment_config=x", "--job_server_timeout=1"]
        with pytest.raises(RunnerError, match=r"the runner refused the job: FutureTimeoutError"):
            remote._run(options, lambda pipeline: pipeline | beam.Create([1]))


def test_transient_error_does_not() -> None:
    """If a broker is away, Flink restarts the job until the broker is back."""
    error = SourceError("no broker answers")
    error.transient = True
    assert known_error(trace_of(error)) is None
    assert known_error("java.lang.IllegalStateException: KeyError: 3") is None
