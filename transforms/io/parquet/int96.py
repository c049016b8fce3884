"""Timestamps in Parquet's old INT96 form: how they are read, and the proof that their values stay as they are.

INT96 holds any day and nanoseconds. Arrow has 64 bits: in nanoseconds they reach from 1677 to 2262, in microseconds
much further. Arrow reads nanoseconds by default, and turns 9999-12-31 into 1816-03-29 without a word. Spark, Hive and
pandas write INT96 in microseconds, so microseconds are read here, unless the values of the first file have digits
below them. What the chosen unit can't hold is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as at

from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import Blocks
from tagstream.transforms.io.common.parquet_rows import rows_of, streamed

DEFAULT_UNIT = "us"
_NS_SECONDS = (2**63 - 1) // 10**9
"""Nanoseconds in 64 bits reach so many seconds from 1970, in both directions."""


def int96_columns(schema: Any) -> tuple[str, ...]:
    """Dotted paths of the columns that are stored as INT96. `schema`: a `pq.ParquetSchema`."""
    columns = [schema.column(number) for number in range(len(schema))]
    return tuple(column.path for column in columns if column.physical_type == "INT96")


def stored_so(selection: Collection[str], int96: Collection[str]) -> list[str]:
    """Those of the selected columns, names or dotted paths, that hold INT96."""
    return [name for name in selection if any(f"{path}.".startswith(f"{name}.") for path in int96)]


def unit_of(fs: Any, path: str, names: list[str]) -> str:
    """`ns` if a value in these columns of a file has digits below a microsecond, else `us`. Raises OSError."""
    with fs.open(path, "rb") as opened:
        rows = (0, pq.ParquetFile(opened).metadata.num_rows)
        found = (_has_nanoseconds(ns, us) for ns, us in _values(opened, names, rows))
        return "ns" if any(found) else DEFAULT_UNIT


def check_exact(opened: Any, path: str, names: list[str], rows: tuple[int, int], unit: str) -> None:
    """Raises SourceError if a value in these rows of a file is not exact in `unit`. `opened`: the seekable file.

    `names`: the columns that hold INT96. Raises OSError and ArrowException.
    """
    if names:
        for ns, us in _values(opened, names, rows):
            if unit == "us" and _has_nanoseconds(ns, us):
                held = "nanoseconds, and the column is read in microseconds because the first file has none"
            elif unit == "ns" and not _fits_nanoseconds(us).all():
                held = "a day outside of 1677 to 2262, and the column is read in nanoseconds because the first file has"
                held += " some"
            else:
                continue
            raise SourceError(
                f"{path}: {', '.join(map(repr, names))} is INT96 and holds {held}. Write the files with another type "
                "(TIMESTAMP_MICROS), leave the column out of source.keep, or label this file in a job of its own"
            )


def _has_nanoseconds(ns: np.ndarray, us: np.ndarray) -> bool:
    return bool((ns[_fits_nanoseconds(us)] % 1000).any())


def _fits_nanoseconds(us: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(us // 10**6) < _NS_SECONDS)


def _values(opened: Any, names: list[str], rows: tuple[int, int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same timestamps in nanoseconds, which may have wrapped, and in microseconds: int64 since 1970, no nulls."""
    blocks = Blocks()
    fine, coarse = (rows_of(streamed(opened, unit), names, *rows, blocks) for unit in ("ns", "us"))
    for ns, us in zip(fine, coarse, strict=True):
        for columns in zip(ns.columns, us.columns, strict=True):
            yield from zip(_timestamps(columns[0], "ns"), _timestamps(columns[1], "us"), strict=True)


def _timestamps(array: pa.Array, unit: str) -> Iterator[np.ndarray]:
    kind = array.type
    if at.is_timestamp(kind) and kind.unit == unit:
        yield array.drop_null().view(pa.int64()).to_numpy(zero_copy_only=False)
    elif at.is_struct(kind):
        for child in array.flatten():
            yield from _timestamps(child, unit)
    elif at.is_map(kind):
        yield from _timestamps(array.keys, unit)
        yield from _timestamps(array.items, unit)
    elif at.is_list(kind) or at.is_large_list(kind) or at.is_fixed_size_list(kind):
        yield from _timestamps(array.flatten(), unit)
