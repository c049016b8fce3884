"""Converts columns to the types in which a database stores them. See `stored_types` for what becomes of each type."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as at

from tagstream.schemas.block import unwrapped
from tagstream.transforms.io.common.json_text import as_json, not_in_json
from tagstream.transforms.io.database.dialect import Dialect

_NUL_IN_JSON = r"(?:^|[^\\])(?:\\\\)*\\u0000"
"""Matches the JSON escape for U+0000.

The escape begins with an odd number of backslashes. With an even number, the text itself reads \\u0000.
"""


def stored(column: pa.Array, dialect: Dialect, held: pa.DataType | None = None) -> pa.Array:
    """The column as it is staged. Raises ArrowException if a value would change, or if the database refuses it.

    `held`: the Arrow type of the table's column, if it says which values the column can hold.
    """
    column = unwrapped(column)
    if at.is_run_end_encoded(column.type):
        column = unwrapped(pc.run_end_decode(column))
    nested = at.is_nested(column.type)
    if nested and not_in_json(column).any():
        raise pa.ArrowInvalid("JSON has no NaN and no infinity")
    if not dialect.has_nan and at.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
        raise pa.ArrowInvalid(f"{dialect.name} has no NaN")
    found = as_json(column) if nested else _cast(column, dialect.staged_type(column.type))
    if dialect.refuses_nul and at.is_string(found.type):
        nul = pc.match_substring_regex(found, _NUL_IN_JSON) if nested else pc.match_substring(found, "\x00")
        if pc.any(nul).as_py():
            raise pa.ArrowInvalid(f"{dialect.name} has no character U+0000")
    if dialect.has_infinite_times and at.is_timestamp(found.type):
        furthest = pc.is_in(found.cast(pa.int64()), pa.array([2**63 - 1, 1 - 2**63]))
        if pc.any(furthest).as_py():
            raise pa.ArrowInvalid(f"{dialect.name} takes this time for infinity")
    if held is not None and held != found.type:
        _check_fits(found, held)
    return found


def _check_fits(staged: pa.Array, held: pa.DataType) -> None:
    """Raises ArrowInvalid if the database's own cast to `held` would round or wrap a value."""
    if at.is_string(held):
        return
    try:
        held_values = staged.cast(held)
        back = held_values.cast(staged.type)
    except pa.ArrowNotImplementedError:
        return  # no cast in Arrow; the database says whether it has one
    same = pc.equal(back, staged)
    if at.is_floating(held):
        same = pc.or_(same, pc.is_nan(held_values))
    if not pc.all(pc.fill_null(same, fill_value=True)).as_py():
        raise pa.ArrowInvalid(f"the table's column is {held}, which does not hold the value exactly")


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if at.is_string(kind) and at.is_timestamp(column.type):  # a moment, with its zone
        return column.cast(pa.timestamp(column.type.unit, "UTC")).cast(kind)
    return column.cast(kind)
