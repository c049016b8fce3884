"""Parquet files as a source. `source.path` is a file, a folder or a glob, on a disk or behind an fsspec URL.

A split is a range of row numbers of one file. Ranges end at row groups; a row group larger than `split_rows` is cut.
A split's id is made of the file's path below the source's root, its size, the hash of its footer, and the range. A
changed file gives new splits; a copy of the whole source gives the same ones.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from tagstream.schemas.block import Block, Span, Split, split_id
from tagstream.schemas.dead_letters import empty_batch, unreadable
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import JobSpec, ParquetSource
from tagstream.transforms.io.common.block_cutter import BlockCutter, check_columns
from tagstream.transforms.io.common.parquet_rows import counted, read_rows, row_ranges
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.retry import listed, retrying

_GLOB = "*?["
_FOOTER_THREADS = 8
_TO_GO_ON = "Set on_bad_file: dead_letter to go on without it"
_WAITS = (0.1, 0.5, 2.0)
"""Seconds between tries to read a remote file. A store that fails for a moment must not turn rows into dead letters."""


@dataclass(frozen=True)
class _File:
    """A Parquet file as its footer describes it. `error` is set if the footer can't be read or does not fit the job."""

    path: str
    name: str
    size: int
    footer_hash: str
    groups: tuple[int, ...]
    schema: pa.Schema | None
    error: str | None = None


class ParquetFilesSource:
    """See `io.contracts.Source`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = cast("ParquetSource", spec.source)
        self.blocks = spec.blocks
        try:
            self.fs, self.path = fsspec.core.url_to_fs(self.spec.path)
        except (ImportError, ValueError) as error:
            raise SourceError(f"source.path {self.spec.path}: {error}") from None
        self._files = self._inspect()
        first = next((file for file in self._files if file.schema is not None), None)
        if first is None:
            raise SourceError(f"{self._files[0].path}: {self._files[0].error}")
        self.kept = check_columns(cast("pa.Schema", first.schema), self.spec, first.path)
        self._files = [self._alike(file, first.path) for file in self._files]
        bad = [file for file in self._files if file.error]
        if bad and self.spec.on_bad_file == "fail":
            more = f" (and {len(bad) - 1} more files)" if len(bad) > 1 else ""
            raise SourceError(f"{bad[0].path}: {bad[0].error}{more}. {_TO_GO_ON}")
        self.cutter = BlockCutter(self.spec, self.kept, self.blocks)

    def splits(self) -> list[Split]:
        return [split for file in self._files for split in self._splits_of(file)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": []}  # workers need only their splits, not the list of all files

    def read(self, split: Split, start: int) -> Iterator[Block]:
        path = split.payload["path"]
        stop = cast("int", split.stop)
        known_bad = split.payload.get("error")
        attempts = 1 if known_bad or isinstance(self.fs, LocalFileSystem) else len(_WAITS) + 1
        position = start
        try:
            for attempt in retrying(OSError, listed(*_WAITS), attempts=attempts):
                with attempt:
                    if known_bad:
                        raise OSError(known_bad)
                    for batch in self._batches(split, position, stop):
                        yield from self.cutter.cut(split.id, batch, position)
                        position += batch.num_rows
        except MemoryError:  # Arrow's is an ArrowException too, but says nothing about the file
            raise
        except (OSError, pa.ArrowException) as failed:
            message = f"{path}: can't be read from row {position:,} on: {' '.join(str(failed).split())}"
            if self.spec.on_bad_file == "fail":
                raise SourceError(f"{message}. {_TO_GO_ON}") from failed
            dead = unreadable(split.id, position, stop, message, self.kept)
            yield Block(Span(split.id, position, stop), empty_batch(self.cutter.schema), dead)

    def _batches(self, split: Split, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        columns = list(dict.fromkeys([self.spec.text, *self.kept.names]))
        path = split.payload["path"]
        with self.fs.open(path, "rb") as opened:
            if _footer_hash(opened, opened.seek(0, 2)) != split.payload["footer"]:
                raise SourceError(
                    f"{path}: was replaced while the job ran. Run the job again; it treats the new rows as new input"
                )
            yield from read_rows(opened, columns, start, stop, self.blocks)

    def _splits_of(self, file: _File) -> Iterator[Split]:
        stem = posixpath.splitext(file.name)[0]
        identity = {"path": file.name, "size": file.size, "footer": file.footer_hash}
        if file.error:
            yield Split(split_id(stem, **identity, error=True), 0, 1, {"path": file.path, "error": file.error})
            return
        payload = {"path": file.path, "footer": file.footer_hash}
        for start, stop in row_ranges(file.groups, self.spec.split_rows):
            yield Split(split_id(stem, **identity, start=start, stop=stop), start, stop, payload)

    def _inspect(self) -> list[_File]:
        root, paths = self._find()
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            return list(pool.map(lambda path: self._footer(path, posixpath.relpath(path, root)), paths))

    def _find(self) -> tuple[str, list[str]]:
        """The source's root folder and the files below it, in order."""
        path = self.path
        try:
            if any(char in path for char in _GLOB) and not self.fs.exists(path):
                head = path[: min(path.index(char) for char in _GLOB if char in path)]
                root = head.rpartition("/")[0] or "/"
                paths = [found for found in self.fs.glob(path) if self.fs.isfile(found)]
            elif self.fs.isdir(path):
                root = path
                paths = [
                    found
                    for found in self.fs.find(path)
                    if found.endswith((".parquet", ".parq", ".pq"))
                    and not any(p.startswith(("_", ".")) for p in posixpath.relpath(found, path).split("/"))
                ]
            else:
                root, paths = posixpath.dirname(path), [path] if self.fs.exists(path) else []
        except OSError as error:
            raise SourceError(f"source.path {self.spec.path}: {error}") from None
        if not paths:
            reason = "holds no Parquet file (.parquet, .parq, .pq)" if self.fs.isdir(path) else "no such file"
            raise SourceError(f"source.path {self.spec.path}: {reason}")
        return root, sorted(paths)

    def _footer(self, path: str, name: str) -> _File:
        try:
            size = int(self.fs.size(path))
            with self.fs.open(path, "rb") as opened:
                digest = _footer_hash(opened, size)
                opened.seek(0)
                file = pq.ParquetFile(opened)
                return _File(path, name, size, digest, counted(file.metadata), file.schema_arrow)
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # UnicodeDecodeError: damaged column name
            size = int(self.fs.size(path) or 0) if self.fs.exists(path) else 0
            return _File(path, name, size, "", (), None, " ".join(str(error).split()))

    def _alike(self, file: _File, first: str) -> _File:
        """The file; `error` is set if its columns differ from those of file `first`."""
        if file.schema is None:
            return file
        try:
            kept = check_columns(file.schema, self.spec, file.path)
            if other := sorted({*kept.names} ^ {*self.kept.names}):  # with keep: '*' only
                has = "there is a" if other[0] in kept.names else "there is no"
                raise SourceError(
                    f"{file.path}: {has} column {other[0]!r}, unlike in {first}: keep: '*' needs the same columns in "
                    "all files; list those to keep"
                )
            for mine, theirs in zip((kept.field(name) for name in self.kept.names), self.kept, strict=True):
                if mine.type != theirs.type:
                    raise SourceError(f"{file.path}: column {mine.name!r} is {mine.type}, but {theirs.type} in {first}")
        except SourceError as error:
            message = str(error).removeprefix(f"{file.path}: ")
            return _File(file.path, file.name, file.size, file.footer_hash, (), None, message)
        return file


def _footer_hash(opened: IO[bytes], size: int) -> str:
    """SHA-256 of a file's footer. `size`: the file's bytes. Raises OSError if there is no footer."""
    opened.seek(max(0, size - 8))
    tail = opened.read(8)
    if tail[4:] != b"PAR1":
        raise OSError("not a Parquet file, or cut off: the footer is missing")
    length = int.from_bytes(tail[:4], "little")
    opened.seek(max(0, size - 8 - length))
    return hashlib.sha256(opened.read(length)).hexdigest()


def open_source(spec: JobSpec, _: JobContext) -> ParquetFilesSource:
    """See `io.registry.open_source`."""
    return ParquetFilesSource(spec)
