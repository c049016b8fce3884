"""Proves that a column's values are exact in a wider type: from a file's statistics, or else from its values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as at

from tagstream.transforms.io.parquet.columns import Place, value_at
from tagstream.transforms.io.parquet.unify import EXACT_IN_DOUBLE, UNITS

_INT64 = 2**63 - 1


def fits(fs: Any, path: str, place: Place, into: pa.DataType) -> bool:
    """Whether all values of an integer, timestamp or duration column of a file are exact in type `into`.

    Raises OSError and ArrowException.
    """
    most = EXACT_IN_DOUBLE
    if not at.is_integer(place.type):
        most = _INT64 // 1000 ** (UNITS.index(into.unit) - UNITS.index(place.type.unit))
    with fs.open(path, "rb") as opened:
        file = pq.ParquetFile(opened, coerce_int96_timestamp_unit="us")
        return all(-most <= low and high <= most for low, high in _bounds(file, place))


def _bounds(file: pq.ParquetFile, place: Place) -> Iterator[tuple[int, int]]:
    """The least and greatest value of each row group, if it has values."""
    metadata = file.metadata
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(at) for at in range(group.num_columns)]
        stats = next(chunk.statistics for chunk in chunks if chunk.path_in_schema == place.selects)
        if at.is_integer(place.type) and stats is not None and stats.has_min_max:
            yield stats.min, stats.max
            continue
        for batch in file.iter_batches(row_groups=[number], columns=[place.selects]):
            found = pc.min_max(value_at(batch, place).cast(pa.int64()))
            if found["min"].is_valid:
                yield found["min"].as_py(), found["max"].as_py()
