"""A folder of Parquet files as a sink. Each file is one commit of a split's chain.

A file's name holds only the split's id and the span's *start*, and is created exclusively. So two writers can't
continue a chain at the same row: creating the name is the compare-and-set. The file's footer holds the span, the
counts, the job's fingerprint and the name under `_tmp` where its dead letters wait.

A commit can be interrupted at three points:

1. Before `publish`: nothing is committed. Temporary files are left over.
2. Between `publish` and `move_in`: the labels are committed and their dead letters wait under `_tmp`. The next writer
   of the chain, or the next start of the job, moves them in before it does anything else.
3. After `move_in`: the commit is complete.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.schemas.block import ORIGIN_POSITION, ORIGIN_SPLIT, POSITION, Block, Split
from tagstream.schemas.dead_letters import dead_schema
from tagstream.schemas.errors import ChainMovedError, LedgerError
from tagstream.schemas.fingerprint import Fingerprint, not_ours
from tagstream.schemas.spec import JobSpec, ParquetDeadLetters, ParquetSink
from tagstream.transforms.io.common.atomic_folder import Folder
from tagstream.transforms.io.common.chain_writer import ChainWriter
from tagstream.transforms.io.common.keep_apart import keep_apart
from tagstream.transforms.io.contracts import Commit, Progress
from tagstream.transforms.io.parquet import notes
from tagstream.transforms.io.parquet.dead_letter_source import FolderLetterSource
from tagstream.transforms.io.parquet.label_files import KEY, NAME, Footer, Part, file_name, footers_of
from tagstream.transforms.io.parquet.replacement import (
    SWITCH_FILE,
    changed_path,
    complete_switch,
    drop_changed,
    replays_of,
    switch,
    switching,
)
from tagstream.transforms.runtime.job_context import JobContext

OVERWRITING = "_overwriting"
"""File that exists while old output is being removed. Until it is gone, the remaining files are not a chain."""


class _ParquetFolderWriter(ChainWriter):
    def __init__(self, sink: ParquetFolderSink, split: Split, position: int) -> None:
        super().__init__(split, position, sink.spec.commit_every)
        self._sink = sink
        self._labels: Part | None = None
        self._letters: Part | None = None
        self._id = uuid.uuid4().hex

    @property
    def due(self) -> bool:
        full = self._labels is not None and self._labels.size >= self._sink.spec.file_bytes
        return full or super().due

    def _stage(self, block: Block) -> None:
        sink = self._sink
        try:
            labels = sink.columns(block)
            if self._labels is None:
                self._labels = Part(sink.folder.new_tmp(), labels.schema, sink.spec.compression)
            self._labels.add(labels)
            if block.dead.num_rows:
                if self._letters is None:
                    self._letters = Part(sink.dead.new_tmp(), block.dead.schema, "zstd")
                self._letters.add(block.dead)
        except OSError as error:
            raise sink.folder.error(error, "writing") from error

    def _append(self, commit: Commit, seconds: float) -> None:
        sink, span = self._sink, commit.span
        assert self._labels is not None
        name = file_name(span.split, span.start)
        aside: str | None = None
        try:
            if self._letters is not None:
                self._letters.finish({})
                aside, self._letters = sink.dead.put_aside(self._letters.path, name), None
            footer = {
                "split": span.split,
                "start": span.start,
                "stop": span.stop,
                "rows_in": commit.rows_in,
                "rows_out": commit.rows_out,
                "dead": dict(commit.dead),
                "dead_file": aside,
                "fingerprint": sink.fingerprint,
                "seconds": round(seconds, 3),
                "writer": self._id,
            }
            if "name" in self.split.payload:
                footer["source"] = self.split.payload["name"]
            self._labels.finish({KEY: json.dumps(footer).encode()})
            won = sink.folder.publish(self._labels.path, name) or Footer.read(sink.folder, name).writer == self._id
            if won and aside:
                sink.dead.move_in(aside, name)
            elif aside:
                sink.dead.drop_aside(aside)
        except OSError as error:
            raise sink.folder.error(error, "committing") from error
        if not won:
            sink.complete_moves(span.split)
            raise ChainMovedError(sink.end(span.split, span.start))

    def _discard(self) -> None:
        for part in (self._labels, self._letters):
            if part is not None:
                part.abandon()
        self._labels = self._letters = None


class ParquetFolderSink:
    """See `io.contracts`: `Sink`, `PlanKeeper`, `ReadableSink`, `ReplayingSink` and `ReplacingSink`."""

    def __init__(self, spec: JobSpec) -> None:
        self.job_spec = spec
        self.spec = cast("ParquetSink", spec.sink)
        self.folder = Folder(self.spec.path)
        self.dead = Folder(getattr(spec.dead_letters, "path", None) or self.spec.path.rstrip("/") + "-dead")
        self.fingerprint = ""
        self._columns: pa.Schema | None = None

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        self.fingerprint, self._columns = fingerprint.hash, fingerprint.schema
        try:
            self.folder.create()
            self.dead.create()
            self._claim_dead(fingerprint)
            if overwrite or self.folder.exists(OVERWRITING):
                self._clear()
            self._claim(fingerprint)
            if self.folder.exists(SWITCH_FILE):
                with switching(self.folder):
                    complete_switch(self.folder, self.dead)
            self.complete_moves()
            self.folder.clear_tmp(everything=False)
            self.dead.clear_tmp(everything=False)
        except OSError as error:
            raise self.folder.error(error, "opening the output") from error

    def progress(self) -> dict[str, Progress]:
        if self.folder.exists(OVERWRITING):
            return {}
        return {
            split: Progress(footer.stop, footer.rows_in, footer.seconds)
            for split, footer in self._last_footers().items()
        }

    def plan(self) -> list[Split]:
        return [] if self.folder.exists(OVERWRITING) else notes.read_plan(self.folder)

    def extend_plan(self, planned: int, more: list[Split]) -> list[Split]:
        try:
            notes.extend_plan(self.folder, planned, more, self._columns)
        except OSError as error:
            raise self.folder.error(error, "writing the plan") from error
        return notes.read_plan(self.folder)

    def open(self, split: Split, known: int | None = None) -> _ParquetFolderWriter:
        self.complete_moves(split.id)
        return _ParquetFolderWriter(self, split, self.end(split.id, split.start if known is None else known))

    def sample(self, count: int) -> pa.Table:
        for name in sorted(name for name in self.folder.names() if name.endswith(".parquet")):
            file = pq.ParquetFile(self.folder.at(name), filesystem=self.folder.fs)
            if file.metadata.num_rows:
                return file.read_row_group(0).slice(0, count)
        return pa.table({})

    def dead_letters(self, kept: Callable[[], pa.Schema]) -> FolderLetterSource:
        self.complete_moves()
        letters = FolderLetterSource(self.job_spec, self.dead)
        letters.retire(self.progress())
        return FolderLetterSource(self.job_spec, self.dead)

    def end(self, split: str, known: int) -> int:
        """Where the chain ends. Starts looking at `known`, a position that the chain has already reached."""
        try:
            while self.folder.exists(name := file_name(split, known)):
                known = Footer.read(self.folder, name).stop
        except OSError as error:
            raise self.folder.error(error, "reading the chain") from error
        return known

    def columns(self, block: Block) -> pa.RecordBatch:
        """The columns to write. With `sink.position`, split and position are added under these names."""
        batch = block.batch
        names = [name for name in batch.schema.names if not name.startswith("__")]
        arrays, fields = [batch.column(name) for name in names], [batch.schema.field(name) for name in names]
        if self.spec.position:
            if ORIGIN_SPLIT in batch.schema.names:
                arrays += [batch.column(ORIGIN_SPLIT), batch.column(ORIGIN_POSITION)]
            else:
                arrays += [pa.array([block.span.split] * batch.num_rows, pa.string()), batch.column(POSITION)]
            fields += [pa.field("split", pa.string()), pa.field("position", pa.int64())]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def _last_footers(self) -> dict[str, Footer]:
        """The footer of each chain's last file, by split id."""
        last: dict[str, int] = {}
        for name in self.folder.names():
            if match := NAME.match(name):
                last[match["split"]] = max(last.get(match["split"], -1), int(match["start"]))
        with ThreadPoolExecutor(8) as pool:
            footers = pool.map(lambda item: Footer.read(self.folder, file_name(*item)), last.items())
            return {footer.split: footer for footer in sorted(footers, key=lambda footer: footer.stop)}

    def complete_moves(self, split: str = "") -> None:
        """Move in the dead letters of committed files, and drop those of commits that lost a race.

        `split`: only this split's; empty for all.
        """
        try:
            for aside, name in self.dead.waiting(split):
                if self.folder.exists(name):
                    committed = Footer.read(self.folder, name).dead_file == aside
                    self.dead.move_in(aside, name) if committed else self.dead.drop_aside(aside)
        except OSError as error:
            raise self.folder.error(error, "moving dead letters in") from error

    def _claim(self, fingerprint: Fingerprint) -> None:
        """Note the job in the folder. If there is a note already, check that it has the same fingerprint."""
        mine = json.dumps({"fingerprint": fingerprint.hash, "parts": fingerprint.parts}, indent=1)
        if self.job() is None and notes.put_note(self.folder, notes.JOB, mine, fingerprint.schema):
            return
        held = self.job()
        if held is None or held.hash != fingerprint.hash:
            told = not_ours(self.spec.path, held, fingerprint)
            raise LedgerError(f"{told}\n--overwrite replaces that output; --set sink.path=… writes to another folder")
        notes.convert(self.folder, fingerprint.schema)

    def _claim_dead(self, fingerprint: Fingerprint) -> None:
        """Record that the dead-letter folder belongs to this output, or raise LedgerError if it belongs to another.

        A dead-letter file has the name of its label file, so two outputs could overwrite each other's dead letters.
        """
        columns = None if fingerprint.kept is None else dead_schema(fingerprint.kept)
        mine = json.dumps({"labels": self.folder.path})
        if (held := notes.read_note(self.dead, notes.JOB)) is None:
            if notes.put_note(self.dead, notes.JOB, mine, columns):
                return
            held = notes.read_note(self.dead, notes.JOB)
        if held is None or held.get("labels") != self.folder.path:
            whose = held.get("labels", "no job, but labels") if held else "another job"
            raise LedgerError(
                f"{self.dead.url} holds the dead letters of {whose}. Choose another folder with "
                f"--set dead_letters.path=…; if that output was moved here, remove {self.dead.at(notes.JOB)}"
            )
        notes.convert(self.dead, columns)

    def job(self) -> Fingerprint | None:
        """The fingerprint of the job that wrote this output. None if there is no output yet."""
        held = notes.read_note(self.folder, notes.JOB)
        return None if held is None else Fingerprint(held["parts"])

    @property
    def can_replace(self) -> bool:
        """See `io.contracts.ReplacingSink`: on a disk."""
        return self.folder.local and self.dead.local

    def origins(self) -> dict[str, str]:
        return {split: footer.source for split, footer in self._last_footers().items() if footer.source is not None}

    def aside(self, fingerprint: Fingerprint) -> ParquetFolderSink:
        where = {"path": changed_path(self.folder)}
        dead = ParquetDeadLetters(path=changed_path(self.dead))
        changed = {"sink": self.spec.model_copy(update=where), "dead_letters": dead}
        sink = ParquetFolderSink(self.job_spec.model_copy(update=changed))
        held = sink.job()
        sink.prepare(fingerprint, overwrite=held is not None and held.hash != fingerprint.hash)
        return sink

    def switch(self, old: Collection[str], new: dict[str, int]) -> None:
        try:
            with switching(self.folder):
                added = [(n, f) for n, f in footers_of(Folder(changed_path(self.folder))) if f.split in new]
                if any(max((f.stop for _, f in added if f.split == split), default=0) < new[split] for split in new):
                    raise LedgerError("another process replaces the same rows. Start the job again")
                gone = [name for name, footer in footers_of(self.folder) if footer.split in old]
                replays = replays_of(gone)
                gone += [name for name, footer in footers_of(self.folder) if footer.split in replays]
                switch(self.folder, self.dead, gone, [name for name, _ in added])
        except OSError as error:
            raise self.folder.error(error, "replacing rewritten rows") from error

    def _clear(self) -> None:
        self.folder.fs.touch(self.folder.at(OVERWRITING))
        for folder in (self.folder, self.dead):
            for name in folder.names():
                if NAME.match(name):
                    folder.delete(name)
            for aside, _ in folder.waiting():
                folder.drop_aside(aside)
            folder.clear_tmp(everything=True)
        if self.can_replace:
            drop_changed(self.folder, self.dead)
        self.folder.delete(SWITCH_FILE)
        notes.forget(self.folder)
        self.folder.delete(OVERWRITING)


def open_sink(spec: JobSpec, _: JobContext) -> ParquetFolderSink:
    """See `io.registry.open_sink`. Raises SpecError if the output lies inside the input."""
    keep_apart(spec.source, cast("ParquetSink", spec.sink).path, getattr(spec.dead_letters, "path", None))
    return ParquetFolderSink(spec)
