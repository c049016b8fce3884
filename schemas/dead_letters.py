"""The columns of dead letters, and how rows become dead letters. Pure Arrow; knows no engine and no sink."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import ORIGIN_POSITION, ORIGIN_SPLIT, POSITION, TEXT, Block, take_rows
from tagstream.schemas.errors import REASONS, DeadCode

DEAD_ROW = "row"
"""Struct column of a dead letter: id and kept columns of the row. Left out if the input has neither."""


def dead_schema(kept: pa.Schema) -> pa.Schema:
    """Schema of dead letters for an input whose id and kept columns are `kept`. If `kept` is empty, there is no `row`.

    `split` and `position` say where the row was when it became a dead letter. The origin columns say where the row was
    first seen. They differ only after a replay.
    """
    return pa.schema(
        [
            pa.field("split", pa.string(), nullable=False),
            pa.field("position", pa.int64(), nullable=False),
            pa.field("code", pa.string(), nullable=False),
            pa.field("message", pa.string(), nullable=False),
            pa.field("payload", pa.binary()),
            pa.field("origin_split", pa.string(), nullable=False),
            pa.field("origin_position", pa.int64(), nullable=False),
            *([pa.field(DEAD_ROW, pa.struct(list(kept)))] if len(kept) else []),
        ]
    )


def kept_schema(block: pa.Schema) -> pa.Schema:
    """Id and kept columns of a source's block. Our own columns, which begin with two underscores, are left out."""
    return pa.schema([field for field in block if not field.name.startswith("__")])


def no_dead(kept: pa.Schema) -> pa.RecordBatch:
    """An empty batch of dead letters."""
    return empty_batch(dead_schema(kept))


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """A record batch of `schema` without rows."""
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def dead_letters(
    split: str, batch: pa.RecordBatch, rows: Any, codes: list[DeadCode], messages: list[str], *, payload: bool
) -> pa.RecordBatch:
    """Dead letters for the given rows of a source's block.

    `rows`: int array of row numbers, ascending. `codes`, `messages`: one for each row; an empty message becomes the
    code's reason. `payload`: keep the text's bytes.
    """
    taken = take_rows(batch, rows)
    kept = kept_schema(batch.schema)
    arrays = [taken.column(f.name) for f in kept]
    text = taken.column(TEXT)
    as_bytes = text.cast(pa.large_binary() if pa.types.is_large_string(text.type) else pa.binary())
    row = [pa.StructArray.from_arrays(arrays, fields=list(kept))] if arrays else []
    splits, positions = pa.array([split] * taken.num_rows, pa.string()), taken.column(POSITION)
    replayed = ORIGIN_SPLIT in batch.schema.names
    return pa.RecordBatch.from_arrays(
        [
            splits,
            positions,
            pa.array([code.value for code in codes], pa.string()),
            pa.array([m or REASONS[c] for c, m in zip(codes, messages, strict=True)], pa.string()),
            as_bytes.cast(pa.binary()) if payload else pa.nulls(taken.num_rows, pa.binary()),
            taken.column(ORIGIN_SPLIT) if replayed else splits,
            taken.column(ORIGIN_POSITION) if replayed else positions,
            *row,
        ],
        schema=dead_schema(kept),
    )


def buried(block: Block, rows: Any, code: DeadCode, message: str | list[str] = "") -> pa.RecordBatch:
    """Dead letters for the given rows of a labelled block. They have no payload, because the block has no texts.

    `message`: for all rows, or one for each; empty for the code's reason.
    """
    batch, schema = block.batch, block.dead.schema
    kept = [field.name for field in schema.field(DEAD_ROW).type] if DEAD_ROW in schema.names else []
    ours = [name for name in batch.schema.names if name.startswith("__")]
    source = batch.select([*kept, *ours]).append_column(TEXT, pa.nulls(batch.num_rows, pa.large_string()))
    told = [message] * len(rows) if isinstance(message, str) else message
    return dead_letters(block.span.split, source, rows, [code] * len(rows), told, payload=False)


def merged(dead: pa.RecordBatch, more: pa.RecordBatch) -> pa.RecordBatch:
    """Two batches of dead letters in order of position."""
    if not dead.num_rows:
        return more
    both = pa.Table.from_batches([dead, more]).combine_chunks().to_batches()[0]
    return take_rows(both, np.argsort(both.column("position").to_numpy(), kind="stable"))


def unreadable(split: str, start: int, stop: int, message: str, kept: pa.Schema) -> pa.RecordBatch:
    """One `bad_file` dead letter for each position of a range that can't be read: no payload, no row."""
    n = stop - start
    schema = dead_schema(kept)
    splits, positions = pa.array([split] * n, pa.string()), pa.array(np.arange(start, stop, dtype=np.int64))
    return pa.RecordBatch.from_arrays(
        [
            splits,
            positions,
            pa.array([DeadCode.BAD_FILE.value] * n, pa.string()),
            pa.array([message] * n, pa.string()),
            pa.nulls(n, pa.binary()),
            splits,
            positions,
            *([pa.nulls(n, schema.field(DEAD_ROW).type)] if len(kept) else []),
        ],
        schema=schema,
    )
