"""One connection to a database through ADBC: which driver, what its errors mean, and no password in any of them.

Statements are given with bound values; results and staged rows are Arrow. A session is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from tagstream.schemas.errors import TagstreamError
from tagstream.transforms.io.database.dialect import Dialect
from tagstream.transforms.runtime.retry import doubling, retrying

RETRY_SECONDS = 60.0
"""How long lost connections, deadlocks and locks are retried before they are an error."""

T = TypeVar("T")


class Kind(Enum):
    """What to do about a failure."""

    LOST = "connection lost or refused: open a new one"
    BUSY = "locked, deadlocked, not serialisable: try again"
    DUPLICATE = "a key, a table or a column is there already"
    OTHER = "tell the user"


class DatabaseError(Exception):
    """A statement failed. Internal: source and sink turn it into errors of theirs. The message has no secrets."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind


class Session(Protocol):
    """An open connection, always in a transaction."""

    dialect: Dialect

    def query(self, statement: str, values: Sequence[pa.Scalar] = ()) -> pa.Table:
        """All rows of a SELECT."""

    def run(self, statement: str, values: Sequence[pa.Scalar] = ()) -> None:
        """A statement without result."""

    def stage(self, name: str, rows: pa.RecordBatchReader) -> str:
        """Rows as a temporary table of this connection; its name, quoted."""

    def commit(self) -> None: ...

    def rollback(self) -> None:
        """Never raises: a connection that can't roll back is lost, and its transaction with it."""

    def close(self) -> None:
        """Never raises."""


class Sessions:
    """Connections of one process to one database that are open and not used right now. Connecting takes long."""

    def __init__(self, opening: Callable[[], Session]) -> None:
        self._opening = opening
        self._idle: list[Session] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_opening": self._opening, "_idle": []}

    def take(self) -> Session:
        """An open session at the begin of a transaction. Raises DatabaseError."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._opening()

    def give(self, session: Session, *, lost: bool = False) -> None:
        """What the transaction has not committed is undone. `lost`: do not use the session again."""
        if lost:
            session.close()
        else:
            session.rollback()
            self._idle.append(session)

    @contextmanager
    def lent(self) -> Iterator[Session]:
        """A session for one transaction. Raises DatabaseError."""
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
    """What `work` returns. `work` opens its own session and is done again when the connection is lost or the database
    is busy, for RETRY_SECONDS.

    Raises `error` for a failure that does not pass, and DatabaseError of kind DUPLICATE as it is.
    """
    try:
        return retrying(_passes, doubling(0.05, 2.0), seconds=RETRY_SECONDS)(work)
    except DatabaseError as failure:
        if failure.kind is Kind.DUPLICATE:
            raise
        raise error(hint(str(failure))) from None


def _passes(failure: BaseException) -> bool:
    return isinstance(failure, DatabaseError) and failure.kind in {Kind.LOST, Kind.BUSY}
