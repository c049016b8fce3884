"""Rows that a database does not take: they become dead letters of the commit, and the other rows are stored.

A staged row is known by its number among the rows of the commit. `Refused` says which rows an attempt could not store;
the writer takes them out and tries again, all in one transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import POSITION, failing_rows, take_rows
from tagstream.schemas.errors import DeadCode, SinkError
from tagstream.transforms.io.common.spool import Spool

Reasons = dict[int, tuple[DeadCode, str]]
"""Code and message by the row's number."""


class Refused(Exception):  # noqa: N818  it ends an attempt, not the job
    """`rows`: what the database does not take. The attempt's transaction is rolled back."""

    def __init__(self, rows: Reasons) -> None:
        super().__init__(f"{len(rows)} rows")
        self.rows = rows


class StagedRows:
    """The label rows of one commit, in `labels`. `letters`: the same rows as dead letters, should it come to that."""

    def __init__(self, labels: pa.Schema, letters: pa.Schema) -> None:
        self.labels, self.letters = Spool(labels), Spool(letters)
        self.refused: Reasons = {}

    def add(self, labels: pa.RecordBatch, letters: pa.RecordBatch) -> None:
        self.labels.add(labels)
        self.letters.add(letters)

    @property
    def left(self) -> int:
        """How many rows are not refused."""
        return int(self.labels.rows - len(self.refused))

    def part(self, first: int = 0, stop: int | None = None) -> pa.RecordBatchReader:
        """The rows from number `first` to `stop`, without those that are refused."""
        gone = np.array(sorted(self.refused), np.int64)

        def batches() -> list[pa.RecordBatch]:
            at = 0
            found = []
            for batch in self.labels.reader():
                rows = np.arange(at, at + batch.num_rows)
                wanted = (rows >= first) & (rows < (self.labels.rows if stop is None else stop)) & ~np.isin(rows, gone)
                if wanted.all():
                    found.append(batch)
                elif wanted.any():
                    found.append(take_rows(batch, np.flatnonzero(wanted)))
                at += batch.num_rows
            return found

        if not len(gone) and first == 0 and stop is None:
            return self.labels.reader()
        return pa.RecordBatchReader.from_batches(self.labels.schema, batches())

    def numbers(self, positions: list[int]) -> list[int]:
        """The numbers of the rows at these positions. The staged rows have the column POSITION, which ascends."""
        there = np.concatenate([batch.column(POSITION).to_numpy() for batch in self.labels.reader()])
        return [int(number) for number in np.searchsorted(there, np.array(positions, np.int64))]

    def dead(self) -> pa.RecordBatch | None:
        """The refused rows as dead letters, as the spool holds them. None if there are none."""
        if not self.refused:
            return None
        rows = sorted(self.refused)
        table = pa.Table.from_batches(list(self.letters.reader()), self.letters.schema).combine_chunks()
        taken = take_rows(table.to_batches()[0], np.array(rows))
        codes, messages = zip(*(self.refused[row] for row in rows), strict=True)
        columns = dict(zip(taken.schema.names, taken.columns, strict=True))
        columns |= {"code": pa.array([code.value for code in codes]), "message": pa.array(messages, pa.string())}
        return pa.RecordBatch.from_arrays(list(columns.values()), schema=taken.schema)

    def codes(self) -> Counter[str]:
        """How many rows are refused, by code."""
        return Counter(code.value for code, _ in self.refused.values())

    def close(self) -> None:
        self.labels.close()
        self.letters.close()


def find_refused(staged: StagedRows, attempt: Callable[[pa.RecordBatchReader], None], failed: SinkError) -> Reasons:
    """The rows that the database refuses on their own, with its words. Halves the rows until it finds them.

    `attempt`: stores rows in a transaction that is rolled back. Raises `failed` if even no rows can be stored, or if
    none of several rows can: then it is not the rows.
    """
    attempt(staged.part(0, 0))
    found = failing_rows(staged.labels.rows, lambda first, stop: attempt(staged.part(first, stop)), SinkError)
    if not found or len(found) == staged.left > 1:
        raise failed
    return {row: (DeadCode.REFUSED, f"the database refuses the row: {error}") for row, error in found.items()}
