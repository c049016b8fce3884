"""Dead letters as a source, read by `replay` from a Parquet sink's folder or a sink's table.

Rows keep their id and kept columns and the position where they were first seen. After a replay each row is labelled,
or is a newer dead letter. The old dead letter then goes: a file moves to `_replayed`, and table rows are deleted by
the commit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import (
    END,
    ORIGIN_POSITION,
    ORIGIN_SPLIT,
    POSITION,
    TEXT,
    Block,
    Span,
    Split,
    split_id,
    take_rows,
)
from tagstream.schemas.dead_letters import DEAD_ROW, dead_schema, empty_batch
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import Blocks
from tagstream.transforms.io.common.dead_letter_rows import REPLACES, letters_of
from tagstream.transforms.io.contracts import Progress


class ArrowLetterSource(ABC):
    """A `io.contracts.LetterSource` for dead letters that are stored as Arrow rows.

    `where`: names the dead letters in messages, without secrets.
    """

    def __init__(self, where: str, kept: pa.Schema, blocks: Blocks) -> None:
        self.where = where
        self.kept = kept
        self.blocks = blocks

    @abstractmethod
    def splits(self) -> list[Split]:
        """See `io.contracts.Source`."""

    @abstractmethod
    def _letters(self, split: Split) -> pa.Table:
        """The split's dead letters, with the columns of `dead_schema`."""

    def read(self, split: Split, start: int) -> Iterator[Block]:
        """See `io.contracts.Source`."""
        table = self._letters(split)
        if table.num_rows and pc.all(pc.is_null(table["payload"])).as_py() and not _without_payload(table):
            raise SourceError(
                f"{self.where}: the dead letters were written without their text (payload: false) and can't be replayed"
            )
        position = start
        for batch in table.slice(start).combine_chunks().to_batches(max_chunksize=self.blocks.rows):
            yield self._block(split.id, batch, position)
            position += batch.num_rows
        if split.whole:
            end = self._block(split.id, empty_batch(dead_schema(self.kept)), position)
            yield Block(Span(split.id, position, END), end.batch, end.dead)

    def _block(self, split: str, batch: pa.RecordBatch, start: int) -> Block:
        """A row with a payload becomes a text again. Any other row stays a dead letter, for its old reason."""
        positions = pa.array(range(start, start + batch.num_rows), pa.int64())
        alive = pc.is_valid(batch.column("payload")).to_numpy(zero_copy_only=False)
        kept = batch.column(DEAD_ROW).flatten() if len(self.kept) else []
        live = pa.RecordBatch.from_arrays(
            [
                *kept,
                batch.column("payload").cast(pa.large_binary()).view(pa.large_string()),
                positions,
                batch.column("origin_split"),
                batch.column("origin_position"),
            ],
            schema=pa.schema(
                [
                    *self.kept,
                    pa.field(TEXT, pa.large_string()),
                    pa.field(POSITION, pa.int64(), nullable=False),
                    pa.field(ORIGIN_SPLIT, pa.string()),
                    pa.field(ORIGIN_POSITION, pa.int64()),
                ]
            ),
        )
        live = take_rows(live, np.flatnonzero(alive))
        schema = dead_schema(self.kept)
        moved = {"split": pa.array([split] * batch.num_rows, pa.string()), "position": positions}
        dead = pa.RecordBatch.from_arrays([moved.get(name, batch.column(name)) for name in schema.names], schema=schema)
        dead = take_rows(dead, np.flatnonzero(~alive))
        return Block(Span(split, start, start + batch.num_rows), live, dead)


class TableLetterSource(ArrowLetterSource):
    """Dead letters in a sink's table. The dead letters of one input split form one split here.

    The sink commits such a split as a whole and deletes the dead letters in the same commit.

    `groups`: for each input split its id, the position after its last dead letter, and the number of dead letters.
    `fetch`: the table's rows of a split, below a position. Raises SourceError if there are no dead letters.
    """

    def __init__(
        self,
        where: str,
        kept: pa.Schema,
        blocks: Blocks,
        groups: Sequence[tuple[str, int, int]],
        fetch: Callable[[str, int], pa.Table],
    ) -> None:
        super().__init__(where, kept, blocks)
        if not groups:
            raise SourceError(f"{where}: no dead letters to replay")
        self._groups = sorted(groups)
        self._fetch = fetch

    def splits(self) -> list[Split]:
        return [
            Split(
                split_id("replay", split=split, stop=stop),
                0,
                END,
                {REPLACES: {"split": split, "stop": stop}},
                planned=count,
            )
            for split, stop, count in self._groups
        ]

    def _letters(self, split: Split) -> pa.Table:
        below = split.payload[REPLACES]
        return letters_of(self._fetch(below["split"], below["stop"]), self.kept).sort_by("position")

    def retire(self, progress: dict[str, Progress]) -> None:
        """Does nothing, because each commit has already deleted its dead letters."""


def _without_payload(table: pa.Table) -> bool:
    """Whether every dead letter has a code that never comes with a payload."""
    return bool(pc.all(pc.is_in(table["code"], pa.array(["null_text", "bad_file", "bad_value"]))).as_py())
