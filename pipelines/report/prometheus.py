"""Serves the counters of this process's jobs, or of all workers of a pool, as Prometheus metrics on a port."""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tagstream.pipelines.report.report import ADVICE, bottleneck
from tagstream.schemas.errors import SpecError
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.metrics import BOUNDS, STAGES, Histogram, Snapshot
from tagstream.transforms.stages.read_live import FeedPool

log = logging.getLogger(__name__)
SCRAPE_SECONDS = 2.0


class JobCollector(Collector):
    """The counters of all jobs of this process, added up."""

    def __init__(self, contexts: Callable[[], list[JobContext]]) -> None:
        """`contexts`: returns the contexts of the jobs. Called at each scrape."""
        self.contexts = contexts

    def collect(self) -> Iterable[Metric]:
        contexts = self.contexts()
        now = sum((context.metrics.snapshot() for context in contexts), Snapshot())
        plain = {
            "tagstream_rows_in": ("Input rows committed", now.rows_in),
            "tagstream_rows_out": ("Labelled rows committed", now.rows_out),
            "tagstream_tokens": ("Tokens inferred", now.tokens),
            "tagstream_padded_tokens": ("Tokens inferred, padding included", now.padded_tokens),
            "tagstream_micro_batches": ("Micro-batches inferred", now.micro_batches),
            "tagstream_truncated": ("Texts that were cut", now.truncated),
            "tagstream_duplicates": ("Texts equal to another text of the same block", now.duplicates),
            "tagstream_remembered": ("Texts equal to a text of an earlier block", now.remembered),
            "tagstream_commits": ("Commits of the sink", now.commits),
        }
        for name, (text, value) in plain.items():
            yield CounterMetricFamily(name, text, value=value)
        dead = CounterMetricFamily("tagstream_dead_letters", "Dead letters committed", labels=["code"])
        for code, count in now.dead.items():
            dead.add_metric([code], count)
        yield dead
        busy = CounterMetricFamily("tagstream_stage_busy_seconds", "Seconds of work by stage", labels=["stage"])
        for stage in STAGES:
            busy.add_metric([stage], now.busy[stage])
        yield busy
        labels, text = ["stage", "advice"], "1 for the stage that was busy longest; advice says what to change"
        bound = GaugeMetricFamily("tagstream_bottleneck", text, labels=labels)
        longest = bottleneck(now)
        for stage in STAGES:
            bound.add_metric([stage, ADVICE[stage]], float(stage == longest))
        yield bound
        yield GaugeMetricFamily("tagstream_padding_ratio", "Share of inferred tokens that are padding", now.padding)
        text = "From a message's own timestamp to the commit of its label"
        yield _histogram("tagstream_latency_seconds", text, now.latency)
        yield _histogram("tagstream_commit_seconds", "Time that the sink took for each commit", now.commit_time)
        share = max((context.metrics.dead_share for context in contexts), default=0.0)
        text = "Share of dead letters among the last 1,000 rows; a job stops above its max_dead"
        yield GaugeMetricFamily("tagstream_dead_letter_share", text, share)
        yield from _live(contexts)


def _live(contexts: list[JobContext]) -> Iterable[Metric]:
    """Metrics of jobs without an end: lag, and the time without an answer or a commit."""
    feeds = [feed.status() for context in contexts for feed in context.resource(FeedPool).all()]
    lag = GaugeMetricFamily("tagstream_lag_messages", "Messages not read yet", labels=["split"])
    for split, behind in (item for feed in feeds for item in feed.lag.items()):
        lag.add_metric([split], behind)
    yield lag
    silence = max((feed.silence for feed in feeds), default=0.0)
    yield GaugeMetricFamily("tagstream_source_silence_seconds", "Since the source last answered", silence)
    commits = [at for context in contexts if (at := context.metrics.last_commit) is not None]
    if commits or feeds:
        ages = [feed.age for feed in feeds]  # before the first commit, the time since reading began counts
        since = time.monotonic() - max(commits) if commits else max(ages)
        yield GaugeMetricFamily("tagstream_last_commit_seconds", "Since the last commit", since)


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    bounds = [*map(str, BOUNDS), "+Inf"]
    return HistogramMetricFamily(
        name, text, buckets=list(zip(bounds, accumulate(histogram.counts), strict=True)), sum_value=histogram.seconds
    )


class PoolCollector(Collector):
    """The metrics of all workers, with a label `worker`, and the number of workers."""

    def __init__(self, ports: Callable[[], dict[str, int]]) -> None:
        """`ports`: returns the ports on which the workers serve their metrics, by the worker's name."""
        self.ports = ports

    def collect(self) -> Iterable[Metric]:
        """Ask every worker for its metrics. A worker that does not answer is left out."""
        families: dict[str, Metric] = {}
        ports = self.ports()
        for worker, port in ports.items():
            for family in _scrape(port):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
        alive = Metric("tagstream_workers", "Running Python workers of this pool", "gauge")
        alive.add_sample("tagstream_workers", {}, len(ports))
        return [*families.values(), alive]


def _scrape(port: int) -> Iterator[Metric]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE_SECONDS) as answer:
            text = answer.read().decode()
    except OSError as error:
        log.warning("a worker does not answer: %s", error)
        return
    yield from text_string_to_metric_families(text)


def serve_metrics(port: int, collector: Collector, address: str = "0.0.0.0") -> int:  # noqa: S104
    """Serve http://address:port/metrics from a daemon thread. With port 0, takes any free port. Returns the port.

    Raises SpecError if the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, _ = start_http_server(port, address, registry)
    except OSError as error:
        raise SpecError(f"--metrics-port {port}: {error.strerror}; choose another port") from None
    return int(server.server_port)
