"""Runs a pipeline on this machine, in a thread of its own, so that the main thread can handle signals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from tagstream.schemas.errors import TagstreamError
from tagstream.transforms.io.common.open_writers import OpenWriters
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.stages.read_live import FeedPool

_OPTIONS = ["--direct_num_workers=1", "--direct_running_mode=in_memory", "--no_save_main_session"]


class Line(Protocol):
    """Shows the user how the job is going. `note` comes before the rest of the line."""

    note: str


def execute(context: JobContext, build: Callable[[beam.Pipeline], None], line: Line) -> None:
    """Run the pipeline that `build` fills to its end.

    If a stage fails, raises the stage's own exception. The runner's exception only has its text.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            pipeline = beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions(_OPTIONS))
            build(pipeline)
            pipeline.run().wait_until_finish()
        except BaseException as error:  # noqa: BLE001  raised again below, in the calling thread
            raised.append(error)

    thread = threading.Thread(target=run, name="pipeline", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        if context.stop.is_set():
            line.note = "stopping"
    context.resource(FeedPool).close()
    context.resource(OpenWriters).close()
    if raised:
        known = next((f for f in context.failures if isinstance(f, TagstreamError)), None)
        raise known or (context.failures[0] if context.failures else raised[0])
