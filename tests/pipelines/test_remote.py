"""What the submitting side makes of a worker's traceback."""

from __future__ import annotations

import traceback

import pytest

from pipelines.remote import known_error
from schemas.errors import LedgerError, SourceError, TagstreamError
from transforms.stop import STOP, failing


def trace_of(error: TagstreamError) -> str:
    """As Flink reports it: a worker's traceback, the step's name appended by Beam, Java's own trace below."""
    try:
        with failing():
            raise error
    except TagstreamError:
        text = traceback.format_exc()
    finally:
        STOP.clear()
    again = f"\nDuring handling …\n\nschemas.errors.{type(error).__name__}: {error} [while running 'Read/ParDo']\n"
    return f"java.lang.RuntimeException: Error received from SDK harness\n{text}{again}\tat java.base/Thread.run"


@pytest.mark.parametrize("kind", [SourceError, LedgerError])
def test_final_error_ends_the_job(kind: type[TagstreamError]) -> None:
    """Its kind, and its message without Beam's words."""
    found = known_error(trace_of(kind("topic 'x' does not exist; create it first")))
    assert type(found) is kind
    assert str(found) == "topic 'x' does not exist; create it first"


def test_transient_error_does_not() -> None:
    """A broker that is away: Flink starts the job again until it is back."""
    error = SourceError("no broker answers")
    error.transient = True
    assert known_error(trace_of(error)) is None
    assert known_error("java.lang.IllegalStateException: KeyError: 3") is None
