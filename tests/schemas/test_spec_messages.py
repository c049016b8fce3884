"""Wrong specifications are answered in the user's words: the field, what it accepts, an example; never pydantic's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec_file import load_spec

PYDANTIC = re.compile(
    r"Input should|valid (tuple|dictionary|string|list|integer|number|boolean)|instance of|match pattern|Extra input"
    r"|Field required|Value error|should be strings|unable to parse|at least 1 item|after validation|type=|tag "
    r"|permitted|discriminator|\[\w+_\w+\]|validation error",
    re.IGNORECASE,
)
"""What pydantic says of errors of all kinds."""
GOOD = {
    "source": "{type: parquet, path: in/}",
    "infer": "[{model: tagstream/spam, as: spam}]",
    "sink": "{type: parquet, path: out/}",
}
KAFKA = "{type: kafka, servers: 'h:1', topics: t, %s}"
SQL = "{type: sql, uri: 'sqlite:///x', table: t, id: id, %s}"

WRONG = [
    # wrong nesting
    ("source", "in/*.parquet", "source", "must be a mapping of fields"),
    ("source", "[in/]", "source", "must be a mapping of fields"),
    ("source", "null", "source", "is empty; must be a mapping of fields"),
    ("source", "", "source", "is empty; must be a mapping of fields"),
    ("source", "5", "source", "must be a mapping of fields"),
    ("source", "{}", "source", "type is missing; it must be one of 'parquet', 'memory', 'kafka'"),
    ("source", "{type: null, path: x}", "source", "type is missing; it must be one of 'parquet'"),
    ("source", "{type: 3, path: x}", "source", "type must be one of 'parquet'"),
    ("source", "{type: parkuet, path: x}", "source", "not 'parkuet', did you mean 'parquet'?"),
    ("source", "{type: [parquet], path: x}", "source", "type must be one of 'parquet'"),
    ("sink", "out/", "sink", "must be a mapping of fields; for example sink: {type: parquet, path: out/labels}"),
    ("sink", "{path: out/}", "sink", "type is missing; it must be one of 'parquet'"),
    ("dead_letters", "dead/", "dead_letters", "must be a mapping of fields"),
    ("dead_letters", "{type: memory, path: x}", "dead_letters", "type must be one of 'parquet', 'kafka'"),
    ("dead_letters", "{type: parquet}", "dead_letters.path", "is missing; for example out/labels-dead"),
    ("runner", "flink", "runner", "must be a mapping of fields"),
    ("runner", "{type: flnk}", "runner", "not 'flnk', did you mean 'flink'?"),
    ("runner", "{type: flink, job_server: localhost}", "runner.job_server", "must be host:port; for example localhost"),
    ("runner", "{type: flink, rest: 'localhost:8081'}", "runner.rest", "must be an address that begins with http://"),
    ("runner", "{type: flink, parallelism: 0}", "runner.parallelism", "must be a whole number, at least 1"),
    ("runner", "{type: flink, environment: DOCKER}", "runner.environment", "must be a mapping of fields"),
    ("runner", "{type: beam, options: '--runner=X'}", "runner.options", "must be a list"),
    ("runner", "{type: beam, options: []}", "runner.options", "must not be empty"),
    ("infer", "{model: tagstream/spam}", "infer", 'must be a list; begin each entry with "- "'),
    ("infer", "tagstream/spam", "infer", 'must be a list; begin each entry with "- "'),
    ("infer", "null", "infer", "is empty; must be a list"),
    ("infer", "[]", "infer", "must not be empty; begin each entry"),
    ("infer", "[tagstream/spam]", "infer.0", "must be a mapping of fields; for example {model: tagstream/spam"),
    ("infer", "[[{model: x}]]", "infer.0", "must be a mapping of fields"),
    ("infer", "[null]", "infer.0", "is empty; must be a mapping of fields"),
    ("infer", "[{as: x}]", "infer.0", "model is missing"),
    ("blocks", "2048", "blocks", "must be a mapping of fields"),
    ("blocks", "{rows: 1.5}", "blocks.rows", "must be a whole number"),
    # text
    ("name", "2024-01-01", "name", "put quotes around the value"),
    ("name", "a b", "name", "must be letters, digits, . _ and - only"),
    ("source", "{type: parquet, path: 5}", "source.path", "must be text; put quotes around the value; for example"),
    ("source", "{type: parquet, path: null}", "source.path", "is empty; must be text; for example in/*.parquet"),
    ("source", "{type: parquet, path: [a, b]}", "source.path", "must be text; for example in/*.parquet"),
    ("source", "{type: parquet, path: x, text: true}", "source.text", "must be text; put quotes around the value"),
    ("source", "{type: parquet, path: x, id: {a: b}}", "source.id", "must be text; for example id"),
    ("source", "{type: parquet, path: x, keep: 5}", "source.keep", "must be a name, or a list of names"),
    ("source", "{type: parquet, path: x, keep: {a: b}}", "source.keep", "must be a name, or a list of names"),
    ("source", "{type: parquet, path: x, keep: [1]}", "source.keep.0", "must be text; put quotes around the value"),
    ("source", "{type: parquet, path: x, keep: ['*', a]}", "source.keep", "'*' keeps every column already"),
    ("source", "{type: parquet, path: x, text: 2024-01-01}", "source.text", "put quotes around the value"),
    ("infer", "[{model: 5}]", "infer.0.model", "must be text; put quotes around the value; for example tagstream/spam"),
    ("infer", "[{model: m, as: 1x}]", "infer.0.as", "must be letters, digits and _ only, and no digit first; for exam"),
    ("infer", "[{model: m, as: spam-label}]", "infer.0.as", "for example spam_label"),
    ("infer", "[{model: m, as: null}]", "infer.0.as", "is empty; must be letters"),
    ("infer", "[{model: m, task: text-clasification}]", "infer.0.task", "did you mean 'text-classification'?"),
    ("infer", "[{model: m, task: 4}]", "infer.0.task", "must be text"),
    # choices, switches
    ("source", "{type: parquet, path: x, on_bad_file: skip}", "source.on_bad_file", "must be one of 'fail', 'dead"),
    ("infer", "[{model: m, scores: al}]", "infer.0.scores", "must be one of 'top', 'all', 'none'; not 'al', did you"),
    ("infer", "[{model: m, scores: [all]}]", "infer.0.scores", "must be one of 'top', 'all', 'none'"),
    ("infer", "[{model: m, provenance: tokens}]", "infer.0.provenance", "must be a list; for example provenance: ["),
    ("infer", "[{model: m, provenance: [token]}]", "infer.0.provenance.0", "not 'token', did you mean 'tokens'?"),
    ("payload", "maybe", "payload", "must be true or false"),
    ("payload", "3", "payload", "must be true or false"),
    ("payload", "[]", "payload", "must be true or false"),
    # numbers
    ("source", "{type: parquet, path: x, split_rows: 0}", "source.split_rows", "must be a whole number, at least 1"),
    ("source", "{type: parquet, path: x, split_rows: many}", "source.split_rows", "must be a whole number"),
    ("source", "{type: parquet, path: x, split_rows: '1e3'}", "source.split_rows", "must be a whole number"),
    ("source", "{type: parquet, path: x, split_rows: null}", "source.split_rows", "is empty; must be a whole number"),
    ("sink", "{type: parquet, path: x, commit_every: 0}", "sink.commit_every", "must be a number, more than 0"),
    ("sink", "{type: parquet, path: x, commit_every: soon}", "sink.commit_every", "must be a number"),
    ("max_dead", "5", "max_dead", "must be a number, at most 1"),
    ("max_dead", "5%", "max_dead", "must be a number; for example 0.05"),
    ("max_dead", ".nan", "max_dead", "must be a number"),
    ("infer", "[{model: m, max_length: 2}]", "infer.0.max_length", "must be a whole number, at least 4"),
    # mappings with free names
    ("infer", "[{model: m, labels: [1]}]", "infer.0.labels", "must be a mapping of fields"),
    ("infer", "[{model: m, labels: [a, a]}]", "infer.0.labels", "the label 'a' is there twice"),
    ("infer", "[{model: m, labels: {a: 1}}]", "infer.0.labels.a", "must be text; put quotes around the value"),
    ("infer", "[{model: m, labels: {1: a}}]", "infer.0.labels.1", "the name must be text; put quotes around it"),
    ("infer", "[{model: m, thresholds: 0.5}]", "infer.0.thresholds", "must be a mapping of fields"),
    ("infer", "[{model: m, thresholds: {a: 2}}]", "infer.0.thresholds.a", "must be a number, at most 1"),
    ("infer", "[{model: m, thresholds: {a: high}}]", "infer.0.thresholds.a", "must be a number"),
    # backends
    ("infer", "[{model: m, backend: onnx}]", "infer.0.backend", "must be a mapping of fields"),
    ("infer", "[{model: m, backend: {type: torch}}]", "infer.0.backend", "not 'torch', did you mean 'pytorch'?"),
    ("infer", "[{model: m, backend: {device: cpu}}]", "infer.0.backend", "type is missing; it must be one of"),
    ("infer", "[{model: m, backend: {type: pytorch, device: gpu}}]", "infer.0.backend.device", "must be auto, cpu"),
    ("infer", "[{model: m, backend: {type: pytorch, compile: 7}}]", "infer.0.backend.compile", "must be true or false"),
    # Kafka, databases, lakes
    ("source", KAFKA % "payload: xml", "source.payload", "must be one of 'text', 'json', 'avro'; not 'xml'"),
    ("source", "{type: kafka, servers: 'h:1', topics: []}", "source.topics", "must not be empty"),
    ("source", "{type: kafka, servers: 'h:1', topics: 7}", "source.topics", "must be a name, or a list of names"),
    ("source", KAFKA % "start: [1]", "source.start", "must be a word, a time (ISO 8601), or milliseconds since 1970"),
    ("source", KAFKA % "start: soon", "source.start", "'soon' is none of earliest, latest, committed"),
    ("source", KAFKA % "keep: '*'", "source.keep", "list the fields to keep, for example keep: [topic, offset]"),
    ("source", KAFKA % "client: [a]", "source.client", "must be a mapping of fields"),
    ("source", KAFKA % "registry: 'http://r'", "source.registry", "must be a mapping of fields"),
    ("source", "{type: sql, uri: 5, table: t, id: id}", "source.uri", "must be text; put quotes around the value; for"),
    ("source", "{type: sql, uri: 'x y', table: t, id: id}", "source.uri", "not a URI"),
    ("source", "{type: sql, uri: 'sqlite:///x', table: t}", "source.id", "is missing; for example id"),
    ("source", "{type: sql, uri: 'sqlite:///x', table: t, id: 5}", "source.id", "must be"),
    ("source", SQL % "query: SELECT", "source", "give either table or query"),
    ("sink", "{type: sql, uri: 'sqlite:///x', table: t, mode: insert}", "sink.mode", "must be one of 'append', 'upda"),
    ("sink", "{type: sql, uri: 'sqlite:///x', table: t, key: 5}", "sink.key", "must be a name, or a list of names"),
    ("sink", "{type: iceberg, catalog: {type: rest}, table: t}", "sink.table", "must be namespace and table with"),
    ("sink", "{type: iceberg, catalog: rest, table: a.b}", "sink.catalog", "must be a mapping of fields; for example"),
    ("sink", "{type: iceberg, catalog: {type: [a]}, table: a.b}", "sink.catalog.type", "must be text"),
    ("sink", "{type: delta, path: x, adopt: perhaps}", "sink.adopt", "must be true or false"),
    # unknown fields
    ("classify", "[{model: m}]", "classify", "was renamed: write infer"),
    ("sorce", "{type: parquet}", "sorce", "unknown field; did you mean 'source'? accepted: name, source"),
    ("5", "{type: parquet}", "5", "unknown field; accepted: name, source"),
    ("sink", "{type: parquet, path: x, pth: y}", "sink.pth", "unknown field; did you mean 'path'?"),
    ("runner", "{type: flink, paralelism: 2}", "runner.paralelism", "unknown field; did you mean 'parallelism'?"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "named", "expected"), WRONG, ids=[f"{f}: {v}"[:60] for f, v, *_ in WRONG])
def test_wrong_specifications(tmp_path: Path, field: str, value: str, named: str, expected: str) -> None:
    """File, line and field; what would be accepted; an example that is YAML; nothing of pydantic's."""
    parts = {"comment": "", **GOOD, field: value}
    del parts["comment"]
    path = tmp_path / "job.yaml"
    path.write_text("".join(f"{name}: {part}\n" for name, part in parts.items()))
    line = [*parts].index(field) + 1
    with pytest.raises(SpecError) as caught:
        load_spec(str(path))
    (message,) = str(caught.value).splitlines()
    assert message.startswith(f"{path}:{line}: {named}: "), message
    told = message.removeprefix(f"{path}:{line}: {named}: ")
    assert expected in told
    assert not PYDANTIC.search(told), told
    if "for example " in told:
        yaml.safe_load(told.rpartition("for example ")[2])


def test_the_old_name_is_no_missing_field(tmp_path: Path) -> None:
    """A specification of before: one message, not two."""
    path = tmp_path / "job.yaml"
    path.write_text("".join(f"{name.replace('infer', 'classify')}: {part}\n" for name, part in GOOD.items()))
    with pytest.raises(SpecError) as caught:
        load_spec(str(path))
    assert str(caught.value) == f"{path}:2: classify: was renamed: write infer"


def test_star_without_quotes(tmp_path: Path) -> None:
    """YAML takes it for an alias: the message says how to write it."""
    path = tmp_path / "job.yaml"
    path.write_text("source:\n  type: parquet\n  path: in/\n  keep: *\n")
    with pytest.raises(SpecError, match=r"job\.yaml:4: not valid YAML: .*needs quotes, for example keep: '\*'"):
        load_spec(str(path))


def test_times_of_yaml(tmp_path: Path) -> None:
    """YAML reads an unquoted time as one: it is a point of a topic like the text."""
    path = tmp_path / "job.yaml"
    for text in ("2024-01-01T00:00:00+00:00", "'2024-01-01T00:00:00+00:00'"):
        path.write_text("".join(f"{n}: {p}\n" for n, p in {**GOOD, "source": KAFKA % f"start: {text}"}.items()))
        assert load_spec(str(path)).source.start == 1_704_067_200_000  # type: ignore[attr-defined]
