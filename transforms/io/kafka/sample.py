"""Reads the newest labels of an output topic, for `--show`."""

from __future__ import annotations

import contextlib
import json
from typing import Any, cast

import pyarrow as pa

from tagstream.schemas.kafka_spec import KafkaSink
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.cluster import Cluster, offsets
from tagstream.transforms.io.kafka.messages_out import header_pairs
from tagstream.transforms.io.kafka.source import read_partition


def newest(job: JobSpec, cluster: Cluster, count: int) -> pa.Table:
    """At most `count` labels, the newest first. A table without columns if there are none.

    With `mode: json`, a row holds the fields of the message's value. With `mode: headers`, a row holds the original
    value as text and the labels. Messages without labels are left out. Raises SourceError.
    """
    spec = cast("KafkaSink", job.sink)
    found: list[tuple[int, dict[str, Any]]] = []
    with contextlib.closing(cluster.consumer()) as consumer:
        partitions = cluster.require(consumer, (spec.topic,))
        starts, stops = (offsets(consumer, partitions, at) for at in ("earliest", "latest"))
    for partition in partitions:
        start = max(starts[partition], stops[partition] - 2 * count)  # half the offsets may be transaction markers
        for *_, records in read_partition(cluster, partition, start, stops[partition], job.blocks):
            for record in records.to_pylist():
                row = _of_headers(job, record) if spec.mode == "headers" else _of_value(job, record["value"])
                if row:
                    found.append((record["timestamp"], row))
    found.sort(key=lambda pair: pair[0], reverse=True)
    if not (rows := [row for _, row in found[:count]]):
        return pa.table({})
    return pa.table({name: _column([row.get(name) for row in rows]) for name in rows[0]})


def _column(values: list[Any]) -> pa.Array:
    """The values as a column; as JSON text if their types differ, because other jobs may write to the same topic."""
    try:
        return pa.array(values)
    except pa.ArrowException:
        return pa.array([json.dumps(value, ensure_ascii=False) for value in values])


def _of_value(job: JobSpec, value: bytes | None) -> dict[str, Any] | None:
    try:
        row = json.loads(value or b"null")
    except ValueError:
        return None
    return row if isinstance(row, dict) and job.infer[0].as_ in row else None


def _of_headers(job: JobSpec, record: dict[str, Any]) -> dict[str, Any] | None:
    told = dict(header_pairs(record["headers"]))
    if job.infer[0].as_ not in told:
        return None
    labels = {
        name: _said(told[name].decode(errors="replace"), text=name in (c.as_, f"{c.as_}_model"))
        for c in job.infer
        for name in c.columns
        if name in told
    }
    return {"value": (record["value"] or b"").decode(errors="replace"), **labels}


def _said(header: str, *, text: bool) -> Any:
    """A header's value. `text`: it is text; otherwise it is JSON."""
    if text:
        return header
    try:
        return json.loads(header)
    except ValueError:
        return header
