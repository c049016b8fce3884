"""Prepares labelled rows for a database: simple types only, and no text that the database refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import Block, take_rows, unwrapped
from tagstream.schemas.dead_letters import buried, merged
from tagstream.schemas.errors import DeadCode
from tagstream.transforms.io.common.json_text import as_json

_NUL_IN_JSON = r"(?:^|[^\\])(?:\\\\)*\\u0000"
"""Matches the JSON escape for U+0000.

The escape begins with an odd number of backslashes. With an even number, the text itself reads \\u0000.
"""


def flat(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with types that every database takes: nested values as JSON text, dictionaries decoded."""
    return pa.RecordBatch.from_arrays([plain(column) for column in batch.columns], batch.schema.names)


def plain(column: pa.Array) -> pa.Array:
    """One column, converted as in `flat`."""
    column = unwrapped(column)
    kind = column.type
    if pa.types.is_nested(kind):
        return as_json(column)
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.string())
    if pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind):
        return column.cast(pa.binary())
    return column


def without_nul(block: Block) -> Block:
    """The block, with each row that has U+0000 in any text, nested ones included, turned into a dead letter."""
    batch, bad = block.batch, np.zeros(block.batch.num_rows, bool)
    for held, column in zip(batch.columns, flat(batch).columns, strict=True):
        if pa.types.is_string(column.type):
            nested = pa.types.is_nested(unwrapped(held).type)
            found = pc.match_substring_regex(column, _NUL_IN_JSON) if nested else pc.match_substring(column, "\x00")
            bad |= pc.fill_null(found, fill_value=False).to_numpy(zero_copy_only=False)
    if not bad.any():
        return block
    dead = merged(block.dead, buried(block, np.flatnonzero(bad), DeadCode.REFUSED))
    return replace(block, batch=take_rows(batch, np.flatnonzero(~bad)), dead=dead)
