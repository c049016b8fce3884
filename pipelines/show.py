"""A few committed rows, text beside labels, for the eye."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.job import Job
from schemas.block import POSITION, TEXT, take_rows
from schemas.errors import SpecError
from schemas.spec import JobSpec, MemorySink, ParquetSink
from transforms.io.folder import Folder
from transforms.io.memory import output


def sample_rows(spec: JobSpec, count: int) -> pa.Table:
    """The first `count` committed rows; with the text in front if it was kept or the id finds it in the first block."""
    rows = _committed(spec, count)
    column = spec.source.id
    if rows.num_rows and column is not None and spec.source.text not in rows.column_names:
        job = Job.open(spec, limit=4 * count)
        blocks = [b.batch for s in job.splits for b in job.source.read(s, s.start)]
        texts: dict[Any, bytes] = {}  # bytes: rows without a label may be no UTF-8
        for block in blocks:
            texts |= zip(block[column].to_pylist(), block[TEXT].cast(pa.large_binary()).to_pylist(), strict=True)
        ids = rows[column].to_pylist()
        found = [number for number, id_ in enumerate(ids) if id_ in texts]
        batch = take_rows(rows.combine_chunks().to_batches()[0], found)
        text = pa.array([texts[ids[number]] for number in found], pa.large_binary()).view(pa.large_string())
        rows = pa.Table.from_batches([batch]).append_column(spec.source.text, text)
        rows = rows.select([column, spec.source.text, *(n for n in rows.column_names[:-1] if n != column)])
    return rows.slice(0, count) if rows.num_columns else rows  # a slice of no columns has rows in Arrow


def _committed(spec: JobSpec, count: int) -> pa.Table:
    if isinstance(spec.sink, MemorySink):
        table = output(spec.sink.name).labels()
        return table.drop_columns([POSITION]).slice(0, count) if table.num_rows else pa.table({})
    if not isinstance(spec.sink, ParquetSink):
        raise SpecError(f"--show reads the output of a parquet sink; this one is {spec.sink.type}")
    folder = Folder(spec.sink.path)
    for name in sorted(name for name in folder.names() if name.endswith(".parquet")):
        file = pq.ParquetFile(folder.at(name), filesystem=folder.fs)
        if file.metadata.num_rows:
            return file.read_row_group(0).slice(0, 4 * count)
    return pa.table({})
