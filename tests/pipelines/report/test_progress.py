"""What a running job says of itself."""

from __future__ import annotations

import time

from rich.console import Console

from tagstream.pipelines.jobs.run_live import LiveLine
from tagstream.pipelines.report.progress import ProgressLine
from tagstream.pipelines.report.report import verdict
from tagstream.transforms.runtime.job_context import JobContext


def test_the_line_says_what_bounds_the_job() -> None:
    """And what to change; nothing before there was work."""
    context = JobContext()
    metrics = context.metrics
    bulk, live = ProgressLine(Console(quiet=True), metrics, 1, 0), LiveLine(Console(quiet=True), context)
    assert bulk.line().startswith("starting")
    metrics.add(sequences=1)
    assert "bounded by" not in bulk.line()
    assert "busiest" not in live.line()
    with metrics.busy("read", 0.001), metrics.busy("infer"):
        time.sleep(0.01)
    advice = verdict(metrics.snapshot())
    assert "tagstream optimize" in advice
    assert bulk.line().endswith(f"bounded by {advice}")
    assert live.line().endswith(f"busiest: {advice}")
