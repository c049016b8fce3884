"""Reads a few committed rows for `--show`, with the text beside the labels."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tagstream.pipelines.jobs.job import Job
from tagstream.schemas.block import TEXT, take_rows
from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import ReadableSink
from tagstream.transforms.io.registry import open_sink
from tagstream.transforms.runtime.job_context import JobContext

_LOOK_THROUGH = 100_000
"""How many rows of the input are searched for the texts of the committed rows."""


def readable_sink(spec: JobSpec) -> ReadableSink:
    """The sink of the job. Raises SpecError if its labels can't be shown."""
    sink = open_sink(spec, JobContext(spec.name))
    if not isinstance(sink, ReadableSink):
        raise SpecError(f"--show can't read the labels of this {spec.sink.type} sink; run without it")
    return sink


def sample_rows(spec: JobSpec, count: int) -> pa.Table:
    """At most `count` committed rows. The text is added if the job did not keep it and the id is found in the input."""
    rows = readable_sink(spec).sample(4 * count)
    column = spec.source.id
    if rows.num_rows and not spec.live and isinstance(column, str) and spec.source.text not in rows.column_names:
        texts = _texts(spec, column, rows[column], count)
        ids = rows[column].to_pylist()
        found = [number for number, id_ in enumerate(ids) if id_ in texts]
        if found:
            batch = take_rows(rows.combine_chunks().to_batches()[0], found)
            text = pa.array([texts[ids[number]] for number in found], pa.large_binary()).view(pa.large_string())
            rows = pa.Table.from_batches([batch]).append_column(spec.source.text, text)
            rows = rows.select([column, spec.source.text, *(n for n in rows.column_names[:-1] if n != column)])
    return rows.slice(0, count) if rows.num_columns else rows  # Arrow's slice of a table without columns has rows


def _texts(spec: JobSpec, column: str, ids: pa.ChunkedArray, count: int) -> dict[Any, bytes]:
    """Texts by id, as bytes because a text may not be UTF-8. Stops after `count` texts or `_LOOK_THROUGH` rows."""
    seen = 0
    texts: dict[Any, bytes] = {}
    wanted = set(ids.to_pylist())
    job = Job.open(spec)
    for block in (block.batch for split in job.splits for block in job.source.read(split, split.start)):
        numbers = [number for number, id_ in enumerate(block[column].to_pylist()) if id_ in wanted]
        found = take_rows(block.select([column, TEXT]), numbers)
        texts |= zip(found[column].to_pylist(), found[TEXT].cast(pa.large_binary()).to_pylist(), strict=True)
        seen += block.num_rows
        if len(texts) >= count or seen >= _LOOK_THROUGH:
            break
    return texts
