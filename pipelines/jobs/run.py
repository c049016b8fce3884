"""Runs a job on this machine, and owns its progress line, signals and report.

First the input and the model files are checked. Then the job claims the output, loads the models, and runs the pipeline
over all splits that are left. Such a pass may leave a split undone, because another process has taken it over. The job
then asks the ledger which splits are left, and runs another pass, until none is left.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rich.console import Console

from tagstream.pipelines.jobs.build import build
from tagstream.pipelines.jobs.changed import Choice as Changed
from tagstream.pipelines.jobs.changed import settle
from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.jobs.reclassify import Choice, reclassify
from tagstream.pipelines.jobs.run_live import run_live
from tagstream.pipelines.jobs.run_remote import run_pass_remote
from tagstream.pipelines.report.progress import ProgressLine, print_notes, print_sentences
from tagstream.pipelines.report.report import Report
from tagstream.pipelines.runners.local import execute
from tagstream.schemas.block import Split
from tagstream.schemas.errors import LedgerError, SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.stop import Stop


def run_job(
    spec: JobSpec,
    console: Console,
    *,
    overwrite: bool = False,
    limit: int | None = None,
    max_seconds: float | None = None,
    again: Choice | None = None,
    changed: Changed | None = None,
    context: JobContext | None = None,
) -> Report:
    """Run the job to its end, for `max_seconds`, or until it is asked to stop. Raises TagstreamError.

    `again`: rows to label again because the model has changed. `changed`: what becomes of input files that were
    rewritten since they were labelled; without it they are refused. `context`: given by callers that look at the job
    while it runs, for example at its metrics. The context is closed at the end.
    """
    if again is not None and overwrite:
        raise SpecError("--reclassify keeps the output and --overwrite replaces it: give only one of them")
    if again is not None and limit is not None:
        raise SpecError("--reclassify looks at all labelled rows: leave out --limit")
    if spec.live and limit is not None:
        raise SpecError("--limit needs an input that ends: for a topic, give --set source.until=latest")
    with console.status("looking at the input"):
        job = Job.open(spec, limit, overwrite=overwrite, context=context)
    with job:
        print_sentences(console, job.notes)
        if again is not None:
            reclassify(job, job.fingerprint(), again, console)
        return run_opened(job, console, overwrite=overwrite, max_seconds=max_seconds, changed=changed)


def run_opened(
    job: Job,
    console: Console,
    *,
    overwrite: bool = False,
    max_seconds: float | None = None,
    changed: Changed | None = None,
) -> Report:
    """Run an opened job, see `run_job`."""
    with _signals(job.context.stop, console), _time_limit(job.context.stop, max_seconds):
        if job.live:
            return run_live(job, console, overwrite=overwrite)
        return _run(job, console, overwrite=overwrite, changed=changed)


@dataclass
class _Work:
    """What was spent on a job. `started`: when rows began to move."""

    started: float
    load_seconds: float
    engines: int

    def label(self, job: Job, console: Console, before: int) -> None:
        """Passes until nothing is left, or the job is asked to stop. `before`: rows that were done before."""
        left, stop, metrics = job.left(job.sink.progress()), job.context.stop, job.context.metrics
        if left and job.spec.runner.type != "local":
            while left and not stop.is_set():
                run_pass_remote(job, left, console)
                left = _still_left(job, left)
        elif left:
            began = time.monotonic()
            with console.status("loading " + ", ".join(c.model or c.backend.type for c in job.spec.infer)):
                self.engines = job.load_models()
            self.load_seconds += time.monotonic() - began
            print_notes(console, metrics)
            with ProgressLine(console, metrics, job.rows, before, self.engines) as line:
                self.started = self.started if metrics.snapshot().rows_in else line.started
                while left and not stop.is_set():
                    _run_pass(job, left, line)
                    left = _still_left(job, left)


def _run(job: Job, console: Console, *, overwrite: bool, changed: Changed | None = None) -> Report:
    with console.status("hashing the model"):
        fingerprint = job.fingerprint()
    job.sink.prepare(fingerprint, overwrite=overwrite)
    progress, _ = job.resume()
    work = _Work(time.monotonic(), 0.0, len(job.spec.infer))
    before = job.rows_done(progress)
    rows = job.rows
    settle(job, progress, changed, console, lambda part: work.label(part, console, 0))
    if changed == "keep":  # fewer splits
        before = job.rows_done(progress)
    if foreign := job.foreign(job.sink.progress()):
        console.print(
            f"[yellow]the output holds {foreign} splits whose input is gone or has changed[/]; their rows stay. "
            "--overwrite removes them and does all rows again"
        )
    if not job.context.stop.is_set():
        work.label(job, console, before)
        if job.unfinished and job.limit is None and not job.context.stop.is_set():  # now look for missing rows
            job.settle()
            rows = job.rows
            work.label(job, console, 0)
    rows_left = (rows if changed == "replace" else job.rows) - job.rows_done(job.sink.progress())
    return Report(
        job=job.spec.name,
        state="stopped" if rows_left else "done",
        fingerprint=fingerprint.hash,
        rows_total=rows if changed == "replace" else job.rows,
        rows_before=before,
        rows_left=rows_left,
        seconds=time.monotonic() - work.started,
        load_seconds=work.load_seconds,
        counts=job.context.metrics.snapshot(),
        output=job.spec.output,
        remote=job.spec.runner.type != "local",
        engines=work.engines,
        input=job.input,
    )


def _still_left(job: Job, before: list[tuple[Split, int]]) -> list[tuple[Split, int]]:
    """The splits that a pass has left undone. Raises LedgerError if the pass has committed nothing at all."""
    left = job.left(job.sink.progress())
    if left == before and not job.context.stop.is_set():
        raise LedgerError(
            f"{len(left)} splits make no progress; the first one is {left[0][0].id}. --debug shows the full logs"
        )
    return left


def _run_pass(job: Job, left: list[tuple[Split, int]], line: ProgressLine) -> None:
    """Run one pipeline over the splits that are left."""
    at = random.randrange(len(left))  # noqa: S311  processes that share an output begin with different splits
    execute(job.context, lambda pipeline: build(pipeline, job, left[at:] + left[:at]), line)


@contextmanager
def _time_limit(stop: Stop, seconds: float | None) -> Iterator[None]:
    """Ask the job to stop after `seconds`, as SIGTERM would."""
    timer = threading.Timer(seconds, stop.request) if seconds is not None else None
    if timer:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        if timer:
            timer.cancel()


@contextmanager
def _signals(stop: Stop, console: Console) -> Iterator[None]:
    """On SIGTERM and Ctrl-C, finish the blocks in flight, commit them and exit 0. The second time, exit at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.request()
        console.print("stopping: finishing the rows in flight (once more: exit at once)")

    before: list[tuple[int, Callable[[int, FrameType | None], None] | int | None]] = [
        (number, signal.signal(number, handle)) for number in (signal.SIGTERM, signal.SIGINT)
    ]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
