"""Dead letters of a Parquet sink as a source: what `replay` reads.

Each file of dead letters is one split. Its rows keep the id and kept columns they had, and remember where they were
first seen. When a file's split is done, the file moves to `_replayed`: what it held is labelled now, or is in a newer
file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from schemas.block import ORIGIN_POSITION, ORIGIN_SPLIT, POSITION, TEXT, Block, Span, Split, split_id, take_rows
from schemas.errors import SourceError
from schemas.results import DEAD_ROW, dead_schema
from schemas.spec import JobSpec
from transforms.io import Progress
from transforms.io.folder import Folder

REPLAYED = "_replayed"


class DeadLetterSource:
    """A `transforms.io.Source`. Raises SourceError if there is nothing to replay."""

    def __init__(self, spec: JobSpec, folder: Folder) -> None:
        self.blocks = spec.blocks
        self.folder = folder
        names = self._names()
        if not names:
            raise SourceError(f"{folder.url}: no dead letters to replay")
        schema = self._open(names[0]).schema_arrow
        self.kept = pa.schema(list(schema.field(DEAD_ROW).type) if DEAD_ROW in schema.names else [])
        if schema != dead_schema(self.kept):
            raise SourceError(f"{folder.at(names[0])}: not a dead-letter file of this version")

    def splits(self) -> list[Split]:
        return [
            Split(split_id("replay", file=name), 0, self._open(name).metadata.num_rows, {"file": name})
            for name in self._names()
        ]

    def read(self, split: Split, start: int) -> Iterator[Block]:
        table = self._open(split.payload["file"]).read()
        if table.num_rows and pc.all(pc.is_null(table["payload"])).as_py() and not _without_payload(table):
            raise SourceError(
                f"{self.folder.url}: the dead letters have no payload (payload: false); nothing to replay"
            )
        position = start
        for batch in table.slice(start).combine_chunks().to_batches(max_chunksize=self.blocks.rows):
            yield self._block(split.id, batch, position)
            position += batch.num_rows

    def retire(self, progress: dict[str, Progress]) -> None:
        """Move away the files whose rows all have been replayed."""
        for split in self.splits():
            if split.id in progress and progress[split.id].stop == split.stop:
                name = split.payload["file"]
                self.folder.fs.makedirs(self.folder.at(REPLAYED), exist_ok=True)
                self.folder.fs.mv(self.folder.at(name), self.folder.at(f"{REPLAYED}/{name}"))

    def _block(self, split: str, batch: pa.RecordBatch, start: int) -> Block:
        """Rows with a payload as text; the others stay dead, for the reason they had."""
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

    def _names(self) -> list[str]:
        return sorted(name for name in self.folder.names() if name.endswith(".parquet"))

    def _open(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.folder.at(name), filesystem=self.folder.fs)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.folder.at(name)}: can't be read: {error}") from None


def _without_payload(table: pa.Table) -> bool:
    """Every letter is of a kind that never has a payload."""
    return bool(pc.all(pc.is_in(table["code"], pa.array(["null_text", "bad_file"]))).as_py())
