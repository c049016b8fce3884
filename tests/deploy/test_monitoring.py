"""Every expression of dashboard and alerts is valid PromQL over metrics that tagstream or Flink really exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator

import promql_parser as promql
import pytest

from tagstream.pipelines.report.prometheus import JobCollector, PoolCollector, serve_metrics
from tagstream.transforms.io.contracts import FeedStatus
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.metrics import STAGES
from tagstream.transforms.stages.read_live import FeedPool
from tests.deploy.files import DEPLOY, documents

FLINK = {
    "flink_jobmanager_job_numRestarts",
    "flink_jobmanager_numRegisteredTaskManagers",
    "flink_jobmanager_taskSlotsAvailable",
    "flink_taskmanager_Status_JVM_Memory_Heap_Used",
}
"""Metrics that Flink exports itself. A test on a real cluster looks for each."""


def expressions() -> Iterator[tuple[str, str]]:
    """Pairs of an alert's or panel's name, and its expression."""
    for group in documents("prometheus/rules.yml")[0]["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((DEPLOY / "grafana/dashboards/tagstream.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def metrics_of(expression: str) -> set[str]:
    """Names of the metrics that an expression reads. Raises ValueError if the expression is not PromQL."""
    found: set[str] = set()

    def look(node: object) -> None:
        if isinstance(node, promql.VectorSelector):
            found.add(node.name)
        for part in ("lhs", "rhs", "expr", "vector_selector", "args"):
            below = getattr(node, part, None)
            for child in below if isinstance(below, list) else [below]:
                if child is not None:
                    look(child)

    look(promql.parse(expression))
    return found


class Feed:
    def status(self) -> FeedStatus:
        return FeedStatus({"t/0": 3}, 1, 0.5, 60.0, "broker")


@pytest.fixture
def context(monkeypatch) -> JobContext:
    """The context of a job whose feed has read something."""
    context = JobContext()
    monkeypatch.setattr(context.resource(FeedPool), "all", lambda: [Feed()])
    return context


@pytest.fixture
def exported(context) -> dict[str, set[str]]:
    """Names of the metrics that a process with a live job serves, and those of a pool with that process as worker."""
    context.metrics.committed(3, 2, Counter(null_text=1))
    context.metrics.waited([0.1])
    port = serve_metrics(0, JobCollector(lambda: [context]), address="127.0.0.1")
    served = {
        "process": JobCollector(lambda: [context]).collect(),
        "pool": PoolCollector(lambda: {"1": port}).collect(),
    }
    return {who: {s.name for family in families for s in family.samples} for who, families in served.items()}


def test_a_worker_that_never_commits_is_seen(context) -> None:
    """Before the first commit, the time since the last commit counts from the beginning, so that the alert can fire."""
    samples = [sample for family in JobCollector(lambda: [context]).collect() for sample in family.samples]
    assert [s.value for s in samples if s.name == "tagstream_last_commit_seconds"] == [60.0]


def test_the_bottleneck_is_the_stage_that_was_busy_longest(context) -> None:
    with context.metrics.busy("read", 0.001), context.metrics.busy("infer"):
        time.sleep(0.01)
    samples = [sample for family in JobCollector(lambda: [context]).collect() for sample in family.samples]
    marked = {s.labels["stage"]: s.value for s in samples if s.name == "tagstream_bottleneck"}
    assert marked == {stage: float(stage == "infer") for stage in STAGES}
    (advice,) = (s.labels["advice"] for s in samples if s.name == "tagstream_bottleneck" and s.value)
    assert "tagstream optimize" in advice


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_metrics_exist(where: str, expression: str, exported: dict[str, set[str]]) -> None:
    """A local run and a Flink worker pool both serve the metrics of the expression. `up` is Prometheus' own."""
    asked = metrics_of(expression) - {"up"} - FLINK
    assert asked <= exported["pool"], where
    assert asked - {"tagstream_workers"} <= exported["process"], where


def test_parser_refuses() -> None:
    """The parser refuses wrong expressions and finds all metrics. The other tests rely on this."""
    with pytest.raises(ValueError, match="paren"):
        promql.parse("sum(rate(tagstream_rows_in_total[5m])")
    assert metrics_of("sum(rate(a[5m])) / on (x) b > 2 and -max_over_time(c[5m:1m] offset 1m)") == {"a", "b", "c"}


def test_rules_say_what_to_do() -> None:
    """Each alert has a severity, a summary and an action, and uses labels that its expression keeps."""
    for rule in documents("prometheus/rules.yml")[0]["groups"][0]["rules"]:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "action"}
        kept = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert not rule["expr"].lstrip().startswith("sum by") or label in kept[0], rule["alert"]


def test_dashboard() -> None:
    """Panels have ids of their own, do not overlap, and use the data source of the variable."""
    board = json.loads((DEPLOY / "grafana/dashboards/tagstream.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in panels)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(panels))) <= names


def test_rules_on_series() -> None:
    """The alerts pass Prometheus' own unit tests, where Prometheus' tool is installed."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: the package prometheus)")
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "rules_test.yml"]):
        done = subprocess.run(
            [promtool, *command], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
