"""Connects to a DuckDB file. Without a file, DuckDB reads the files or tables that the query names.

Only one process may open a DuckDB file for writing, and no other process can read the file meanwhile. Within that
process several sessions may be open. See `database.session.Session`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast

import pyarrow as pa

from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import JobSpec
from tagstream.schemas.sql_spec import DuckDBSink, DuckDBSource
from tagstream.transforms.io.database.dialect import Dialect, DuckDB, quote
from tagstream.transforms.io.database.session import DatabaseError, Kind, Session
from tagstream.transforms.io.database.sink import TableSink
from tagstream.transforms.io.database.source import TableSource
from tagstream.transforms.runtime.job_context import JobContext


class _DuckSession:
    def __init__(self, path: str | None, *, read_only: bool) -> None:
        try:
            import duckdb
        except ImportError:
            raise SourceError("DuckDB is not installed: pip install 'tagstream[duckdb]'") from None
        self.dialect: Dialect = DuckDB()
        self._base = duckdb.Error
        self._open = False
        with self._translated():
            self._connection = duckdb.connect(path or ":memory:", read_only=read_only and path is not None)
            self._connection.execute("SET TimeZone = 'UTC'")

    def query(self, statement: str, values: Sequence[pa.Scalar] = ()) -> pa.Table:
        with self._translated():
            self._begin()
            found: pa.Table = self._connection.sql(statement, params=_plain(values)).to_arrow_table()
            return found

    def run(self, statement: str, values: Sequence[pa.Scalar] = ()) -> None:
        with self._translated():
            self._begin()
            self._connection.execute(statement, _plain(values))

    def stage(self, name: str, rows: pa.RecordBatchReader) -> str:
        with self._translated():
            self._begin()
            self._connection.register(f"{name}_rows", rows)
            self._connection.execute(f"CREATE TEMP TABLE {quote(name)} AS SELECT * FROM {quote(f'{name}_rows')}")
            self._connection.unregister(f"{name}_rows")
        return quote(name)

    def commit(self) -> None:
        if self._open:
            self._open = False
            with self._translated():
                self._connection.commit()

    def rollback(self) -> None:
        if self._open:
            self._open = False
            with suppress(self._base):
                self._connection.rollback()

    def close(self) -> None:
        self.rollback()
        with suppress(self._base):
            self._connection.close()

    def _begin(self) -> None:
        if not self._open:
            self._connection.begin()
            self._open = True

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._base as error:
            message = " ".join(str(error).split())
            raise DatabaseError(message + _hint(message), _kind(message)) from None


def connect(path: str | None, *, read_only: bool = False) -> Session:
    """A new session. Raises SourceError if DuckDB is not installed, DatabaseError."""
    return _DuckSession(path, read_only=read_only)


def open_source(spec: JobSpec, context: JobContext) -> TableSource:
    """See `io.registry.open_source`."""
    path = cast("DuckDBSource", spec.source).path
    if path is not None and not Path(path).exists():
        raise SourceError(f"source.path {path}: no such file")
    same = path is not None and spec.sink.writes(path)
    return TableSource(spec, context, partial(connect, path, read_only=not same), path or "DuckDB")


def open_sink(spec: JobSpec, context: JobContext) -> TableSink:
    """See `io.registry.open_sink`."""
    path = cast("DuckDBSink", spec.sink).path
    return TableSink(spec, context, partial(connect, path), path)


def _plain(values: Sequence[pa.Scalar]) -> list[object]:
    return [value.as_py() for value in values]


def _kind(message: str) -> Kind:
    low = message.lower()
    if "already exists" in low or "unique constraint" in low or "primary key" in low or "duplicate key" in low:
        return Kind.DUPLICATE
    return Kind.BUSY if "conflict" in low else Kind.OTHER  # two transactions, or two locks on the file, conflict


def _hint(message: str) -> str:
    if "Could not set lock" not in message:
        return ""
    return " (DuckDB lets only one process open a file for writing. End the other process or wait for it)"
