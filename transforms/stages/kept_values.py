"""Finds rows whose id or kept columns hold text that is not valid UTF-8.

Parquet files and databases may hold such bytes in columns that they call text. A sink would store them in files that
other programs can't read, or fail as a whole. So each such row is a dead letter, whatever the source and the sink.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as at

from tagstream.schemas.block import failing_rows, take_rows, without_rows
from tagstream.schemas.dead_letters import dead_letters, kept_schema, no_dead
from tagstream.schemas.errors import DeadCode

Array = np.ndarray
_SHOWN_BYTES = 60


def split_off_bad_values(split: str, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The rows of a source's block whose kept text is valid, and dead letters for the others, in order of position.

    A dead letter has null in place of the bad value, which its message shows, and no payload: a replay could give the
    text a label, but not its row the value.
    """
    bad = {name: rows for name in _text_columns(batch.schema) if len(rows := _invalid_rows(batch.column(name)))}
    if not bad:
        return batch, no_dead(kept_schema(batch.schema))
    messages: dict[int, str] = {}
    for name, rows in bad.items():
        for row in rows.tolist():
            messages.setdefault(row, f"column {name!r} is not valid UTF-8: {_shown(batch.column(name), row)}")
    rows = np.array(sorted(messages), np.int64)
    taken = _replaced(take_rows(batch, rows), {name: np.isin(rows, bad_rows) for name, bad_rows in bad.items()})
    codes = [DeadCode.BAD_VALUE] * len(rows)
    letters = dead_letters(
        split, taken, np.arange(len(rows)), codes, [messages[row] for row in rows.tolist()], payload=False
    )
    rest = without_rows(batch, rows)
    return _replaced(rest, {name: np.zeros(rest.num_rows, bool) for name in bad}), letters


def _text_columns(schema: pa.Schema) -> list[str]:
    return [field.name for field in kept_schema(schema) if _holds_text(field.type)]


def _holds_text(kind: pa.DataType) -> bool:
    """Whether values of this type have text in them, at any depth."""
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_text(kind.storage_type)
    if at.is_dictionary(kind) or at.is_run_end_encoded(kind):
        return _holds_text(kind.value_type)
    if at.is_nested(kind):
        return any(_holds_text(kind.field(number).type) for number in range(kind.num_fields))
    return bool(at.is_string(kind) or at.is_large_string(kind) or at.is_string_view(kind))


def _invalid_rows(column: pa.Array) -> Array:
    """Row numbers, ascending."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        pass
    else:
        return np.empty(0, np.int64)
    if at.is_dictionary(column.type):  # an entry of the dictionary that no row has does no harm
        entries = pa.array(_invalid_rows(column.dictionary))
        return np.flatnonzero(
            pc.is_in(column.indices, entries.cast(column.indices.type)).to_numpy(zero_copy_only=False)
        )
    bad = failing_rows(len(column), lambda first, stop: _own(column[first:stop]).validate(full=True), pa.ArrowInvalid)
    return np.array(list(bad), np.int64)


def _own(column: pa.Array) -> pa.Array:
    """A copy without values that belong to other rows; Arrow validates all that a slice's children hold."""
    return take_rows(pa.RecordBatch.from_arrays([column], ["c"]), np.arange(len(column))).column(0)


def _replaced(batch: pa.RecordBatch, nulls: dict[str, Array]) -> pa.RecordBatch:
    """The batch with columns that are null where the mask is true, and whose dictionaries hold only what rows have."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    for name, mask in nulls.items():
        column = columns[name]
        if mask.any():
            pieces = [pa.nulls(1, column.type) if mask[row] else column.slice(row, 1) for row in range(len(column))]
            column = pa.concat_arrays(pieces)
        if at.is_dictionary(column.type):
            column = column.dictionary_decode().dictionary_encode().cast(column.type)
        columns[name] = column
    return pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema)


def _shown(column: pa.Array, row: int) -> str:
    """The bytes as Python writes them, cut."""
    value: Any = column.slice(row, 1)
    if at.is_dictionary(value.type):
        value = value.dictionary_decode()
    if not (at.is_string(value.type) or at.is_large_string(value.type)):
        return f"a part of a {value.type}"
    held = value.view(pa.binary() if at.is_string(value.type) else pa.large_binary())[0].as_py()
    return repr(held[:_SHOWN_BYTES]) + (" …" if len(held) > _SHOWN_BYTES else "")
