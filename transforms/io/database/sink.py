"""A database table as a sink, with the ledger in tables beside it. Works for every database that has a `Session`.

One commit is one transaction. It inserts the ledger row first, because the row's primary key (job, split, start) lets
only one writer continue. Then it ingests labels and dead letters as Arrow into temporary tables, and moves each into
its table with one statement. A commit can be interrupted at two points:

1. Before the database commits: nothing is committed. The next writer of the chain does the span again.
2. After that, but before the answer arrives: the retry finds its own writer id in the ledger and is done.

Rows wait for their commit in a file (`Spool`). So a commit can be tried again after a lost connection or a deadlock.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import POSITION, Block, Split, take_rows
from tagstream.schemas.dead_letters import DEAD_ROW, buried
from tagstream.schemas.errors import REASONS, ChainMovedError, DeadCode, LedgerError, SinkError, SpecError
from tagstream.schemas.fingerprint import Fingerprint, not_ours
from tagstream.schemas.spec import JobSpec
from tagstream.schemas.sql_spec import SqlSink
from tagstream.transforms.io.common.chain_writer import ChainWriter
from tagstream.transforms.io.common.dead_letter_rows import REPLACES, letter_rows
from tagstream.transforms.io.common.dead_letter_source import TableLetterSource
from tagstream.transforms.io.common.exact_values import exactly
from tagstream.transforms.io.common.spool import Spool
from tagstream.transforms.io.contracts import Again, Commit, Progress, again_of
from tagstream.transforms.io.database.dialect import beside, last_part, quote, table_name
from tagstream.transforms.io.database.label_table import LabelTable
from tagstream.transforms.io.database.ledger import Ledger, columns_in
from tagstream.transforms.io.database.reclassify import check_choice, rows_chosen, take_over
from tagstream.transforms.io.database.refusals import Refused, StagedRows, find_refused
from tagstream.transforms.io.database.session import DatabaseError, Session, Sessions, retried
from tagstream.transforms.io.database.texts import Texts
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.runtime.retry import doubling, every, retrying

_SPOOL_BYTES = 256 << 20
T = TypeVar("T")


class _TableWriter(ChainWriter):
    def __init__(self, sink: TableSink, split: Split, position: int, commit_every: float) -> None:
        super().__init__(split, position, commit_every)
        self._sink = sink
        self._labels: StagedRows | None = None
        self._letters: Spool | None = None
        self._unlabelled: Spool | None = None
        self._texts: list[pa.RecordBatch] = []
        self._dead_at: list[pa.Array] = []
        self._id = uuid.uuid4().hex

    @property
    def due(self) -> bool:
        waiting = sum(spool.nbytes for spool in (self._labels and self._labels.labels, self._letters) if spool)
        return super().due or waiting >= _SPOOL_BYTES

    def missing(self, block: Block) -> Block:
        """See `io.contracts.StateWriter`."""
        texts = self._sink.texts
        if texts is None or not block.batch.num_rows:
            return block
        chosen, state = self._sink.within(lambda session: texts.missing(session, block.batch))
        self._texts.append(state)
        return Block(block.span, take_rows(block.batch, chosen), block.dead)

    def _stage(self, block: Block) -> Block:
        self._sink.know_columns(block.batch.schema)
        target = self._sink.target
        block, labels = exactly(block, [*target.written(block.batch.schema), POSITION], target.stored)
        letters = buried(block, np.arange(labels.num_rows), DeadCode.REFUSED)
        self._labels = self._labels or StagedRows(labels.schema, letters.schema)
        self._labels.add(labels, letters)
        if block.dead.num_rows:
            self._dead_at.append(block.dead.column("position"))
            dead = letter_rows(self._sink.spec.name, block.dead)
            self._letters = self._letters or Spool(dead.schema)
            self._letters.add(dead)
            if again_of(self.split) is not None:  # the old model's label must go, although there is no new one
                held = block.dead.column(DEAD_ROW)
                keys = [target.stored(held.field(held.type.get_field_index(name)), name) for name in target.key]
                self._unlabelled = self._unlabelled or Spool(
                    pa.schema(zip(target.key, (k.type for k in keys), strict=True))
                )
                self._unlabelled.add(pa.RecordBatch.from_arrays(keys, schema=self._unlabelled.schema))
        return block

    def _append(self, commit: Commit, seconds: float) -> Commit:
        assert self._labels is not None
        labels = self._labels
        while True:
            out, dead = commit.rows_out - len(labels.refused), commit.dead + labels.codes()
            told = replace(commit, rows_out=out, dead=dead)
            try:
                self._commit(told, seconds, labels)
            except Refused as refusal:
                labels.refused |= refusal.rows
            except SinkError as failed:
                if failed.transient:
                    raise
                labels.refused |= find_refused(labels, self._try, failed)
            else:
                return told

    def _commit(self, commit: Commit, seconds: float, labels: StagedRows) -> None:
        span = commit.span

        def attempt() -> None:
            try:
                self._sink.within(lambda session: self._move(session, commit, seconds, labels))
            except DatabaseError:  # a key exists already, in the ledger or in the label table
                writer = self._sink.within(lambda session: self._sink.ledger.writer_at(session, span.split, span.start))
                if writer is None:
                    raise
                if writer != self._id:
                    raise ChainMovedError(self._sink.end(self.split)) from None

        try:  # DuckDB reports a duplicate of a key that another transaction has not committed yet
            retrying(DatabaseError, doubling(0.05, 1.6), attempts=7)(attempt)
        except DatabaseError as failure:
            raise SinkError(f"{self._sink.where}: two rows have the same key: {failure}") from None

    def _move(self, session: Session, commit: Commit, seconds: float, labels: StagedRows) -> None:
        """Everything that the transaction of one commit does. The caller commits."""
        sink = self._sink
        sink.ledger.append(session, commit, sink.fingerprint, round(seconds, 3), self._id)
        sink.check_owner(session)
        before = sink.ledger.end(session, commit.span.split, below=commit.span.start)
        before = self.split.start if before is None else before
        if before < commit.span.start:  # another run of this job emptied the ledger, and its chain begins lower
            raise LedgerError(sink.overwritten)
        if before > commit.span.start:
            raise ChainMovedError(before)
        if replaces := self.split.payload.get(REPLACES):
            sink.ledger.forget_letters(session, **replaces)
        texts = pa.Table.from_batches(self._texts) if self._texts else None
        if sink.texts is not None and texts:
            sink.texts.forget_labels(session, texts)
        if labels.left:
            self._move_labels(session, labels, labels.part())
        if (dead := labels.dead()) is not None:
            rows = letter_rows(sink.spec.name, dead)
            with staging(session, pa.Table.from_batches([rows]).to_reader()) as staged:
                sink.move_letters(session, staged, rows.schema)
        if sink.texts is not None and texts:
            refused = [] if dead is None else [dead.column("position")]
            sink.texts.store(session, texts, pa.concat_arrays([pa.array([], pa.int64()), *self._dead_at, *refused]))
        for spool, move in ((self._letters, sink.move_letters), (self._unlabelled, sink.target.unlabel)):
            if spool is not None and spool.rows:
                with staging(session, spool.reader()) as staged:
                    move(session, staged, spool.schema)

    def _move_labels(self, session: Session, labels: StagedRows, rows: pa.RecordBatchReader) -> None:
        """Raises Refused for rows that the database does not change."""
        with staging(session, rows) as staged:
            lost = self._sink.target.move(session, staged, labels.labels.schema)
        if lost:
            numbers = labels.numbers([position for position, _ in lost])
            raise Refused({n: (code, REASONS[code]) for n, (_, code) in zip(numbers, lost, strict=True)})

    def _try(self, rows: pa.RecordBatchReader) -> None:
        """Store rows in a transaction that is rolled back. Raises SinkError."""

        class _Undone(Exception):  # noqa: N818
            pass

        def work(session: Session) -> None:
            with staging(session, rows) as staged:
                self._sink.target.move(session, staged, rows.schema)
            raise _Undone

        with suppress(_Undone):
            try:
                self._sink.within(work)
            except DatabaseError as failure:
                raise SinkError(str(failure)) from None

    def _discard(self) -> None:
        for spool in (self._labels, self._letters, self._unlabelled):
            if spool is not None:
                spool.close()
        self._labels = self._letters = self._unlabelled = None
        self._texts, self._dead_at = [], []


@contextmanager
def staging(session: Session, rows: pa.RecordBatchReader) -> Iterator[str]:
    """A temporary table with the rows, by name. After an error it goes with the transaction."""
    staged = session.stage(f"tagstream_{uuid.uuid4().hex[:12]}", rows)
    yield staged
    session.run(f"DROP TABLE {staged}")


class TableSink:
    """See `io.contracts.Sink`. `connect` opens a session. `where` names the database in messages, without secrets."""

    keeps_state = True
    """See `io.contracts.StateSink`."""

    def __init__(self, spec: JobSpec, context: JobContext, connect: Callable[[], Session], where: str) -> None:
        self.spec = spec
        self.sink = cast("SqlSink", spec.sink)
        self.sessions = Sessions(connect, context)
        self.where = where
        key = self.sink.key or spec.source.key
        if self.sink.mode != "append" and not key:
            raise SpecError(f"sink.mode: {self.sink.mode} finds rows by key. Set source.id or sink.key")
        if missing := [name for name in key if name not in spec.source.kept]:
            raise SpecError(f"sink.key: {missing[0]!r} is neither the source's id nor one of its kept columns")
        own = {name for entry in spec.infer for name in entry.columns}
        if self.sink.mode == "update" and (both := sorted(own & {spec.source.text, *key})):
            raise SpecError(
                f"infer: {both[0]!r} is a column of the source, which labels would overwrite. Choose another name (as)"
            )
        dead = getattr(spec.dead_letters, "table", None)
        self.dead = table_name(dead) if dead else beside(self.sink.table, f"{last_part(self.sink.table)}_dead")
        self.ledger = Ledger(spec.name, self.sink.table, self.dead)
        self.target = LabelTable(self.sink, key, spec.source.kept)
        if spec.source.by_state and set(key) != set(spec.source.key):
            raise SpecError("sink.key: only_new: missing finds rows by the source's key. Leave sink.key out")
        self.texts = Texts(spec.name, self.sink, self.target, sorted(own)) if spec.source.by_state else None
        self.fingerprint = ""

    def prepare(self, fingerprint: Fingerprint, *, overwrite: bool) -> None:
        self.fingerprint = fingerprint.hash

        def work(session: Session) -> None:
            there = columns_in(session, self.target.table)
            texts_there = columns_in(session, self.texts.table) if self.texts else None
            self.ledger.create(session)
            held = self.ledger.job_row(session)
            made = held.made if held else []
            if held is not None and held.target != self.sink.table:
                raise LedgerError(
                    f"{self.where}: job {self.spec.name!r} already writes to {held.target}; give this job another name"
                )
            if held is not None and overwrite:
                there, made = self.target.clear(session, there, made)
                self.ledger.forget(session)
                if self.texts:
                    self.texts.forget(session, texts_there)
                held = None
            if held is not None and held.fingerprint.hash != fingerprint.hash:
                raise LedgerError(self._differs(held.fingerprint, fingerprint))
            if held is None:
                self.ledger.insert_job(session, fingerprint)
            if fingerprint.schema is not None:
                made = self.target.ensure(session, fingerprint.schema, there, made)
                self.ledger.set_made(session, made)
                if self.texts:
                    self.texts.ensure(session, fingerprint.schema, texts_there)

        self._first(work)

    def know_columns(self, schema: pa.Schema) -> None:
        """Create the table or add the missing columns, unless `prepare` knew the columns and did so."""
        if self.target.known:
            return

        def work(session: Session) -> None:
            there = columns_in(session, self.target.table)
            held = self.ledger.job_row(session)
            self.ledger.set_made(session, self.target.ensure(session, schema, there, held.made if held else []))

        self._first(work)

    def _first(self, work: Callable[[Session], None]) -> None:
        """Run `work`, which creates tables. Try again if another process creates the same tables at this moment."""
        try:
            retrying(DatabaseError, every(0), attempts=3)(self.within, work)
        except DatabaseError:
            raise SinkError(f"{self.where}: other processes keep creating and removing the job's tables") from None

    def progress(self) -> dict[str, Progress]:
        return self.within(lambda s: self.ledger.progress(s) if self.ledger.exists(s) else {})

    def plan(self) -> list[Split]:
        """See `io.contracts.Sink`."""
        return self.within(lambda s: self.ledger.plan(s) if self.ledger.exists(s) else [])

    def extend_plan(self, planned: int, more: list[Split]) -> list[Split]:
        """See `io.contracts.Sink`."""
        with suppress(DatabaseError):  # another process was first
            self.within(lambda session: self.ledger.insert_plan(session, planned, more))
        return self.plan()

    def open(self, split: Split, known: int | None = None) -> _TableWriter:
        return _TableWriter(self, split, self.end(split), self.sink.commit_every)

    def made_by(self) -> Fingerprint | None:
        """See `io.contracts.ReclassifyingSink`."""
        held = self.within(lambda s: self.ledger.job_row(s) if self.ledger.exists(s) else None)
        return held.fingerprint if held else None

    def reclassify(self, fingerprint: Fingerprint, planned: int, more: list[Split]) -> bool:
        """See `io.contracts.ReclassifyingSink`."""

        def work(session: Session) -> None:
            for again in filter(None, map(again_of, more[:1])):
                check_choice(session, self.spec, self.target, again)
            take_over(session, self.ledger, fingerprint, planned, more)

        with suppress(DatabaseError):  # another process was first
            self.within(work)
            return True
        return False

    def chosen(self, block: Block, again: Again) -> Block:
        """See `io.contracts.ReclassifyingSink`."""
        if again.everything:
            return block
        return self.within(lambda session: rows_chosen(session, self.spec, self.target, block, again))

    def sample(self, count: int) -> pa.Table:
        """See `io.contracts.ReadableSink`."""

        def work(session: Session) -> pa.Table:
            labels = {name for c in self.spec.infer for name in c.columns}
            ours = {*self.spec.source.kept, self.spec.source.text, *labels}
            names = [name for name in columns_in(session, self.target.table) or () if name in ours]
            if not labels & {*names}:
                return pa.table({})
            made = " OR ".join(f"{quote(c.as_)} IS NOT NULL" for c in self.spec.infer)
            select = ", ".join(quote(name) for name in names)
            return session.query(f"SELECT {select} FROM {self.target.table} WHERE {made} LIMIT {count}")

        return self.within(work)

    def dead_letters(self, kept: Callable[[], pa.Schema]) -> TableLetterSource:
        """See `io.contracts.ReplayingSink`."""
        ledger = self.ledger
        groups = self.within(lambda session: ledger.letters(session) if ledger.exists(session) else [])

        def fetch(split: str, stop: int) -> pa.Table:
            return self.within(lambda session: ledger.letters_below(session, split, stop))

        return TableLetterSource(f"{self.where}: {self.dead}", kept(), self.spec.blocks, groups, fetch)

    def end(self, split: Split) -> int:
        """Where the split's chain ends."""
        end = self.within(lambda session: self.ledger.end(session, split.id))
        return split.start if end is None else end

    def within(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction and return its result. The transaction is retried as a whole.

        Raises SinkError, and DatabaseError of kind DUPLICATE if a key or a table exists already.
        """

        def attempt() -> T:
            with self.sessions.lent() as session:
                result = work(session)
                session.commit()
                return result

        return retried(attempt, SinkError, lambda message: f"{self.where}: {message}")

    def check_owner(self, session: Session) -> None:
        """Raises LedgerError if the output has been overwritten by another run. Locks it until the transaction ends."""
        held = self.ledger.job_row(session, session.dialect.keep_row)
        if held is None or held.fingerprint.hash != self.fingerprint:
            raise LedgerError(self.overwritten)

    @property
    def overwritten(self) -> str:
        """Message for a run whose output was overwritten."""
        return f"{self.where}: the output of job {self.spec.name!r} was overwritten while this one ran"

    def move_letters(self, session: Session, staged: str, schema: pa.Schema) -> None:
        names = ", ".join(quote(name) for name in schema.names)
        session.run(f"INSERT INTO {self.dead} ({names}) SELECT {names} FROM {staged}")

    def _differs(self, held: Fingerprint, mine: Fingerprint) -> str:
        told = not_ours(self.sink.where, held, mine, f"another job {self.spec.name!r}")
        again = "" if self.sink.mode == "append" else "--reclassify labels its rows again, key by key; "
        return f"{told}\n{again}--overwrite replaces that output; another job name and table keep both"
