"""The counters of this process, or of all workers of a pool, as Prometheus metrics, on a port if asked."""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tagstream.pipelines.report.report import ADVICE, bottleneck
from tagstream.schemas.errors import SpecError
from tagstream.transforms.runtime.metrics import METRICS, STAGES
from tagstream.transforms.stages.read_live import FEEDS

log = logging.getLogger(__name__)
SCRAPE_SECONDS = 2.0


class JobCollector(Collector):
    """What this process has done."""

    def collect(self) -> Iterable[Metric]:
        now = METRICS.snapshot()
        plain = {
            "tagstream_rows_in": ("Input rows committed", now.rows_in),
            "tagstream_rows_out": ("Labelled rows committed", now.rows_out),
            "tagstream_tokens": ("Tokens inferred", now.tokens),
            "tagstream_padded_tokens": ("Tokens inferred, padding included", now.padded_tokens),
            "tagstream_micro_batches": ("Micro-batches inferred", now.micro_batches),
            "tagstream_truncated": ("Texts that were cut", now.truncated),
            "tagstream_duplicates": ("Texts answered by an equal one in the same block", now.duplicates),
            "tagstream_remembered": ("Texts answered by an equal one in an earlier block", now.remembered),
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
        labels, text = ["stage", "advice"], "1: the stage that was busy longest; what to change if it is too slow"
        bound = GaugeMetricFamily("tagstream_bottleneck", text, labels=labels)
        longest = bottleneck(now)
        for stage in STAGES:
            bound.add_metric([stage, ADVICE[stage]], float(stage == longest))
        yield bound
        yield GaugeMetricFamily("tagstream_padding_ratio", "Share of inferred tokens that is padding", now.padding)
        yield from self._live()

    @staticmethod
    def _live() -> Iterable[Metric]:
        """Of jobs without an end: how far behind, how late, how long without an answer."""
        feeds = [feed.status() for feed in FEEDS.all()]
        lag = GaugeMetricFamily("tagstream_lag_messages", "Messages not read yet", labels=["split"])
        for split, behind in (item for feed in feeds for item in feed.lag.items()):
            lag.add_metric([split], behind)
        yield lag
        silence = max((feed.silence for feed in feeds), default=0.0)
        yield GaugeMetricFamily("tagstream_source_silence_seconds", "Since the source last answered", silence)
        if METRICS.last_commit is not None or feeds:
            ages = [feed.age for feed in feeds]  # before the first commit: since reading began
            since = max(ages) if METRICS.last_commit is None else time.monotonic() - METRICS.last_commit
            yield GaugeMetricFamily("tagstream_last_commit_seconds", "Since the last commit", since)
        if (quantiles := METRICS.latency(0.5, 0.99)) is not None:
            latency = GaugeMetricFamily(
                "tagstream_latency_seconds", "Message timestamp to commit, latest messages", labels=["quantile"]
            )
            latency.add_metric(["0.5"], quantiles[0])
            latency.add_metric(["0.99"], quantiles[1])
            yield latency


class PoolCollector(Collector):
    """The metrics of all workers, each with a label `worker`; and how many workers there are."""

    def __init__(self, ports: Callable[[], dict[str, int]]) -> None:
        """`ports`: where each worker serves its own, by name."""
        self.ports = ports

    def collect(self) -> Iterable[Metric]:
        """Asks every worker; one that does not answer is left out."""
        families: dict[str, Metric] = {}
        ports = self.ports()
        for worker, port in ports.items():
            for family in _scrape(port):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
        alive = Metric("tagstream_workers", "Python workers of this pool that run", "gauge")
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


def serve_metrics(port: int, collector: Collector | None = None, address: str = "0.0.0.0") -> int:  # noqa: S104
    """Serve http://address:port/metrics from a daemon thread; 0 takes any free port. Returns the port.

    `collector`: default, the counters of this process. Raises SpecError if the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(collector or JobCollector())
    try:
        server, _ = start_http_server(port, address, registry)
    except OSError as error:
        raise SpecError(f"--metrics-port {port}: {error.strerror}; choose another port") from None
    return int(server.server_port)
