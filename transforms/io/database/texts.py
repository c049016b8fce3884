"""The table `<labels>_texts`: which text of each key a job has labelled. It makes `only_new: missing` possible.

Example: a ticket's text is edited after its label was written. The hash of the text that the source reads today differs
from the hash in this table, so the row is labelled again.

One row a key and job: the key, the job, the hash of the text, and the outcome (`labelled` or `dead`). The rows of a
split are written in the transaction that commits its labels, so labels and state never disagree. A row of the source
is missing if

- its text has another hash than the one in this table, or
- its outcome is not `dead`, and the label table has no label for its key. A label that was written before this table
  existed counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import POSITION, TEXT
from tagstream.schemas.sql_spec import SqlSink
from tagstream.transforms.io.database.dialect import Values, beside, last_part, quote
from tagstream.transforms.io.database.label_table import LabelTable
from tagstream.transforms.io.database.session import Session

JOB, HASH, OUTCOME = "tagstream_job", "tagstream_hash", "tagstream_outcome"
_ROW, _SEEN = "tagstream_row", "tagstream_seen"
_NO_TEXT = "-"
"""Stands for the hash where a row has no text."""


class Texts:
    """The state table of one job.

    `target`: the label table. `labels`: the label columns that the job may write. `table`: this table.
    """

    def __init__(self, job: str, sink: SqlSink, target: LabelTable, labels: Sequence[str]) -> None:
        name = beside(sink.table, f"{last_part(sink.table)}_texts")
        self.job, self.target, self.labels = job, target, tuple(labels)
        settings = sink.model_copy(update={"table": name, "mode": "upsert", "adopt": True})
        self.state = LabelTable(settings, (*target.key, JOB), ())
        self.table = self.state.table

    def ensure(self, session: Session, schema: pa.Schema, there: list[str] | None) -> None:
        """Create the table unless it is `there`. `schema`: of the labels."""
        self.labels = tuple(name for name in self.labels if name in schema.names)
        keys = [schema.field(name) for name in self.target.key]
        columns = pa.schema([*keys, *((name, pa.string()) for name in (JOB, HASH, OUTCOME))])
        self.state.ensure(session, columns, there, there or [])

    def forget(self, session: Session, there: list[str] | None) -> None:
        """Delete the job's rows, if the table is `there`."""
        if there is not None:
            values = Values(session.dialect)
            session.run(f"DELETE FROM {self.table} WHERE {quote(JOB)} = {values.add(self.job)}", values.given)

    def missing(self, session: Session, batch: pa.RecordBatch) -> tuple[list[int], pa.RecordBatch]:
        """The numbers of the rows that are missing, and what `store` needs to know about these rows."""
        hashes = _hashes(batch.column(TEXT))
        keys = [self.target.stored(batch.column(name), name) for name in self.target.key]
        count = batch.num_rows
        numbers = pa.array(np.arange(count, dtype=np.int64))
        rows = pa.RecordBatch.from_arrays(
            [*keys, pa.repeat(pa.scalar(self.job), count), hashes, numbers], [*self.target.key, JOB, HASH, _ROW]
        )
        staged = session.stage(f"tagstream_{uuid.uuid4().hex[:12]}", pa.Table.from_batches([rows]).to_reader())
        same = " AND ".join(f"t.{quote(k)} = s.{quote(k)}" for k in self.state.key)
        known, hash_, row = f"t.{quote(HASH)}", f"s.{quote(HASH)}", f"s.{quote(_ROW)}"
        label = (
            f"EXISTS (SELECT 1 FROM {self.target.table} WHERE {self.target.same_key('s', cast=True)} "
            f"AND ({self._labelled()}))"
        )
        found = session.query(
            f"SELECT {row} AS n_, CASE WHEN {known} IS NULL THEN 0 ELSE 1 END AS seen_ "
            f"FROM {self.state.staged_keys(staged, [HASH, _ROW])} AS s LEFT JOIN {self.table} AS t ON {same} "
            f"WHERE CASE WHEN {known} IS NULL THEN NOT {label} WHEN {known} <> {hash_} THEN true "
            f"WHEN t.{quote(OUTCOME)} = 'dead' THEN false ELSE NOT {label} END ORDER BY 1"
        )
        session.run(f"DROP TABLE {staged}")
        chosen: list[int] = found["n_"].to_pylist()
        taken = rows.drop_columns([_ROW]).take(pa.array(chosen, pa.int64()))
        taken = taken.append_column(_SEEN, pc.equal(found["seen_"], 1).combine_chunks())
        return chosen, taken.append_column(POSITION, batch.column(POSITION).take(pa.array(chosen, pa.int64())))

    def forget_labels(self, session: Session, texts: pa.Table) -> None:
        """Remove the labels of texts that have changed. `texts`: rows from `missing`."""
        changed = texts.filter(texts[_SEEN]).select(list(self.target.key))
        if changed.num_rows:
            staged = session.stage(f"tagstream_{uuid.uuid4().hex[:12]}", changed.to_reader())
            self.target.unlabel(session, staged, changed.schema, only=self._labelled())
            session.run(f"DROP TABLE {staged}")

    def store(self, session: Session, texts: pa.Table, dead: pa.Array) -> None:
        """Write the state of rows from `missing`. `dead`: positions of the rows that became dead letters."""
        outcome = pc.if_else(pc.is_in(texts[POSITION], dead), "dead", "labelled")
        rows = texts.drop_columns([_SEEN]).append_column(OUTCOME, outcome)
        staged = session.stage(f"tagstream_{uuid.uuid4().hex[:12]}", rows.to_reader())
        self.state.move(session, staged, rows.schema)
        session.run(f"DROP TABLE {staged}")

    def _labelled(self) -> str:
        return " OR ".join(f"{self.target.table}.{quote(name)} IS NOT NULL" for name in self.labels)


def _hashes(texts: pa.Array) -> pa.Array:
    """The hash of each text, from its bytes, because they need not be valid UTF-8. A loop costs a microsecond a row."""
    held = texts.cast(pa.large_binary())
    return pa.array(
        [_NO_TEXT if text is None else blake2b(text, digest_size=16).hexdigest() for text in held.to_pylist()],
        pa.string(),
    )
