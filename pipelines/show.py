"""A few committed rows, text beside labels, for the eye."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.job import Job
from schemas.block import POSITION, TEXT
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
        blocks = [b.batch.select([column, TEXT]) for s in job.splits for b in job.source.read(s, s.start)]
        texts = pa.Table.from_batches(blocks).rename_columns([column, spec.source.text])
        found = pc.index_in(_decoded(rows[column]), _decoded(texts[column]))
        rows = rows.append_column(spec.source.text, texts[spec.source.text].take(found)).filter(pc.is_valid(found))
        rows = rows.select([column, spec.source.text, *(n for n in rows.column_names[:-1] if n != column)])
    return rows.slice(0, count)


def _decoded(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return ids.cast(ids.type.value_type) if pa.types.is_dictionary(ids.type) else ids


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
