"""Parquet files as their footers describe them."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.transforms.io.common.parquet_rows import counted
from tagstream.transforms.io.parquet.int96 import int96_columns

_FOOTER_THREADS = 8


@dataclass(frozen=True)
class InputFile:
    """A file of the source. `name`: its path below the source's root. `groups`: rows of each row group.

    `int96`: dotted paths of the columns that are stored as INT96. `error` is set if the footer can't be read
    (`schema` is None then) or the file lacks the text.
    """

    path: str
    name: str
    size: int
    footer_hash: str
    groups: tuple[int, ...]
    schema: pa.Schema | None
    error: str | None = None
    int96: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """What the footer says; 0 if it can't be read."""
        return sum(self.groups)


def inspect(fs: Any, root: str, paths: Sequence[str], unit: str) -> list[InputFile]:
    """Read the footers. `unit`: of timestamps that are stored as INT96."""
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        return list(pool.map(lambda path: _inspected(fs, path, posixpath.relpath(path, root), unit), paths))


def _inspected(fs: Any, path: str, name: str, unit: str) -> InputFile:
    try:
        size = int(fs.size(path))
        with fs.open(path, "rb") as opened:
            digest = footer_hash(opened, size)
            opened.seek(0)
            file = pq.ParquetFile(opened, coerce_int96_timestamp_unit=unit)
            groups, int96 = counted(file.metadata), int96_columns(file.schema)
            return InputFile(path, name, size, digest, groups, file.schema_arrow, int96=int96)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # UnicodeDecodeError: damaged column name
        size = int(fs.size(path) or 0) if fs.exists(path) else 0
        return InputFile(path, name, size, "", (), None, " ".join(str(error).split()))


def footer_hash(opened: IO[bytes], size: int) -> str:
    """SHA-256 of a file's footer. `size`: the file's bytes. Raises OSError if there is no footer."""
    opened.seek(max(0, size - 8))
    tail = opened.read(8)
    if tail[4:] == b"PARE":
        raise OSError("its footer is encrypted; tagstream has no keys. Decrypt the file first")
    if tail[4:] != b"PAR1":
        raise OSError("not a Parquet file, or cut off: the footer is missing")
    length = int.from_bytes(tail[:4], "little")
    opened.seek(max(0, size - 8 - length))
    return hashlib.sha256(opened.read(length)).hexdigest()
