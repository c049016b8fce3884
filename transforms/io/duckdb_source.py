"""DuckDB as a source: a table of a DuckDB file, or a query over anything that DuckDB reads. See `table_source`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

from schemas.errors import SourceError
from schemas.spec import JobSpec
from schemas.sql_spec import DuckDBSource
from transforms.io.duckdb_session import connect
from transforms.io.table_source import TableSource


def open_source(spec: JobSpec) -> TableSource:
    """See `transforms.io.open_source`."""
    path = cast("DuckDBSource", spec.source).path
    if path is not None and not Path(path).exists():
        raise SourceError(f"source.path {path}: no such file")
    same = spec.sink.type == "duckdb" and path is not None and Path(path).resolve() == Path(spec.sink.path).resolve()
    return TableSource(spec, partial(connect, path, read_only=not same), path or "DuckDB")
