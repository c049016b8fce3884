"""Connects to databases through ADBC: chooses the driver, classifies errors, and keeps passwords out of messages."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from tagstream.schemas.errors import SourceError, SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.schemas.sql_spec import SqlSink, SqlSource, masked
from tagstream.transforms.io.database.dialect import Dialect, PostgreSQL, SQLite, quote
from tagstream.transforms.io.database.session import DatabaseError, Kind, Session
from tagstream.transforms.io.database.sink import TableSink
from tagstream.transforms.io.database.source import TableSource
from tagstream.transforms.runtime.job_context import JobContext

_DRIVERS: dict[str, tuple[str, str, type[Dialect]]] = {
    "postgresql": ("adbc_driver_postgresql", "adbc-driver-postgresql", PostgreSQL),
    "postgres": ("adbc_driver_postgresql", "adbc-driver-postgresql", PostgreSQL),
    "sqlite": ("adbc_driver_sqlite", "adbc-driver-sqlite", SQLite),
    "snowflake": ("adbc_driver_snowflake", "adbc-driver-snowflake", Dialect),
    "grpc": ("adbc_driver_flightsql", "adbc-driver-flightsql", Dialect),
    "grpc+tls": ("adbc_driver_flightsql", "adbc-driver-flightsql", Dialect),
}
_LOST = (
    "no connection to the server", "server closed the connection", "connection refused", "could not connect",
    "connection reset", "connection timed out", "broken pipe", "terminating connection", "the database system is",
    "ssl connection has been closed", "too many clients", "bad connection",
)  # fmt: skip
_BUSY = ("database is locked", "database table is locked", "database schema has changed")
_EXISTS = ("already exists", "duplicate column name")
_EXISTS_STATES = {"42P07", "42701", "42710"}
_BUSY_STATES = {"40001", "40P01", "55P03"}


class _AdbcSession:
    def __init__(self, uri: str) -> None:
        self._secrets = _secrets_of(uri)
        scheme = urlsplit(uri).scheme
        module, package, dialect = _driver_of(uri)
        self.dialect = dialect()
        try:
            driver = importlib.import_module(f"{module}.dbapi")
        except ImportError:
            raise SourceError(f"{scheme}:// needs a driver: pip install 'tagstream[sql]' {package}") from None
        with self._translated(f"{masked(uri)}: can't connect"):
            self._connection = driver.connect(_as_driver_wants(uri), autocommit=False)
        for statement in self.dialect.setup:
            self.query(statement)
            self.commit()

    def query(self, statement: str, values: Sequence[pa.Scalar] = ()) -> pa.Table:
        with self._translated(), self._connection.cursor() as cursor:
            cursor.execute(statement, _bound(values)) if values else cursor.execute(statement)
            return cursor.fetch_arrow_table()

    def run(self, statement: str, values: Sequence[pa.Scalar] = ()) -> None:
        with self._translated(), self._connection.cursor() as cursor:
            cursor.execute(statement, _bound(values)) if values else cursor.execute(statement)

    def stage(self, name: str, rows: pa.RecordBatchReader) -> str:
        with self._translated(), self._connection.cursor() as cursor:
            cursor.adbc_ingest(name, rows, mode="create", temporary=True)
        return quote(name)

    def commit(self) -> None:
        with self._translated():
            self._connection.commit()

    def rollback(self) -> None:
        with suppress(Exception):
            self._connection.rollback()

    def close(self) -> None:
        with suppress(Exception):
            self._connection.rollback()
        with suppress(Exception):
            self._connection.close()

    @contextmanager
    def _translated(self, where: str = "") -> Iterator[None]:
        from adbc_driver_manager import Error

        try:
            yield
        except Error as error:
            message = " ".join(str(error).split())
            kind = _kind(message, getattr(error, "sqlstate", None), type(error).__name__)
            for secret in self._secrets:
                message = message.replace(secret, "***")
            raise DatabaseError(f"{where}: {message}" if where else message, kind) from None


def connect(uri: str) -> Session:
    """A new session.

    Raises SourceError for an unknown scheme or a missing driver, and DatabaseError if the database can't be reached.
    """
    return _AdbcSession(uri)


def check_target(uri: str) -> None:
    """Raises SpecError for a database in which a sink can't write each row exactly once. Opens no connection."""
    if not _driver_of(uri)[2].enforces_keys:
        keeping = ", ".join(f"{scheme}://" for scheme, (*_, dialect) in _DRIVERS.items() if dialect.enforces_keys)
        raise SpecError(
            f"sink.uri: {masked(uri)}: this database may only be a source. It is not known to enforce primary keys, so "
            f"two runs could write the same rows. Sinks can be {keeping} and type: duckdb"
        )


def open_source(spec: JobSpec, context: JobContext) -> TableSource:
    """See `io.registry.open_source`."""
    uri = cast("SqlSource", spec.source).uri.get_secret_value()
    if urlsplit(uri).scheme == "sqlite" and not Path(_as_driver_wants(uri)).exists():  # SQLite would make an empty file
        raise SourceError(f"source.uri {masked(uri)}: no such file")
    return TableSource(spec, context, partial(connect, uri), masked(uri))


def open_sink(spec: JobSpec, context: JobContext) -> TableSink:
    """See `io.registry.open_sink`."""
    uri = cast("SqlSink", spec.sink).uri.get_secret_value()
    check_target(uri)
    return TableSink(spec, context, partial(connect, uri), masked(uri))


def _driver_of(uri: str) -> tuple[str, str, type[Dialect]]:
    """Module, package and dialect."""
    scheme = urlsplit(uri).scheme
    if scheme not in _DRIVERS:
        raise SourceError(f"{masked(uri)}: no driver for {scheme}://; there are drivers for {', '.join(_DRIVERS)}")
    return _DRIVERS[scheme]


def _kind(message: str, state: str | None, name: str) -> Kind:
    low = message.lower()
    if state in _EXISTS_STATES or any(text in low for text in _EXISTS):
        return Kind.DUPLICATE
    if name == "IntegrityError" and (state == "23505" or "unique" in low or "duplicate" in low or "primary key" in low):
        return Kind.DUPLICATE
    if (state or "") in _BUSY_STATES or any(text in low for text in _BUSY):
        return Kind.BUSY
    if (state or "").startswith(("08", "57P", "53")) or any(text in low for text in _LOST):
        return Kind.LOST
    return Kind.OTHER


def _bound(values: Sequence[pa.Scalar]) -> pa.RecordBatch:
    arrays = [pa.array([value.as_py()], value.type) for value in values]
    return pa.RecordBatch.from_arrays(arrays, [str(number) for number in range(len(values))])


def _as_driver_wants(uri: str) -> str:
    """The URI, or for SQLite the path, which its driver takes instead.

    `sqlite:///x.db` is the relative path x.db, `sqlite:////x.db` the absolute path /x.db.
    """
    path = uri.removeprefix("sqlite:///").removeprefix("sqlite:")
    return unquote(path) if path != uri else uri


def _secrets_of(uri: str) -> list[str]:
    """The parts of the URI that must not appear in a message, the longest first.

    These are the URI itself, its password as written and decoded, and passwords and tokens in its query.
    """
    password = urlsplit(uri).password
    query = [part.partition("=")[2] for part in urlsplit(uri).query.split("&") if "password" in part or "token" in part]
    found = [uri, *([password, unquote(password)] if password else []), *query]
    return sorted({secret for secret in found if secret}, key=len, reverse=True)
