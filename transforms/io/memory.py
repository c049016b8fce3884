"""Source and sink in this process's memory, for tests and notebooks. They keep every promise that real ones keep."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import cast

import pyarrow as pa

from tagstream.schemas.block import POSITION, Block, Split, split_id
from tagstream.schemas.errors import ChainMovedError, LedgerError, SourceError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.schemas.spec import JobSpec, MemorySink, MemorySource
from tagstream.transforms.io.common.block_cutter import BlockCutter, check_columns
from tagstream.transforms.io.common.chain_writer import ChainWriter
from tagstream.transforms.io.contracts import Commit, Progress

_TABLES: dict[str, pa.Table] = {}
_OUTPUTS: dict[str, Output] = {}


class Output:
    """What a memory sink holds: batches of labels and dead letters by (split, start), and the chains' ends."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.fingerprint: Fingerprint | None = None
        self.ends: dict[str, int] = {}
        self.plan: list[Split] = []
        self.commits: dict[tuple[str, int], tuple[list[pa.RecordBatch], list[pa.RecordBatch]]] = {}

    def labels(self) -> pa.Table:
        """All committed labels, in order of split and position; no columns before the first commit."""
        return self._table(0)

    def dead(self) -> pa.Table:
        """All committed dead letters, in order of split and position; no columns before the first commit."""
        return self._table(1)

    def _table(self, kind: int) -> pa.Table:
        batches = [batch for key in sorted(self.commits) for batch in self.commits[key][kind]]
        return pa.Table.from_batches(batches) if batches else pa.table({})


def put_table(name: str, table: pa.Table) -> None:
    """Make an Arrow table readable as `source: {type: memory, table: name}`."""
    _TABLES[name] = table


def output(name: str) -> Output:
    """What `sink: {type: memory, name: name}` holds; made empty at the first call."""
    return _OUTPUTS.setdefault(name, Output())


class _Source:
    def __init__(self, spec: JobSpec) -> None:
        self.columns = cast("MemorySource", spec.source)
        if self.columns.table not in _TABLES:
            raise SourceError(f"no table {self.columns.table!r} in memory; register it with put_table")
        self.table = _TABLES[self.columns.table]
        self.kept = check_columns(self.table.schema, self.columns, f"table {self.columns.table}")
        self.cutter = BlockCutter(self.columns, self.kept, spec.blocks)

    def splits(self) -> list[Split]:
        rows, step = self.table.num_rows, self.columns.split_rows
        return [
            Split(split_id(self.columns.table, table=self.columns.table, start=start), start, min(start + step, rows))
            for start in range(0, rows, step)
        ]

    def read(self, split: Split, start: int) -> Iterator[Block]:
        position = start
        rows = self.table.slice(start, (split.stop or start) - start)
        for batch in rows.to_batches(max_chunksize=self.cutter.blocks.rows):
            yield from self.cutter.cut(split.id, batch, position)
            position += batch.num_rows


class _Writer(ChainWriter):
    def __init__(self, into: Output, split: Split, position: int, commit_every: float) -> None:
        super().__init__(split, position, commit_every)
        self._into = into
        self._staged: list[Block] = []

    def _stage(self, block: Block) -> None:
        self._staged.append(block)

    def _append(self, commit: Commit, seconds: float) -> None:
        with self._into.lock:
            end = self._into.ends.get(self.split.id, self.split.start)
            if end != commit.span.start:
                raise ChainMovedError(end)
            labels = [block.batch for block in self._staged]
            self._into.commits[commit.span.split, commit.span.start] = (labels, [b.dead for b in self._staged])
            self._into.ends[self.split.id] = commit.span.stop

    def _discard(self) -> None:
        self._staged = []


class _Sink:
    def __init__(self, spec: JobSpec) -> None:
        self.spec = cast("MemorySink", spec.sink)

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        if overwrite:
            _OUTPUTS[self.spec.name] = Output()
        held = output(self.spec.name)
        if held.fingerprint is not None and held.fingerprint.hash != fingerprint.hash:
            raise LedgerError(f"memory sink {self.spec.name} holds the output of another job")
        held.fingerprint = fingerprint

    def progress(self) -> dict[str, Progress]:
        return {split: Progress(end) for split, end in output(self.spec.name).ends.items()}

    def plan(self) -> list[Split]:
        return list(output(self.spec.name).plan)

    def extend_plan(self, planned: int, more: list[Split]) -> list[Split]:
        held = output(self.spec.name)
        with held.lock:
            if len(held.plan) == planned:
                held.plan += more
            return list(held.plan)

    def open(self, split: Split, known: int | None = None) -> _Writer:
        held = output(self.spec.name)
        return _Writer(held, split, held.ends.get(split.id, split.start), self.spec.commit_every)

    def sample(self, count: int) -> pa.Table:
        table = output(self.spec.name).labels()
        return table.drop_columns([POSITION]).slice(0, count) if table.num_rows else pa.table({})


def open_source(spec: JobSpec) -> _Source:
    """See `io.registry.open_source`."""
    return _Source(spec)


def open_sink(spec: JobSpec) -> _Sink:
    """See `io.registry.open_sink`."""
    return _Sink(spec)
