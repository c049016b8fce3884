"""Which rows have a text that can be tokenised, and why the others have not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.errors import DeadCode, SourceError

Array = np.ndarray


def as_text(column: pa.Array, name: str) -> pa.LargeStringArray:
    """A column of any text type as large_string: string, large_string, string_view, dictionary of one, binary, or null.

    Bytes are not checked here. Raises SourceError for another type.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not is_text(column.type):
        raise SourceError(f"column {name!r} is {column.type}, not text")
    if pa.types.is_dictionary(column.type) and pa.types.is_string_view(kind):  # Arrow can't decode it
        column = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.cast(pa.large_string()))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return column.cast(pa.large_binary()).view(pa.large_string())
    return column.cast(pa.large_string())


def is_text(kind: pa.DataType) -> bool:
    """Types that `as_text` takes."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_null(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def unfit_rows(texts: pa.LargeStringArray) -> tuple[Array, list[DeadCode]]:
    """Row numbers, ascending, of texts that are null or not valid UTF-8, and the code of each."""
    null = (
        np.flatnonzero(pc.is_null(texts).to_numpy(zero_copy_only=False)) if texts.null_count else np.empty(0, np.int64)
    )
    codes = dict.fromkeys(null.tolist(), DeadCode.NULL_TEXT)
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        codes.update(dict.fromkeys(_invalid_utf8(texts), DeadCode.BAD_ENCODING))
    rows = sorted(codes)
    return np.asarray(rows, np.int64), [codes[row] for row in rows]


def _invalid_utf8(texts: pa.LargeStringArray) -> list[int]:
    """Found by halving: a slice without bad rows is checked by Arrow in one go."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        if len(texts) == 1:
            return [0]
        half = len(texts) // 2
        return _invalid_utf8(texts.slice(0, half)) + [half + row for row in _invalid_utf8(texts.slice(half))]
    return []
