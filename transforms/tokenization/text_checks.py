"""Finds the rows whose text can't be tokenised, and says why."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import failing_rows
from tagstream.schemas.errors import DeadCode, SourceError

Array = np.ndarray


def as_text(column: pa.Array, name: str) -> pa.LargeStringArray:
    """A column of text as large_string.

    Takes strings and bytes of every kind, nulls, dictionaries of them, and extension types that store them (JSON).
    Bytes are not checked here; `unfit_rows` does that. Raises SourceError for another type.
    """
    if not is_text(column.type):
        raise SourceError(f"column {name!r} is {column.type}, not text")
    if isinstance(column.type, pa.BaseExtensionType):
        return as_text(column.storage, name)
    if pa.types.is_dictionary(column.type):
        words = as_text(column.dictionary, name)
        return pa.DictionaryArray.from_arrays(column.indices, words).cast(pa.large_string())
    if _is_bytes(column.type):
        return column.cast(pa.large_binary()).view(pa.large_string())
    return column.cast(pa.large_string())


def is_text(kind: pa.DataType) -> bool:
    """Whether `as_text` takes the type."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_text(kind.storage_type)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_null(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or _is_bytes(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def unfit_rows(texts: pa.LargeStringArray) -> tuple[Array, list[DeadCode]]:
    """The rows whose text is null or not valid UTF-8, in ascending order, and the dead-letter code of each."""
    null = (
        np.flatnonzero(pc.is_null(texts).to_numpy(zero_copy_only=False)) if texts.null_count else np.empty(0, np.int64)
    )
    codes = dict.fromkeys(null.tolist(), DeadCode.NULL_TEXT)
    bad = failing_rows(len(texts), lambda first, stop: texts[first:stop].validate(full=True), pa.ArrowInvalid)
    codes.update(dict.fromkeys(bad, DeadCode.BAD_ENCODING))
    rows = sorted(codes)
    return np.asarray(rows, np.int64), [codes[row] for row in rows]
