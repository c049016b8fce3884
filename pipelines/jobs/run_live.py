"""Runs a job without an end on this machine, with one seat and a line that shows how far behind the job is."""

from __future__ import annotations

import time

from rich.console import Console

from tagstream.pipelines.jobs.build import build_live
from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.jobs.run_remote import run_live_remote
from tagstream.pipelines.report.progress import StatusLine, print_notes
from tagstream.pipelines.report.report import Report, verdict
from tagstream.pipelines.runners.local import execute
from tagstream.schemas.errors import TagstreamError
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.watchdog import DONE
from tagstream.transforms.stages.read_live import FeedPool

RETRY_SECONDS = 1.0
WORRY_SECONDS = 5.0
"""The line tells the user if there is no answer, or no partition, for longer than this."""


def run_live(job: Job, console: Console, *, overwrite: bool) -> Report:
    """Run the job until it is asked to stop. The blocks that are in flight then are committed."""
    with console.status("hashing the model"):
        fingerprint = job.fingerprint()
    job.sink.prepare(fingerprint, overwrite=overwrite)
    DONE.add("--overwrite")
    started = time.monotonic()
    if job.spec.runner.type != "local":
        run_live_remote(job, console)
        return _report(job, fingerprint.hash, started, 0.0, len(job.spec.infer))
    with console.status("loading " + ", ".join(c.model or c.backend.type for c in job.spec.infer)):
        engines = job.load_models()
    load_seconds = time.monotonic() - started
    print_notes(console, job.context.metrics)
    with LiveLine(console, job.context) as line:
        while not job.context.stop.is_set():
            try:
                execute(job.context, lambda pipeline: build_live(pipeline, job, 1), line)
            except TagstreamError as error:
                if not error.transient:
                    raise
                console.print(f"{error}; trying again", highlight=False, soft_wrap=True)
                job.context.failures.clear()
                job.context.stop.wait(RETRY_SECONDS)
    return _report(job, fingerprint.hash, line.started, load_seconds, engines)


def _report(job: Job, fingerprint: str, started: float, load_seconds: float, engines: int) -> Report:
    counts = job.context.metrics.snapshot()
    return Report(
        job=job.spec.name,
        state="stopped",
        fingerprint=fingerprint,
        rows_total=counts.rows_in,
        rows_before=0,
        rows_left=0,
        seconds=time.monotonic() - started,
        load_seconds=load_seconds,
        counts=counts,
        output=job.spec.output,
        remote=job.spec.runner.type != "local",
        engines=engines,
    )


class LiveLine(StatusLine):
    """The line of a job without an end: speed and lag."""

    def __init__(self, console: Console, context: JobContext) -> None:
        super().__init__(console)
        self._metrics, self._feeds = context.metrics, context.resource(FeedPool)
        self._before = (self.started, 0)
        self._speed = 0.0

    def line(self) -> str:
        """Problems first, then messages, speed, lag by partition, latency, dead letters and last commit."""
        now, at = self._metrics.snapshot(), time.monotonic()
        if at - self._before[0] >= 1:
            self._speed = (now.rows_in - self._before[1]) / (at - self._before[0])
            self._before = (at, now.rows_in)
        lag: dict[str, int] = {}
        worries: list[str] = []
        for status in (feed.status() for feed in self._feeds.all()):
            lag |= status.lag
            if status.silence > WORRY_SECONDS:
                worries.append(f"no answer from {status.where} for {status.silence:.0f} s")
            elif not status.splits and status.age > WORRY_SECONDS:
                worries.append("no partition is assigned to this process")
            if status.strangers:
                worries.append(f"another program in the group takes messages: {', '.join(status.strangers)}")
        parts = [f"{now.rows_in:,} messages committed", f"{self._speed:,.0f}/s", f"lag {sum(lag.values()):,}"]
        if any(lag.values()):
            worst = sorted(lag.items(), key=lambda item: -item[1])[:3]
            parts[-1] += " (" + ", ".join(f"{name} {behind:,}" for name, behind in worst) + ")"
        if (latency := self._metrics.latency(0.5, 0.99)) is not None:
            parts.append(f"latency p50 {latency[0] * 1000:,.0f} ms, p99 {latency[1] * 1000:,.0f} ms")
        parts.append(f"dead letters {now.dead_rows:,}")
        if self._metrics.last_commit is not None:
            parts.append(f"last commit {at - self._metrics.last_commit:.0f} s ago")
        if (busiest := verdict(now)) is not None:
            parts.append(f"busiest: {busiest}")
        return " · ".join(worries + parts)
