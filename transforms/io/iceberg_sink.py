"""An Iceberg table as a sink: see `lake_sink` for how it commits, `iceberg_table` for what a commit is."""

from __future__ import annotations

from typing import cast

from schemas.lake_spec import IcebergSink, secrets_of
from schemas.spec import JobSpec
from transforms.io.iceberg_table import IcebergTable
from transforms.io.lake_sink import LakeSink


def open_sink(spec: JobSpec) -> LakeSink:
    """See `transforms.io.open_sink`."""
    sink = cast("IcebergSink", spec.sink)
    catalog = {name: value.get_secret_value() for name, value in sink.catalog.items()}
    dead = getattr(spec.dead_letters, "table", None) or f"{sink.table}_dead"
    labels, letters = (IcebergTable(catalog, name, secrets_of(sink.catalog), spec.name) for name in (sink.table, dead))
    return LakeSink(spec, labels, letters)
