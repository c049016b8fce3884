"""Cuts one Parquet file into ranges of row numbers, and streams a range. Used by every source of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.schemas.spec import Blocks

_READ_BUFFER = 1 << 20


def read_rows(opened: Any, columns: list[str], start: int, stop: int, blocks: Blocks) -> Iterator[pa.RecordBatch]:
    """Batches of exactly the rows `start` to `stop` of `opened`, a seekable binary file; see `rows_of`."""
    yield from rows_of(streamed(opened), columns, start, stop, blocks)


def streamed(opened: Any, int96: str = "us") -> pq.ParquetFile:
    """A Parquet file whose columns are read in pieces. `opened`: a seekable binary file. Raises ArrowException.

    `int96`: the unit of timestamps that are stored as INT96.
    """
    return pq.ParquetFile(opened, pre_buffer=False, buffer_size=_READ_BUFFER, coerce_int96_timestamp_unit=int96)


def rows_of(
    file: pq.ParquetFile, columns: list[str], start: int, stop: int, blocks: Blocks
) -> Iterator[pa.RecordBatch]:
    """Batches of exactly the rows `start` to `stop`. A large row group is streamed, never held whole in memory.

    `columns`: names, or dotted paths into structs. Raises OSError if the file has fewer rows, and ArrowException.
    """
    at = position = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if at < stop and at + rows > start:
            position = at
            size = _batch_rows(file.metadata.row_group(group), columns, blocks)
            for batch in file.iter_batches(size, row_groups=[group], columns=columns, use_threads=False):
                low, high = max(start - position, 0), min(stop - position, batch.num_rows)
                if low < high:
                    yield batch.slice(low, high - low)
                position += batch.num_rows
                if position >= stop:
                    return
            if position != at + rows:  # the footer is damaged, or a page is and Arrow takes it for the end
                raise OSError(f"the footer says {rows:,} rows for row group {group}, which holds {position - at:,}")
        at += rows
    if start < stop and at < stop:
        raise OSError(f"the file ends at row {at:,} of {stop:,}")


def row_groups(opened: Any) -> tuple[int, ...]:
    """The number of rows in each row group of a file."""
    return counted(pq.ParquetFile(opened).metadata)


def counted(metadata: Any) -> tuple[int, ...]:
    """The number of rows in each row group. Raises OSError if their sum is not the file's number of rows."""
    groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    if sum(groups) != metadata.num_rows or any(rows < 0 for rows in groups):
        raise OSError(f"the footer says {metadata.num_rows:,} rows, but its row groups hold {sum(groups):,}")
    return groups


def row_ranges(groups: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `most` rows. Small row groups share a range; a large row group is cut evenly."""
    start = stop = 0
    for rows in groups:
        if stop - start + rows > most and stop > start:
            yield start, stop
            start = stop
        stop += rows
        if rows > most:
            parts = -(-rows // most)
            bounds = [start + rows * i // parts for i in range(parts + 1)]
            yield from pairwise(bounds)
            start = stop
    if stop > start:
        yield start, stop


def _batch_rows(group: Any, columns: list[str], blocks: Blocks) -> int:
    """How many rows to decode at once, so that an average batch of this row group stays below `blocks.bytes`."""
    chunks = (group.column(i) for i in range(group.num_columns))
    wanted = tuple(f"{name}." for name in columns)
    size = sum(c.total_uncompressed_size for c in chunks if f"{c.path_in_schema}.".startswith(wanted))
    fitting = int(blocks.bytes * group.num_rows / max(1, size))
    return max(1, min(blocks.rows, fitting))
