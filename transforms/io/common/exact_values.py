"""Finds the rows that a system can't store exactly. Each is a dead letter, and its neighbours are stored."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import Block, failing_rows, without_rows
from tagstream.schemas.dead_letters import buried, merged
from tagstream.schemas.errors import DeadCode

Convert = Callable[[pa.Array, str], pa.Array]
"""Converts a column, given with its name. Raises ArrowException if a value would change."""


def exactly(block: Block, names: Collection[str], convert: Convert) -> tuple[Block, pa.RecordBatch]:
    """The block without the rows that can't be converted, and these columns of its other rows, converted.

    A row on which `convert` fails becomes a dead letter of the block. Its message names the column.
    """
    try:
        return block, _converted(block, names, convert)
    except pa.ArrowException:
        messages: dict[int, str] = {}
        for name in names:
            for row, error in _failures(block.batch.column(name), name, convert).items():
                reason = " ".join(str(error).split())
                messages.setdefault(row, f"column {name!r} can't be stored exactly: {reason}")
    rows = np.array(sorted(messages), np.int64)
    letters = buried(block, rows, DeadCode.REFUSED, [messages[row] for row in rows.tolist()])
    rest = replace(block, batch=without_rows(block.batch, rows), dead=merged(block.dead, letters))
    return rest, _converted(rest, names, convert)


def _converted(block: Block, names: Collection[str], convert: Convert) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([convert(block.batch.column(name), name) for name in names], list(names))


def _failures(column: pa.Array, name: str, convert: Convert) -> dict[int, Exception]:
    return failing_rows(len(column), lambda first, stop: convert(column[first:stop], name), pa.ArrowException)
