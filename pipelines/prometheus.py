"""The counters of this process as Prometheus metrics, on a port if asked."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from schemas.errors import SpecError
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


def serve_metrics(port: int) -> None:
    """Serve http://0.0.0.0:port/metrics from a daemon thread. Raises SpecError if the port is taken."""
    registry = CollectorRegistry()
    registry.register(_JobCollector())
    try:
        start_http_server(port, registry=registry)
    except OSError as error:
        raise SpecError(f"--metrics-port {port}: {error.strerror}; choose another port") from None
