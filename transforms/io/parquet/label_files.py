"""The files of a Parquet sink: their names, what their footers record, and a file that is being written."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.schemas.errors import LedgerError
from tagstream.transforms.io.common.atomic_folder import Folder

KEY = b"tagstream"
"""Footer metadata key of every file. The value is a `Footer` as JSON."""
NAME = re.compile(r"^(?P<split>.+)-(?P<start>\d{15})\.parquet$")
"""Names of files of rows: split and start."""
_GROUP_ROWS = 65_536
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class Footer:
    """One commit, as recorded in the footer of its file. `dead_file`: name of its dead letters under `_tmp`, if any."""

    split: str
    start: int
    stop: int
    rows_in: int
    rows_out: int
    dead: dict[str, int]
    dead_file: str | None
    fingerprint: str
    seconds: float
    writer: str
    source: str | None = None
    """Name of the input file, if the rows are of one; empty if it could not be read. Older outputs do not have it."""

    @classmethod
    def read(cls, folder: Folder, name: str) -> Footer:
        """Raises LedgerError if tagstream did not write the file."""
        try:
            with folder.fs.open(folder.at(name), "rb") as opened:
                return cls(**json.loads(pq.read_metadata(opened).metadata[KEY]))
        except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
            raise LedgerError(f"{folder.at(name)}: not written by tagstream, or damaged: {error}") from None


def footers_of(folder: Folder) -> list[tuple[str, Footer]]:
    """Every commit of an output, with the name of its file, in order of name."""
    names = sorted(name for name in folder.names() if NAME.match(name))
    with ThreadPoolExecutor(8) as pool:
        return list(zip(names, pool.map(lambda name: Footer.read(folder, name), names), strict=True))


def file_name(split: str, start: int) -> str:
    """Name of the file that continues a split's chain at `start`."""
    return f"{split}-{start:015d}.parquet"


class Part:
    """An unfinished Parquet file. Rows are collected until they fill a row group."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str) -> None:
        self.path = path
        self._writer = pq.ParquetWriter(path, schema, compression=compression)
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._batches, self._schema), row_group_size=_GROUP_ROWS)
        self._batches, self._rows, self._bytes = [], 0, 0

    @property
    def size(self) -> int:
        """Bytes, estimated: written row groups as stored, waiting rows as held in memory."""
        return self.path.stat().st_size + self._bytes

    def finish(self, metadata: dict[bytes, bytes]) -> None:
        self.flush()
        self._writer.add_key_value_metadata(metadata)
        self._writer.close()

    def abandon(self) -> None:
        with suppress(OSError, pa.ArrowException):
            self._writer.close()
        self.path.unlink(missing_ok=True)
