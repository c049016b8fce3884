"""Parquet files as a source. `source.path` is a file, a folder or a glob, on a disk or behind an fsspec URL.

Which files are data: `discovery`. What files with different columns have in common: `agreement`. The rows that come are
counted against what the files' footers say.

A split is a range of row numbers of one file. Ranges end at row groups; a row group larger than `split_rows` is cut.
A split's id is made of the file's path below the source's root, its size, the hash of its footer, and the range. A
changed file gives new splits; a copy of the whole source gives the same ones.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import Any, cast

import fsspec
import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from tagstream.schemas.block import Block, Span, Split, split_id
from tagstream.schemas.dead_letters import empty_batch, unreadable
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import JobSpec, ParquetSource
from tagstream.transforms.io.common.block_cutter import BlockCutter
from tagstream.transforms.io.common.parquet_rows import row_ranges, rows_of, streamed
from tagstream.transforms.io.contracts import InputCounts
from tagstream.transforms.io.parquet.agreement import Agreement, with_text
from tagstream.transforms.io.parquet.columns import FileColumns
from tagstream.transforms.io.parquet.discovery import Found, find_files, skipped_note
from tagstream.transforms.io.parquet.files import InputFile, footer_hash, inspect
from tagstream.transforms.io.parquet.int96 import DEFAULT_UNIT, check_exact, int96_columns, stored_so, unit_of
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.retry import listed, retrying

_TO_GO_ON = "Set on_bad_file: dead_letter to go on without it"
_WAITS = (0.1, 0.5, 2.0)
"""Seconds between tries to read a remote file. A store that fails for a moment must not turn rows into dead letters."""


class ParquetFilesSource:
    """See `io.contracts`: `Source` and `CountedSource`."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = cast("ParquetSource", spec.source)
        self.blocks = spec.blocks
        try:
            self.fs, self.path = fsspec.core.url_to_fs(self.spec.path)
        except (ImportError, ValueError) as error:
            raise SourceError(f"source.path {self.spec.path}: {error}") from None
        found = self._find()
        self.int96 = DEFAULT_UNIT
        agreed, good = self._agree(found)
        if (unit := self._int96_unit(agreed.kept, good)) != self.int96:
            self.int96 = unit
            agreed, good = self._agree(found)
        self.kept = agreed.kept
        self.counts = InputCounts(len(self._files), sum(file.rows for file in good), found.skipped)
        self.notes = ([skipped_note(found.skipped)] if found.skipped else []) + agreed.notes
        self.cutter = BlockCutter(self.spec, self.kept, self.blocks)

    def _agree(self, found: Found) -> tuple[Agreement, list[InputFile]]:
        """What the files have in common, and those that can be read."""
        self._files = with_text(inspect(self.fs, found.root, found.files, self.int96), self.spec)
        good = [file for file in self._files if file.error is None]
        if not good:
            raise SourceError(f"{self._files[0].path}: {self._files[0].error}")
        self._refuse_bad_files()
        return Agreement(self.fs, good, self.spec), good

    def _int96_unit(self, kept: pa.Schema, files: list[InputFile]) -> str:
        """The unit in which the first file's kept timestamps that are stored as INT96 are exact."""
        for file in files:
            assert file.schema is not None
            if file.int96 and file.rows:
                columns = FileColumns(file.schema, file.path, self.spec.text, kept)
                if names := stored_so(columns.selection, file.int96):
                    try:
                        return unit_of(self.fs, file.path, names)
                    except (OSError, pa.ArrowException) as error:
                        raise SourceError(f"{file.path}: {', '.join(names)} can't be read: {error}") from None
        return DEFAULT_UNIT

    def splits(self) -> list[Split]:
        return [split for file in self._files for split in self._splits_of(file)]

    def names(self) -> set[str]:
        return {file.name for file in self._files}

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
            if position != stop:
                raise OSError(f"the file was to give the rows up to {stop:,}")
        except MemoryError:  # Arrow's is an ArrowException too, but says nothing about the file
            raise
        except (OSError, pa.ArrowException) as failed:
            message = f"{path}: can't be read from row {position:,} on: {' '.join(str(failed).split())}"
            if self.spec.on_bad_file == "fail":
                raise SourceError(f"{message}. {_TO_GO_ON}") from failed
            dead = unreadable(split.id, position, stop, message, self.kept)
            yield Block(Span(split.id, position, stop), empty_batch(self.cutter.schema), dead)

    def _batches(self, split: Split, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        path = split.payload["path"]
        with self.fs.open(path, "rb") as opened:
            if footer_hash(opened, opened.seek(0, 2)) != split.payload["footer"]:
                raise SourceError(
                    f"{path}: was replaced while the job ran. Run the job again; it treats the new rows as new input"
                )
            file = streamed(opened, self.int96)
            columns = FileColumns(file.schema_arrow, path, self.spec.text, self.kept)
            int96 = stored_so(columns.selection, int96_columns(file.schema))
            check_exact(opened, path, int96, (start, stop), self.int96)
            for batch in rows_of(file, columns.selection, start, stop, self.blocks):
                yield columns.apply(batch)

    def _splits_of(self, file: InputFile) -> Iterator[Split]:
        stem = posixpath.splitext(file.name)[0]
        identity = {"path": file.name, "size": file.size, "footer": file.footer_hash}
        if file.error:
            yield Split(
                split_id(stem, **identity, error=True), 0, 1, {"path": file.path, "name": "", "error": file.error}
            )
            return
        payload = {"path": file.path, "name": file.name, "footer": file.footer_hash}
        for start, stop in row_ranges(file.groups, self.spec.split_rows):
            yield Split(split_id(stem, **identity, start=start, stop=stop), start, stop, payload)

    def _refuse_bad_files(self) -> None:
        """Raises SourceError for the first file without a footer or a text, unless `on_bad_file` allows it."""
        bad = [file for file in self._files if file.error is not None]
        if not bad or self.spec.on_bad_file != "fail":
            return
        more = f" (and {len(bad) - 1} more files)" if len(bad) > 1 else ""
        unreadable = bad[0].schema is None
        advice = _TO_GO_ON if unreadable else "Its rows would be lost without it: mend it, or take it out of the input"
        raise SourceError(f"{bad[0].path}: {bad[0].error}{more}. {advice}")

    def _find(self) -> Found:
        try:
            found = find_files(self.fs, self.path)
            if not found.files:
                here = found.skipped or self.fs.isdir(self.path)
                reason = "holds no Parquet file (.parquet, .parq, .pq)" if here else "no such file"
                others = f"; {skipped_note(found.skipped)}" if found.skipped else ""
                raise SourceError(f"source.path {self.spec.path}: {reason}{others}")
        except OSError as error:
            raise SourceError(f"source.path {self.spec.path}: {error}") from None
        return found


def open_source(spec: JobSpec, _: JobContext) -> ParquetFilesSource:
    """See `io.registry.open_source`."""
    return ParquetFilesSource(spec)
