"""Labelling rows of a table again: another model takes the table over, and which rows it is asked for.

What is done once must not be done again by a rerun. So the rows come as splits of their own, appended to the plan in
the transaction that makes the output the other model's: before it nothing has changed, after it they are work like any
other, whose chains say how far it is.
"""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import Block, Split, take_rows
from tagstream.schemas.errors import SpecError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import Again, again_of
from tagstream.transforms.io.database.dialect import Values, quote
from tagstream.transforms.io.database.label_table import Target
from tagstream.transforms.io.database.ledger import Ledger, columns_in
from tagstream.transforms.io.database.session import Session

_ROW = "tagstream_row"


def check_choice(session: Session, spec: JobSpec, target: Target, again: Again) -> None:
    """Raises SpecError if labels can't be replaced there, or the choice names what the table does not have."""
    if target.sink.mode == "append":
        raise SpecError(
            "--reclassify replaces labels by key; this sink only appends. Set sink.mode: upsert or update, replace the "
            "output with --overwrite, or write beside it under another name"
        )
    there = columns_in(session, target.table) or []
    for entry in spec.infer:
        needed = [entry.as_] if again.labels else []
        needed += [f"{entry.as_}_score"] if again.below is not None else []
        if missing := [name for name in needed if name not in there]:
            raise SpecError(f"--reclassify-below and -label look at column {missing[0]!r}, which the table lacks")


def take_over(session: Session, ledger: Ledger, fingerprint: Fingerprint, planned: int, more: list[Split]) -> None:
    """The rows of the ledger's tables. Fails as DUPLICATE if another process was first."""
    if more:
        ledger.insert_plan(session, planned, more)
        if (again := again_of(more[0])) is not None and again.everything:
            ledger.forget_all_letters(session)
    ledger.set_fingerprint(session, fingerprint)


def rows_chosen(session: Session, spec: JobSpec, target: Target, block: Block, again: Again) -> Block:
    """The block without the rows whose label in the table is another one, or sure enough."""
    keys = block.batch.select(list(target.key))
    numbers = pa.array(np.arange(block.batch.num_rows, dtype=np.int64))
    rows = pa.RecordBatch.from_arrays([*keys.columns, numbers], [*target.key, _ROW])
    staged = session.stage(f"tagstream_{uuid.uuid4().hex[:12]}", pa.Table.from_batches([rows]).to_reader())
    values = Values(session.dialect)
    choices = []
    for entry in spec.infer:
        parts = []
        if again.labels:
            marks = [values.add(label) for label in again.labels]
            parts.append(f"{target.table}.{quote(entry.as_)} IN ({', '.join(marks)})")
        if again.below is not None:
            parts.append(f"{target.table}.{quote(f'{entry.as_}_score')} < {values.add(again.below)}")
        choices.append(f"({' AND '.join(parts)})")
    found = session.query(
        f"SELECT s.{quote(_ROW)} AS n_ FROM {target.table} JOIN {target.staged_keys(staged, [_ROW])} AS s "
        f"ON {target.same_key('s')} WHERE {' OR '.join(choices)} ORDER BY 1",
        values.given,
    )
    session.run(f"DROP TABLE {staged}")
    return Block(block.span, take_rows(block.batch, found["n_"].to_pylist()), block.dead)
