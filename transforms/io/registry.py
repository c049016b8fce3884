"""Finds the module of a source or sink by the `type` in a specification: tagstream's own, or one of an entry point."""

from __future__ import annotations

import importlib

from tagstream.schemas import plugins
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import Sink, SinkModule, Source, SourceModule
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


def source_module(kind: str) -> SourceModule:
    """The module that opens sources of a `type`. Raises SpecError."""
    name = _SOURCES.get(kind)
    module: SourceModule = (
        importlib.import_module(name) if name else plugins.required(plugins.SOURCES, kind, "open_source")
    )
    return module


def sink_module(kind: str) -> SinkModule:
    """The module that opens sinks of a `type`. Raises SpecError."""
    name = _SINKS.get(kind)
    module: SinkModule = importlib.import_module(name) if name else plugins.required(plugins.SINKS, kind, "open_sink")
    return module


def open_source(spec: JobSpec, context: JobContext) -> Source:
    """The source of a job. Raises SourceError."""
    return source_module(spec.source.type).open_source(spec, context)


def open_sink(spec: JobSpec, context: JobContext) -> Sink:
    """The sink of a job. Changes nothing yet. With `keep: '*'` the source is opened first, to learn its columns."""
    if not spec.source.knows_columns:
        spec = spec.with_columns(open_source(spec, context).kept.names)
    return sink_module(spec.sink.type).open_sink(spec, context)
