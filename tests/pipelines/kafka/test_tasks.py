"""Every task from topic to topic: a client that is not ours reads what the models say, in JSON and in Avro."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tagstream.pipelines.jobs.job import values_schema
from tagstream.pipelines.jobs.run import run_job
from tests.models import random_texts
from tests.pipelines.kafka.kafka_jobs import Topics
from tests.pipelines.kafka.test_avro import unpacked
from tests.task_models import TASKS, assert_same, entry_of, loaded

pytestmark = pytest.mark.xdist_group("kafka-jobs")
TEXTS = [text or "!" for text in random_texts(40, seed=8, longest=12)]


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [entry_of(task, folder / task) for task in TASKS]


@pytest.mark.parametrize("mode", ["json", "avro"])
def test_topic_to_topic(kafka, entries, mode):
    """Vectors, spans, answers and texts are nested values of the record."""
    topics = Topics(kafka)
    for number, text in enumerate(TEXTS):
        topics.send([text.encode()], key=str(number).encode(), partition=number % 2)
    spec = topics.spec({"id": "key", "until": "latest"}, {"mode": mode}, infer=entries)
    report = run_job(spec, Console(file=io.StringIO()))
    assert (report.counts.rows_in, report.counts.rows_out) == (len(TEXTS), len(TEXTS))
    records = sorted(topics.all(topics.target), key=lambda record: int(record.key))
    read = json.loads if mode == "json" else lambda value: unpacked(values_schema(spec), value)
    rows = [read(record.value) for record in records]
    for entry in entries:
        with loaded(entry) as model:
            expected = model.predict(TEXTS).drop(["error"]).to_pylist()
        for row, wanted in zip(rows, expected, strict=True):
            for name, value in wanted.items():
                assert_same(row[name], value, 1e-5)
