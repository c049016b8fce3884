"""Dead letters as rows of a table that several jobs may share, and back. For every sink whose dead letters are a table.

The id and the kept columns of a row are JSON there, so that the table is the same for every job.
"""

from __future__ import annotations

import pyarrow as pa

from tagstream.schemas.dead_letters import DEAD_ROW, dead_schema
from tagstream.transforms.io.common.json_text import as_json, from_json

REPLACES = "replaces"
"""In the payload of a split of dead letters: split and stop of those that its commit takes away."""


def letter_rows(job: str, dead: pa.RecordBatch) -> pa.RecordBatch:
    """Dead letters with the name of their job in front."""
    n = dead.num_rows
    rows = as_json(dead.column(DEAD_ROW)) if DEAD_ROW in dead.schema.names else pa.nulls(n, pa.string())
    columns = {name: dead.column(name) for name in dead.schema.names}
    columns |= {"job": pa.array([job] * n, pa.string()), DEAD_ROW: rows}
    order = ["job", *(name for name in dead.schema.names if name != DEAD_ROW), DEAD_ROW]
    return pa.RecordBatch.from_arrays([columns[name] for name in order], order)


def letters_of(rows: pa.Table, kept: pa.Schema) -> pa.Table:
    """Dead letters as they were before they became rows of a table; `kept`: the columns that they have kept."""
    schema = dead_schema(kept)
    held = from_json(rows[DEAD_ROW].to_pylist(), pa.struct(list(kept)))
    columns = [held if f.name == DEAD_ROW else rows[f.name].cast(f.type) for f in schema]
    return pa.table(columns, schema=schema)
