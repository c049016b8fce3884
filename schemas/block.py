"""Split, span and block: the only things that move through the pipeline.

Before inference a block's record batch has the input's id and kept columns, `TEXT` and `POSITION`. After inference the
label columns have replaced `TEXT`. A row that can't get a label leaves the batch and joins `dead`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

TEXT = "__text"
"""Column of a source's block that holds the text: string or large_string, nulls allowed."""
POSITION = "__position"
"""Column of every block: int64, ascending, each row's position inside the split."""
ORIGIN_SPLIT = "__origin_split"
"""Column of a replayed block: string, the split in which the row was first seen."""
ORIGIN_POSITION = "__origin_position"
"""Column of a replayed block: int64, the row's position in that split."""

AGAIN = "again"
"""Key in the payload of a split whose rows are to be labelled again: see `io.contracts.Again`."""

_STEM, _DIGEST = 40, 12
"""Most characters of the readable part of a split's id, and those of its hash."""
END = 10**12
"""Stop of a split that is read and committed as a whole. The number of its rows may change until it is read."""


@dataclass(frozen=True)
class Split:
    """An independent, ordered run of input rows. Example: rows 100 to 199 of a Parquet file.

    `id`: stays the same as long as the input does. `start`: the first position. `stop`: the position after the last
    one; None for a split without an end. `payload`: JSON values by which the source finds the rows again. `planned`:
    the number of rows that the plan counted, if positions inside the split are not stable. Such a split is read and
    committed as a whole.
    """

    id: str
    start: int
    stop: int | None
    payload: dict[str, Any] = field(default_factory=dict, hash=False)
    planned: int | None = None

    @property
    def whole(self) -> bool:
        """Whether the split is committed as a whole or not at all."""
        return self.planned is not None

    @property
    def rows(self) -> int:
        """How many positions the split has, or how many rows were planned. 0 for a split without an end."""
        return self.rows_up_to(self.stop or self.start)

    def rows_up_to(self, position: int) -> int:
        """How many rows are done when the chain ends at `position`."""
        if self.planned is not None:
            return self.planned if position == self.stop else 0
        return min(position, self.stop or position) - self.start


def split_id(stem: str, **identity: Any) -> str:
    """A readable stem and a short hash of `identity`, which tells inputs apart. Usable in file names and Kafka ids."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:_DIGEST]
    readable = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-").lower()[:_STEM] or "split"
    return f"{readable}-{digest}"


def split_stem(split: str) -> str:
    """The readable part of a split's id."""
    return split[: -_DIGEST - 1]


def is_whole(split: str) -> bool:
    """Whether the stem of a split's id was not cut off."""
    return len(split_stem(split)) < _STEM


@dataclass(frozen=True, order=True)
class Span:
    """A range of positions of one split: `start` is included, `stop` is not."""

    split: str
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.stop < self.start:
            raise ValueError(f"span stops before it starts: {self}")


@dataclass(frozen=True)
class Block:
    """One record batch, the dead letters that left it, and the span that both cover.

    Every input row of the span is in exactly one of `batch` and `dead`. A span of Kafka may have more positions than
    rows. `dead` has the schema that `dead_schema` gives for the job.
    """

    span: Span
    batch: pa.RecordBatch
    dead: pa.RecordBatch

    @property
    def num_rows(self) -> int:
        """How many input rows the block has: labelled or pending rows, and dead letters."""
        return int(self.batch.num_rows + self.dead.num_rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the block's own rows. A slice's buffers may hold more rows; these are not counted."""
        return int(self.batch.nbytes + self.dead.nbytes)

    def after(self, position: int) -> Block:
        """The part of the block at and above `position`."""
        if position <= self.span.start:
            return self
        position = min(position, self.span.stop)
        return Block(
            replace(self.span, start=position),
            rows_from(self.batch, self.batch.column(POSITION), position),
            rows_from(self.dead, self.dead.column("position"), position),
        )


def take_rows(batch: pa.RecordBatch, rows: Any) -> pa.RecordBatch:
    """The rows of `batch` with the numbers `rows`, an int array, in that order; columns of any type."""
    rows = np.asarray(rows, np.int64)
    return pa.RecordBatch.from_arrays([_take(column, rows) for column in batch.columns], schema=batch.schema)


def without_rows(batch: pa.RecordBatch, rows: Any) -> pa.RecordBatch:
    """The batch without the rows with the numbers `rows`."""
    return take_rows(batch, np.delete(np.arange(batch.num_rows), np.asarray(rows, np.int64)))


def failing_rows(count: int, attempt: Callable[[int, int], object], failure: type[Exception]) -> dict[int, Exception]:
    """Those of `count` rows on which `attempt` raises `failure`, in ascending order, with what it raised.

    `attempt` is called with the first row and the row after the last one: with all rows first, then with the halves of
    what fails. So a few bad rows among many cost few calls, and none cost one.
    """
    found: dict[int, Exception] = {}
    parts = [(0, count)]
    while parts:
        first, stop = parts.pop()
        try:
            attempt(first, stop)
        except failure as error:
            if stop == first:
                raise  # it is no row's fault
            if stop - first == 1:
                found[first] = error
            else:
                middle = (first + stop) // 2
                parts += [(middle, stop), (first, middle)]  # the lower half is next
    return found


def _take(column: pa.Array, rows: Any) -> pa.Array:
    try:
        return column.take(pa.array(rows))
    except pa.ArrowNotImplementedError:  # `take` can't handle view and run-end types, so slices are joined
        runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        slices = [column.slice(int(run[0]), len(run)) for run in runs if len(run)]
        return pa.concat_arrays(slices) if slices else column.slice(0, 0)


def unwrapped(array: pa.Array) -> pa.Array:
    """The array's plain values: extension types removed, dictionaries decoded. Nested fields stay as they are."""
    if isinstance(array.type, pa.BaseExtensionType):
        return unwrapped(array.storage)
    return unwrapped(array.dictionary_decode()) if pa.types.is_dictionary(array.type) else array


def unwrapped_type(kind: pa.DataType) -> pa.DataType:
    """The type of the array that `unwrapped` returns."""
    if isinstance(kind, pa.BaseExtensionType):
        return unwrapped_type(kind.storage_type)
    return unwrapped_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def rows_from(batch: pa.RecordBatch, positions: pa.Array, position: int) -> pa.RecordBatch:
    """The rows of `batch` whose position is at least `position`; `positions` ascend."""
    return batch.slice(int(positions.to_numpy(zero_copy_only=False).searchsorted(position)))
