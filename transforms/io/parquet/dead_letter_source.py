"""Reads the dead letters of a Parquet sink's folder again, for `replay`."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.schemas.block import Split, split_id
from tagstream.schemas.dead_letters import DEAD_ROW, dead_schema
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.common.atomic_folder import Folder
from tagstream.transforms.io.common.dead_letter_source import ArrowLetterSource
from tagstream.transforms.io.contracts import Progress
from tagstream.transforms.io.parquet.notes import JOB

REPLAYED = "_replayed"


class FolderLetterSource(ArrowLetterSource):
    """Each file is one split. Raises SourceError if the folder holds no dead letters."""

    def __init__(self, spec: JobSpec, folder: Folder) -> None:
        self.folder = folder
        names = self._names()
        if not names:
            raise SourceError(f"{folder.url}: no dead letters to replay")
        schema = self._open(names[0]).schema_arrow
        kept = pa.schema(list(schema.field(DEAD_ROW).type) if DEAD_ROW in schema.names else [])
        if schema != dead_schema(kept):
            raise SourceError(f"{folder.at(names[0])}: this version of tagstream can't read this dead-letter file")
        super().__init__(folder.url, kept, spec.blocks)

    def splits(self) -> list[Split]:
        return [
            Split(split_id("replay", file=name), 0, self._open(name).metadata.num_rows, {"file": name})
            for name in self._names()
        ]

    def _letters(self, split: Split) -> pa.Table:
        return self._open(split.payload["file"]).read()

    def retire(self, progress: dict[str, Progress]) -> None:
        """Move each file whose rows have all been replayed to `_replayed`."""
        for split in self.splits():
            if split.id in progress and progress[split.id].stop == split.stop:
                name = split.payload["file"]
                self.folder.fs.makedirs(self.folder.at(REPLAYED), exist_ok=True)
                self.folder.fs.mv(self.folder.at(name), self.folder.at(f"{REPLAYED}/{name}"))

    def _names(self) -> list[str]:
        return sorted(name for name in self.folder.names() if name.endswith(".parquet") and name != JOB)

    def _open(self, name: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.folder.at(name), filesystem=self.folder.fs)
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self.folder.at(name)}: can't be read: {error}") from None
