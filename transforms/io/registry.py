"""Which source and which sink there are, by the `type` that a specification names."""

from __future__ import annotations

import importlib

from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import Sink, Source
from tagstream.transforms.runtime.job_context import JobContext

_SOURCES = {
    "parquet": "tagstream.transforms.io.parquet.source",
    "memory": "tagstream.transforms.io.memory",
    "kafka": "tagstream.transforms.io.kafka.source",
    "sql": "tagstream.transforms.io.database.adbc",
    "duckdb": "tagstream.transforms.io.database.duckdb",
    "iceberg": "tagstream.transforms.io.lake.iceberg.source",
    "delta": "tagstream.transforms.io.lake.delta.source",
}
_SINKS = {
    "parquet": "tagstream.transforms.io.parquet.sink",
    "memory": "tagstream.transforms.io.memory",
    "kafka": "tagstream.transforms.io.kafka.sink",
    "sql": "tagstream.transforms.io.database.adbc",
    "duckdb": "tagstream.transforms.io.database.duckdb",
    "iceberg": "tagstream.transforms.io.lake.iceberg.table",
    "delta": "tagstream.transforms.io.lake.delta.table",
}


def open_source(spec: JobSpec, context: JobContext) -> Source:
    """The source of a job. Raises SourceError."""
    source: Source = importlib.import_module(_SOURCES[spec.source.type]).open_source(spec, context)
    return source


def open_sink(spec: JobSpec, context: JobContext) -> Sink:
    """The sink of a job; touches nothing yet."""
    sink: Sink = importlib.import_module(_SINKS[spec.sink.type]).open_sink(spec, context)
    return sink
