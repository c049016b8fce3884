"""Runs a job on a cluster, with the same steps and the same ledger as on this machine.

The workers load the models and do the work. This process learns about progress and speed only from the sink's ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from tagstream.pipelines.jobs.build import build, build_live
from tagstream.pipelines.jobs.changed import refusal
from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.report.progress import print_sentences
from tagstream.pipelines.runners.flink_rest import Flink, FlinkJob
from tagstream.pipelines.runners.submit import GONE, Build, follow_flink, run_beam, submit_flink
from tagstream.schemas.block import Split
from tagstream.schemas.errors import RunnerError, SpecError, TagstreamError
from tagstream.schemas.runner_spec import FlinkRunner, OptionsRunner
from tagstream.schemas.spec import JobSpec

LEDGER_SECONDS = 5.0
"""Seconds between two looks at the ledger, because listing a large output takes a while."""


def run_pass_remote(job: Job, left: list[tuple[Split, int]], console: Console) -> None:
    """Run one pass over the splits that are left, and count the rows that it has committed. Raises RunnerError."""
    _run(job, console, _filler(job, left))


def run_live_remote(job: Job, console: Console) -> None:
    """Run a job without an end until it is asked to stop, here or on the cluster. Raises RunnerError."""
    if _run(job, console, _filler(job, [])) == GONE:
        raise RunnerError(
            "Flink has forgotten the job: its JobManager was started again, and has no high availability. Run the job "
            "again: it continues where it stopped"
        )


def detach_job(
    spec: JobSpec, console: Console, *, limit: int | None = None, overwrite: bool = False
) -> FlinkJob | None:
    """Submit the job, wait until it runs, and leave it to the cluster. Returns None if no rows are left to do.

    Raises TagstreamError.
    """
    if not isinstance(spec.runner, FlinkRunner):
        raise SpecError(f"--detach leaves the job to a cluster: it needs runner.type flink, not {spec.runner.type}")
    with console.status("looking at the input"):
        job = Job.open(spec, limit, overwrite=overwrite)
    with job:
        print_sentences(console, job.notes)
        with console.status("looking at the output"):
            job.sink.prepare(job.fingerprint(), overwrite=overwrite)
        left = [] if job.live else job.resume()[1]
        if changed := job.changed(job.sink.progress()):
            raise refusal(sorted(changed), job.spec.output)
        return _submit(job, spec.runner, console, _filler(job, left)) if job.live or left else None


def _filler(job: Job, left: list[tuple[Split, int]]) -> Build:
    expected = job.expectations()
    if not job.live:
        return lambda pipeline: build(pipeline, job, left, expected)
    runner = job.spec.runner
    if isinstance(runner, FlinkRunner):
        seats = runner.seats_per_slot * runner.parallelism
    else:
        assert isinstance(runner, OptionsRunner)
        seats = runner.seats
    return lambda pipeline: build_live(pipeline, job, seats, expected)


def _run(job: Job, console: Console, fill: Build) -> str:
    """Run one pipeline on the cluster. Returns the state in which it ended."""
    state = "DONE"
    runner = job.spec.runner
    before = job.rows_done(job.sink.progress())
    if isinstance(runner, OptionsRunner):
        with console.status("running; progress is on the runner's own pages"):
            run_beam(runner, job.spec.name, fill, job.context.stop)
    else:
        assert isinstance(runner, FlinkRunner)
        submitted = _submit(job, runner, console, fill)
        with console.status("running on Flink") as status:
            state = follow_flink(runner, submitted, _reporter(job, before, status.update), job.context.stop)
    job.context.metrics.add(rows_in=job.rows_done(job.sink.progress()) - before)
    return state


def _submit(job: Job, runner: FlinkRunner, console: Console, fill: Build) -> FlinkJob:
    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    with console.status("submitting to Flink"):
        submitted = submit_flink(runner, job.spec.name, fill, job.context.stop, live=job.live, say=say)
    say(f"running on Flink: {Flink(runner.rest).url(submitted)}")
    return submitted


def _reporter(job: Job, before: int, update: Callable[[str], Any]) -> Callable[[str], None]:
    started = asked = time.monotonic()
    done = before

    def report(state: str) -> None:
        nonlocal asked, done
        now = time.monotonic()
        if now - asked > LEDGER_SECONDS:
            asked = now
            try:
                done = job.rows_done(job.sink.progress())
            except TagstreamError as error:
                if not (job.live and error.transient):
                    raise
        speed = (done - before) / (now - started) if now > started else 0.0
        rows = f"{done:,} positions" if job.live else f"{done:,}/{job.rows:,} rows committed · {speed:,.0f} rows/s"
        update(f"{'stopping' if job.context.stop.is_set() else state} on Flink · {rows} · {now - started:.0f} s")

    return report
