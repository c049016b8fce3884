"""A job on a cluster: the same transforms, the same ledger; only who runs them differs.

The models are loaded by the workers. So this process knows of progress what the sink's ledger says, and of speed what
follows from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from pipelines.build import build, build_live
from pipelines.job import Job
from pipelines.remote import Build, follow_flink, run_beam, submit_flink
from schemas.block import Split
from schemas.runner_spec import BeamRunner, FlinkRunner
from transforms.metrics import METRICS
from transforms.stop import STOP

LEDGER_SECONDS = 5.0
"""How often the ledger is asked: listing a large output takes a while."""


def run_pass_remote(job: Job, left: list[tuple[Split, int]], console: Console) -> None:
    """One pass over what is left, on the cluster; counts what the ledger gained. Raises RunnerError."""
    before = job.rows_done(job.sink.progress())
    key = f"{job.spec.name}-{id(job)}"
    expected = job.expectations()
    _run(job, console, lambda pipeline: build(pipeline, job, left, key, expected), before)
    gained = job.rows_done(job.sink.progress()) - before
    METRICS.add(rows_in=gained)


def run_live_remote(job: Job, console: Console) -> None:
    """A job without an end, until it is asked to stop. Raises RunnerError."""
    runner = job.spec.runner
    if isinstance(runner, FlinkRunner):
        seats = runner.seats_per_slot * runner.parallelism
    else:
        assert isinstance(runner, BeamRunner)
        seats = runner.seats
    key = f"{job.spec.name}-{id(job)}"
    expected = job.expectations()
    _run(job, console, lambda pipeline: build_live(pipeline, job, seats, key, expected), 0)


def _run(job: Job, console: Console, fill: Build, before: int) -> None:
    runner = job.spec.runner
    if isinstance(runner, BeamRunner):
        with console.status("running; progress is on the runner's own pages"):
            run_beam(runner, job.spec.name, fill)
        return
    assert isinstance(runner, FlinkRunner)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    with console.status("submitting to Flink"):
        submitted = submit_flink(runner, job.spec.name, fill, live=job.live, say=say)
    say(f"running on Flink: {runner.rest.rstrip('/')}/#/job/{submitted.id}/overview")
    with console.status("running on Flink") as status:
        follow_flink(runner, submitted, _reporter(job, before, status.update))


def _reporter(job: Job, before: int, update: Callable[[str], Any]) -> Callable[[str], None]:
    started = asked = time.monotonic()
    done = before

    def report(state: str) -> None:
        nonlocal asked, done
        now = time.monotonic()
        if now - asked > LEDGER_SECONDS:
            asked, done = now, job.rows_done(job.sink.progress())
        speed = (done - before) / (now - started) if now > started else 0.0
        rows = f"{done:,} positions" if job.live else f"{done:,}/{job.rows:,} rows committed · {speed:,.0f} rows/s"
        update(f"{'stopping' if STOP.is_set() else state.lower()} on Flink · {rows} · {now - started:.0f} s")

    return report
