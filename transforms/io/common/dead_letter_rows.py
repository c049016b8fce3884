"""Converts dead letters to rows of a table and back. Every sink that keeps dead letters in a table uses this module.

Several jobs may share one table. Its columns must not depend on a job's kept columns, so the id and the kept columns
of a row become one JSON column.
"""

from __future__ import annotations

import pyarrow as pa

from tagstream.schemas.dead_letters import DEAD_ROW, dead_schema
from tagstream.transforms.io.common.json_text import as_json, from_json

REPLACES = "replaces"
"""Payload key of a replayed split: split and stop of the dead letters that the commit removes."""


def letter_rows(job: str, dead: pa.RecordBatch) -> pa.RecordBatch:
    """Dead letters as table rows. The first column is the job's name."""
    n = dead.num_rows
    rows = as_json(dead.column(DEAD_ROW)) if DEAD_ROW in dead.schema.names else pa.nulls(n, pa.string())
    columns = {name: dead.column(name) for name in dead.schema.names}
    columns |= {"job": pa.array([job] * n, pa.string()), DEAD_ROW: rows}
    order = ["job", *(name for name in dead.schema.names if name != DEAD_ROW), DEAD_ROW]
    return pa.RecordBatch.from_arrays([columns[name] for name in order], order)


def letters_of(rows: pa.Table, kept: pa.Schema) -> pa.Table:
    """The inverse of `letter_rows`. `kept`: schema of the id and kept columns inside the JSON."""
    schema = dead_schema(kept)
    held = from_json(rows[DEAD_ROW].to_pylist(), pa.struct(list(kept)))
    columns = [held if f.name == DEAD_ROW else rows[f.name].cast(f.type) for f in schema]
    return pa.table(columns, schema=schema)
