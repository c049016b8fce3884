"""What the source and the sink need of a database connection, as a protocol; a pool of connections; and retries.

Values are bound to statements, never pasted into them. Results and staged rows are Arrow. Only one thread at a time
may use a session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import pyarrow as pa

from tagstream.schemas.errors import TagstreamError
from tagstream.transforms.io.database.dialect import Dialect
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.retry import doubling, retrying

RETRY_SECONDS = 60.0
"""How long an operation is retried after lost connections, deadlocks and locks."""

T = TypeVar("T")


class Kind(Enum):
    """Classes of failures, by what the caller should do."""

    LOST = "connection lost or refused: open a new one"
    BUSY = "locked, deadlocked, not serialisable: try again"
    DUPLICATE = "a key, a table or a column is there already"
    OTHER = "tell the user"


class DatabaseError(Exception):
    """A statement failed. Source and sink turn this internal error into their own. The message has no secrets."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


class Session(Protocol):
    """An open connection. A transaction is always open. Methods raise DatabaseError."""

    dialect: Dialect

    def query(self, statement: str, values: Sequence[pa.Scalar] = ()) -> pa.Table:
        """Run a SELECT and return all its rows."""

    def run(self, statement: str, values: Sequence[pa.Scalar] = ()) -> None:
        """Run a statement that returns no rows."""

    def stage(self, name: str, rows: pa.RecordBatchReader) -> str:
        """Write rows to a temporary table of this connection. Returns the table's quoted name."""

    def commit(self) -> None: ...

    def rollback(self) -> None:
        """Never raises. If a connection can't roll back, it is lost, and the database ends its transaction."""

    def close(self) -> None:
        """Never raises."""


class Pools:
    """The pools of a job's process, whose idle connections are closed when the job ends. A resource of the context."""

    def __init__(self, _: JobContext) -> None:
        self._pools: WeakSet[Sessions] = WeakSet()

    def add(self, pool: Sessions) -> None:
        self._pools.add(pool)

    def close(self) -> None:
        for pool in list(self._pools):
            pool.close()


class Sessions:
    """A pool of idle connections to one database, kept because connecting is slow.

    They are closed at the end of the job: a DuckDB file is locked while a connection is open.
    """

    def __init__(self, opening: Callable[[], Session], context: JobContext) -> None:
        self._opening, self._context = opening, context
        self._idle: list[Session] = []
        context.resource(Pools).add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"_opening": self._opening, "_context": self._context}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_opening"], state["_context"])  # type: ignore[misc]

    def close(self) -> None:
        """Close the idle connections. The pool may be used again."""
        while self._idle:
            self._idle.pop().close()

    def take(self) -> Session:
        """A session at the start of a transaction. Raises DatabaseError."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._opening()

    def give(self, session: Session, *, lost: bool = False) -> None:
        """Roll back and return the session to the pool. `lost`: close the session instead."""
        if lost:
            session.close()
        else:
            session.rollback()
            self._idle.append(session)

    @contextmanager
    def lent(self) -> Iterator[Session]:
        """A session for the `with` block. Uncommitted work is rolled back at its end. Raises DatabaseError."""
        session, lost = self.take(), False
        try:
            yield session
        except DatabaseError as failure:
            lost = failure.kind is Kind.LOST
            raise
        finally:
            self.give(session, lost=lost)


def retried(
    work: Callable[[], T], error: type[TagstreamError], hint: Callable[[str], str] = lambda message: message
) -> T:
    """Call `work` and return its result. Calls it again while the connection is lost or the database is busy.

    `work` must open its own session each time. Raises `error` after RETRY_SECONDS, or at once for a failure of kind
    OTHER, with the message passed through `hint`. A failure of kind DUPLICATE is raised unchanged, as DatabaseError.
    """
    try:
        return retrying(_passes, doubling(0.05, 2.0), seconds=RETRY_SECONDS)(work)
    except DatabaseError as failure:
        if failure.kind is Kind.DUPLICATE:
            raise
        raise error(hint(str(failure))) from None


def _passes(failure: BaseException) -> bool:
    return isinstance(failure, DatabaseError) and failure.kind in {Kind.LOST, Kind.BUSY}
