"""What a Parquet sink remembers beside its rows: the job that owns a folder, and the plan of its splits.

A note is a Parquet file without rows. It has the columns of the folder's other files, and its footer holds JSON. So
every reader that takes all files of the folder for data is right: polars, DuckDB with `out/*`, pandas. A folder that
never got a row can be read too, and has its columns.

Notes are created exclusively, and never changed. Earlier versions kept them as JSON files, which `convert` turns into
notes.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tagstream.schemas.block import Split
from tagstream.schemas.errors import LedgerError, SinkError
from tagstream.transforms.io.common.atomic_folder import Folder
from tagstream.transforms.io.common.plan_text import splits_from, splits_to

JOB = "job.parquet"
"""In a folder of labels: the fingerprint of the job. In a folder of dead letters: the folder of their labels."""
_KEY = b"tagstream-note"
_PLAN = re.compile(r"^_?plan-(\d{9})\.(?:parquet|json)$")
_EARLIER = {JOB: ("_job.json", "_labels.json")}


def put_note(folder: Folder, name: str, text: str, columns: pa.Schema | None) -> bool:
    """Create a note. False if there is one of that name. `columns`: of the folder's files, if they are known."""
    sink = pa.BufferOutputStream()
    schema = (columns or pa.schema([])).with_metadata({_KEY: text.encode()})
    try:
        pq.ParquetWriter(sink, schema).close()
    except pa.ArrowNotImplementedError:
        raise _refusal(schema) from None
    return folder.publish_bytes(sink.getvalue().to_pybytes(), name)


def _refusal(columns: pa.Schema) -> SinkError:
    """The error for the first column whose type Parquet does not have."""
    for field in columns:
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field])).close()
        except pa.ArrowNotImplementedError:
            break
    return SinkError(
        f"column {field.name!r}: Parquet can't hold the type {field.type}. Leave the column out of source.keep or use "
        "a query that casts it"
    )


def read_note(folder: Folder, name: str) -> Any:
    """The content of a note. None if there is none. Raises LedgerError if it is damaged."""
    for found in (name, *_EARLIER.get(name, ())):
        try:
            with folder.fs.open(folder.at(found), "rb") as opened:
                text = opened.read() if found.endswith(".json") else pq.read_metadata(opened).metadata[_KEY]
                return json.loads(text)
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError, pa.ArrowException):
            raise LedgerError(f"{folder.at(found)}: damaged; start again with --overwrite") from None
    return None


def read_plan(folder: Folder) -> list[Split]:
    """The planned splits, in order."""
    return [split for _, splits in sorted(_plans(folder).items()) for split in splits]


def extend_plan(folder: Folder, planned: int, more: list[Split], columns: pa.Schema | None) -> None:
    """Append `more` to a plan of `planned` splits. Does nothing if another process was first."""
    put_note(folder, f"plan-{planned:09d}.parquet", splits_to(more), columns)


def convert(folder: Folder, columns: pa.Schema | None) -> None:
    """Turn the JSON files of an earlier version into notes. Calling this again changes nothing."""
    names = set(folder.names())
    if earlier := [name for name in names if name.endswith(".json") and _PLAN.match(name)]:
        for planned, splits in _plans(folder).items():
            put_note(folder, f"plan-{planned:09d}.parquet", splits_to(splits), columns)
    for name in _EARLIER[JOB]:
        if name in names:
            put_note(folder, JOB, json.dumps(read_note(folder, JOB)), columns)
            earlier.append(name)
    for name in earlier:
        folder.delete(name)


def forget(folder: Folder) -> None:
    """Delete all notes, that of the job last."""
    for name in folder.names():
        if _PLAN.match(name):
            folder.delete(name)
    for name in (*_EARLIER[JOB], JOB):
        folder.delete(name)


def _plans(folder: Folder) -> dict[int, list[Split]]:
    """The parts of the plan, by the number of splits planned before."""
    found = {}
    for name in sorted(folder.names()):
        if match := _PLAN.match(name):
            with folder.fs.open(folder.at(name), "rb") as opened:
                text = opened.read() if name.endswith(".json") else pq.read_metadata(opened).metadata[_KEY]
            found[int(match[1])] = splits_from(text)
    return found
