"""Finds the rows that a system can't store exactly. Each is a dead letter, and its neighbours are stored."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import Block, take_rows
from tagstream.schemas.dead_letters import buried, merged
from tagstream.schemas.errors import DeadCode

Convert = Callable[[pa.Array, str], pa.Array]
"""Converts a column, given with its name. Raises ArrowException if a value would change."""


def without_inexact(block: Block, names: Collection[str], convert: Convert) -> Block:
    """The block with each row on which `convert` fails turned into a dead letter that names the column."""
    messages: dict[int, str] = {}
    for name in names:
        for row, reason in _failures(block.batch.column(name), name, convert).items():
            messages.setdefault(row, f"column {name!r} can't be stored exactly: {reason}")
    if not messages:
        return block
    rows = sorted(messages)
    letters = buried(block, np.array(rows), DeadCode.REFUSED, [messages[row] for row in rows])
    alive = np.ones(block.batch.num_rows, bool)
    alive[rows] = False
    return replace(block, batch=take_rows(block.batch, np.flatnonzero(alive)), dead=merged(block.dead, letters))


def _failures(column: pa.Array, name: str, convert: Convert) -> dict[int, str]:
    """The rows that can't be converted, with reasons. The whole column is tried first, then halves of what fails."""
    found: dict[int, str] = {}
    parts = [(0, len(column))]
    while parts:
        first, stop = parts.pop()
        try:
            convert(column.slice(first, stop - first), name)
        except pa.ArrowException as error:
            if stop - first == 1:
                found[first] = " ".join(str(error).split())
            else:
                middle = (first + stop) // 2
                parts += [(first, middle), (middle, stop)]
    return found
