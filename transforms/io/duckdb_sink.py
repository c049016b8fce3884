"""A table of a DuckDB file as a sink, with the ledger beside it in the same file. See `table_sink`."""

from __future__ import annotations

from functools import partial
from typing import cast

from schemas.spec import JobSpec
from schemas.sql_spec import DuckDBSink
from transforms.io.duckdb_session import connect
from transforms.io.table_sink import TableSink


def open_sink(spec: JobSpec) -> TableSink:
    """See `transforms.io.open_sink`."""
    path = cast("DuckDBSink", spec.sink).path
    return TableSink(spec, partial(connect, path), path)
