"""Turns a source's record batches into blocks: checks and renames columns, cuts by rows and bytes.

Every source uses this module, whatever system its batches come from.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import POSITION, TEXT, Block, Span, Split
from tagstream.schemas.dead_letters import no_dead
from tagstream.schemas.errors import LedgerError, SourceError
from tagstream.schemas.spec import Blocks
from tagstream.schemas.spec_base import SourcePart
from tagstream.transforms.tokenization.text_checks import as_text, is_text


def check_planned(planned: list[Split], name: str, here: str) -> None:
    """Raises LedgerError if the plan was made for another input than `here`.

    Each split's payload holds its input under the key `name`, for example "table".
    """
    if planned and planned[0].payload[name] != here:
        raise LedgerError(
            f"the output was begun for {planned[0].payload[name]}, not for {here}: give the job another name and "
            "output, or start again with --overwrite"
        )


def check_columns(schema: pa.Schema, columns: SourcePart, where: str) -> pa.Schema:
    """Schema of the key and kept columns; with `keep: '*'`, of all but the text, in the order of `schema`.

    Raises SourceError, naming `where`, if a column is missing, there twice, or holds no text.
    """
    names = columns.kept
    if columns.keeps_all:
        names = tuple(name for name in schema.names if name != columns.text or name in columns.key)
    wanted = [(columns.text, "source.text"), *((name, "source.id") for name in columns.key)]
    for name, field in [*wanted, *((name, "source.keep") for name in names if name not in columns.key)]:
        if schema.get_field_index(name) < 0:
            if name in schema.names:
                raise SourceError(f"{where}: has several columns named {name!r}")
            raise no_column(where, name, field, schema.names)
    check_text(schema.field(columns.text).type, columns.text, where)
    # nullable: rows of an unreadable file have no values, and another file of the source may allow nulls
    return pa.schema([schema.field(name).remove_metadata().with_nullable(True) for name in names])


def check_text(kind: pa.DataType, name: str, where: str) -> None:
    """Raises SourceError, naming `where`, if a column holds no text."""
    if not is_text(kind):
        raise SourceError(f"{where}: column {name!r} is {kind}, not text; set source.text to a text column")


def no_column(where: str, name: str, field: str, names: list[str]) -> SourceError:
    """The error for a column that is not there. `field`: of the specification; `names`: what there is."""
    close = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return SourceError(f"{where}: no column {name!r} ({field}); {hint}there are: {', '.join(names[:20])}")


class BlockCutter:
    """Cuts record batches into blocks no larger than the specification's `blocks` allows."""

    def __init__(self, columns: SourcePart, kept: pa.Schema, blocks: Blocks) -> None:
        self.columns = columns
        self.kept = kept
        self.blocks = blocks
        self.schema = pa.schema(
            [*kept, pa.field(TEXT, pa.large_string()), pa.field(POSITION, pa.int64(), nullable=False)]
        )
        self._no_dead = no_dead(kept)

    def cut(self, split: str, batch: pa.RecordBatch, start: int) -> Iterator[Block]:
        """Blocks of `batch`. Row `i` gets position `start + i`."""
        positions = pa.array(np.arange(start, start + batch.num_rows, dtype=np.int64))
        arrays = [batch.column(name) for name in self.kept.names]
        text = as_text(batch.column(self.columns.text), self.columns.text)
        whole = pa.RecordBatch.from_arrays([*arrays, text, positions], schema=self.schema)
        for piece in self._pieces(whole):
            first = start + piece[0]
            yield Block(Span(split, first, first + piece[1]), whole.slice(piece[0], piece[1]), self._no_dead)

    def _pieces(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int]]:
        """(offset, rows) of each block."""
        row_bytes = max(1.0, batch.nbytes / max(1, batch.num_rows))
        if batch.num_rows <= self.blocks.rows and batch.nbytes <= self.blocks.bytes:
            if batch.num_rows:
                yield 0, batch.num_rows
            return
        offsets = np.asarray(batch.column(TEXT).cast(pa.large_binary()).buffers()[1]).view(np.int64)
        offsets = offsets[batch.column(TEXT).offset :][: batch.num_rows + 1]
        other = row_bytes - (offsets[-1] - offsets[0]) / batch.num_rows
        at = 0
        while at < batch.num_rows:
            size = (offsets[at + 1 :] - offsets[at]) + other * np.arange(1, batch.num_rows - at + 1)
            rows = max(1, min(self.blocks.rows, int(np.searchsorted(size, self.blocks.bytes, side="right"))))
            rows = min(rows, batch.num_rows - at)
            yield at, rows
            at += rows
