"""The counters of this process as Prometheus metrics, on a port if asked."""

from __future__ import annotations

import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.errors import SpecError
from transforms.live import FEEDS
from transforms.metrics import METRICS, STAGES


class _JobCollector(Collector):
    def collect(self) -> Iterable[Metric]:
        now = METRICS.snapshot()
        plain = {
            "tagstream_rows_in": ("Input rows committed", now.rows_in),
            "tagstream_rows_out": ("Labelled rows committed", now.rows_out),
            "tagstream_tokens": ("Tokens inferred", now.tokens),
            "tagstream_padded_tokens": ("Tokens inferred, padding included", now.padded_tokens),
            "tagstream_micro_batches": ("Micro-batches inferred", now.micro_batches),
            "tagstream_truncated": ("Texts that were cut", now.truncated),
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
        if METRICS.last_commit is not None:
            since = time.monotonic() - METRICS.last_commit
            yield GaugeMetricFamily("tagstream_last_commit_seconds", "Since the last commit", since)
        if (quantiles := METRICS.latency(0.5, 0.99)) is not None:
            latency = GaugeMetricFamily(
                "tagstream_latency_seconds", "Message timestamp to commit, latest messages", labels=["quantile"]
            )
            latency.add_metric(["0.5"], quantiles[0])
            latency.add_metric(["0.99"], quantiles[1])
            yield latency


def serve_metrics(port: int) -> None:
    """Serve http://0.0.0.0:port/metrics from a daemon thread. Raises SpecError if the port is taken."""
    registry = CollectorRegistry()
    registry.register(_JobCollector())
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise SpecError(f"--metrics-port {port}: {error.strerror}; choose another port") from None
