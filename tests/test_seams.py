"""No file asks a source, a sink or a backend for its type: a new one is one file and its part of the specification."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tagstream.schemas.spec import JobSpec
from tagstream.transforms.inference.backends.registry import _REGISTRY, backend_module
from tagstream.transforms.io.registry import _SINKS, _SOURCES, sink_module, source_module

ROOT = Path(__file__).parent.parent
FOLDERS = ("api", "schemas", "transforms", "pipelines")
PART = r"[A-Z]\w*(Source|Sink|DeadLetters)\b"
ASKS = re.compile(
    rf"isinstance\([^)]*\b(?P<part>{PART})"
    r"|\b(source|sink|dead_letters|backend)\.type\s*(==|!=|in\b|not in\b)"
    r"|(==|!=)\s*\w*\.?(spec|job|entry)\.(source|sink|dead_letters|backend)\.type"
)
OWNERS = {"schemas/kafka_spec.py": "isinstance(job.source, KafkaSource"}
"""What a file may ask about a part that it declares itself: a Kafka sink takes over much from a Kafka source."""
PROTOCOLS = {
    "PlanningSource",
    "CountedSource",
    "LiveSource",
    "ReplacingSink",
    "ReplayingSink",
    "ReclassifyingSink",
    "ReadableSink",
    "RoundsSource",
    "StateSink",
}
"""What a source or a sink can do, asked by protocol: any may."""


def asked(text: str) -> list[str]:
    """Matches, those of protocols left out."""
    found = [(match.group(), match.group("part")) for match in ASKS.finditer(text)]
    return [whole for whole, part in found if part not in PROTOCOLS]


def test_nobody_asks_for_a_type() -> None:
    wrong = []
    for file in (found for folder in FOLDERS for found in sorted((ROOT / folder).rglob("*.py"))):
        name = str(file.relative_to(ROOT))
        wrong += [f"{name}: {found}" for found in asked(file.read_text()) if found != OWNERS.get(name)]
    assert not wrong


@pytest.mark.parametrize(
    "text",
    [
        'if spec.sink.type == "kafka":',
        'if self.job.source.type not in ("sql", "duckdb"):',
        "source if isinstance(source, KafkaSource) else None",
        "isinstance(spec.dead_letters, (SqlDeadLetters, DuckDBDeadLetters))",
        'if entry.backend.type != "constant":',
    ],
)
def test_the_test_finds_them(text: str) -> None:
    assert asked(text)


def test_registries_and_specification_name_the_same() -> None:
    """Every type of the specification can be opened, and the other way round."""
    properties = JobSpec.model_json_schema()
    types = {field: set(properties["properties"][field]["discriminator"]["mapping"]) for field in ("source", "sink")}
    assert types == {"source": _SOURCES.keys(), "sink": _SINKS.keys()}
    assert (
        properties["$defs"]["InferEntry"]["properties"]["backend"]["discriminator"]["mapping"].keys()
        == _REGISTRY.keys()
    )


def test_modules_offer_what_their_protocol_says() -> None:
    assert all(callable(source_module(kind).open_source) for kind in _SOURCES)
    assert all(callable(sink_module(kind).open_sink) for kind in _SINKS)
    modules = [backend_module(kind) for kind in _REGISTRY]
    assert all(callable(module.load) and callable(module.identity) for module in modules)
