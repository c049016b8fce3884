"""Labels rows of a table again because the model has changed.

An interrupted reclassification must continue, not begin again. So the rows to label again become new splits of the
plan, and one transaction appends them and gives the output the new model's fingerprint. Before that transaction
nothing has changed. After it the new splits are ordinary work, and their chains tell how much of it is done.
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
from tagstream.transforms.io.database.label_table import LabelTable
from tagstream.transforms.io.database.ledger import Ledger, columns_in
from tagstream.transforms.io.database.session import Session

_ROW = "tagstream_row"


def check_choice(session: Session, spec: JobSpec, target: LabelTable, again: Again) -> None:
    """Raises SpecError if the sink can't replace labels, or if `again` needs a column that the table lacks."""
    if target.sink.mode == "append":
        raise SpecError(
            "--reclassify replaces labels by key, but this sink only appends. Set sink.mode: upsert or update, replace "
            "the output with --overwrite, or write to another table under another job name"
        )
    there = columns_in(session, target.table) or []
    for entry in spec.infer:
        needed = [entry.as_] if again.labels else []
        needed += [f"{entry.as_}_score"] if again.below is not None else []
        if missing := [name for name in needed if name not in there]:
            raise SpecError(
                f"--reclassify-below and --reclassify-label need the column {missing[0]!r}, which the table lacks"
            )


def take_over(session: Session, ledger: Ledger, fingerprint: Fingerprint, planned: int, more: list[Split]) -> None:
    """Give the output the new fingerprint and append `more` to the plan of `planned` splits.

    Fails as DUPLICATE if another process was first.
    """
    if more:
        ledger.insert_plan(session, planned, more)
        if (again := again_of(more[0])) is not None and again.everything:
            ledger.forget_all_letters(session)
    ledger.set_fingerprint(session, fingerprint)


def rows_chosen(session: Session, spec: JobSpec, target: LabelTable, block: Block, again: Again) -> Block:
    """The rows of the block whose label in the table is one that `again` asks for: by name, by low score, or both."""
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
