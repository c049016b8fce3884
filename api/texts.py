"""Texts of any kind that a user may have, as one Arrow column."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import SourceError
from tagstream.transforms.io.memory import as_table
from tagstream.transforms.tokenization.text_checks import is_text


def plain_text(value: Any) -> bytes | None:
    """A text as bytes, which may not be valid UTF-8. None, NaN and pandas' NA are no text. Raises TypeError."""
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if value is None or isinstance(value, bytes):
        return value
    if (isinstance(value, float) and math.isnan(value)) or type(value).__name__ == "NAType":
        return None
    raise TypeError(type(value).__name__)


def text_column(texts: Any, name: str | None) -> pa.ChunkedArray:
    """The texts as a column of a text type. `name`: the column that holds them, if `texts` is a table.

    Raises SourceError for what is no text, or has no such column.
    """
    if isinstance(texts, str | bytes):
        texts = [texts]
    elif isinstance(texts, Iterator) and not isinstance(texts, pa.RecordBatchReader):
        texts = list(texts)
    if _is_table(texts):
        column = _column_of(texts, name)
    elif name is None:
        column = _array(texts)
        if pa.types.is_struct(column.type):  # from a library that this module doesn't know
            column = _column_of(pa.Table.from_struct_array(column), None)
    else:
        raise SourceError(f"predict: text={name!r} names a column, and these texts have no columns: leave it out")
    if not is_text(column.type):
        named = "these texts are" if name is None else f"column {name!r} is"
        raise SourceError(f"predict: {named} {column.type}, not text")
    return column


def _is_table(texts: Any) -> bool:
    if isinstance(texts, list | tuple):
        return bool(texts) and isinstance(texts[0], Mapping)
    lazy = hasattr(texts, "collect_schema")  # polars warns whoever asks a lazy frame for its columns
    return lazy or isinstance(texts, Mapping | pa.RecordBatchReader) or hasattr(texts, "columns")


def _column_of(table: Any, name: str | None) -> pa.ChunkedArray:
    if name is not None:  # only that column is looked at, where the library lets us
        if isinstance(table, list | tuple) and any(name in row for row in table):
            return _array([row.get(name) for row in table])
        if isinstance(table, Mapping) and name in table:
            return _array(table[name])
        if _selects(table) and list(table.columns).count(name) == 1:
            return text_column(table[name], None)
    table = as_table(table)
    if name is None and table.num_columns == 1:
        return table.column(0)
    if name is None:
        raise SourceError(f"predict: name the column of the texts with text=...; there are {_listed(table)}")
    if table.column_names.count(name) != 1:
        raise SourceError(f"predict: text={name!r}: no single column has that name; there are {_listed(table)}")
    return table[name]


def _selects(table: Any) -> bool:
    """`table[name]` is a column: of pandas, of polars, and of DuckDB's relations."""
    return hasattr(table, "__arrow_c_stream__") and not isinstance(
        table, pa.Table | pa.RecordBatch | pa.RecordBatchReader
    )


def _listed(table: pa.Table) -> str:
    return ", ".join(table.column_names[:20]) or "none"


def _array(texts: Any) -> pa.ChunkedArray:
    try:
        if isinstance(texts, pa.ChunkedArray):
            return texts
        if isinstance(texts, np.ndarray):
            texts = texts.tolist()
        if isinstance(texts, list | tuple):
            return pa.chunked_array([pa.array(texts, pa.large_string())])
        if hasattr(texts, "__arrow_c_stream__"):
            return pa.chunked_array(texts)
        return pa.chunked_array([texts if isinstance(texts, pa.Array) else pa.array(texts)])
    except (pa.ArrowException, TypeError, ValueError):
        return _one_by_one(texts)


def _one_by_one(texts: Any) -> pa.ChunkedArray:
    """Slower than Arrow, but one text that is no valid UTF-8 does not spoil the others, and NaN is null."""
    try:
        values = list(texts)
    except TypeError:
        kind = type(texts).__name__
        raise SourceError(f"predict: give a list of texts, a Series, an Arrow array or a table, not {kind}") from None
    found: list[bytes | None] = []
    for number, value in enumerate(values):
        try:
            found.append(plain_text(value))
        except TypeError as error:
            raise SourceError(f"predict: number {number} of these texts is {error}, not str") from None
    return pa.chunked_array([pa.array(found, pa.large_binary())])
