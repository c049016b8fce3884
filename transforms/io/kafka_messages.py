"""From blocks to output records: labels as JSON or in headers, dead letters with their reason in headers."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable
from typing import Any, cast

import pyarrow as pa

from schemas.block import POSITION, Block, Split
from schemas.errors import DeadCode, SinkError
from schemas.kafka_spec import KafkaSink
from schemas.results import DEAD_ROW
from schemas.spec import JobSpec
from transforms.io.kafka_blocks import MESSAGE
from transforms.io.kafka_commit import Record

PREFIX = "tagstream"
"""Of the headers that a dead letter has beyond those of its message."""
Headers = list[tuple[str, bytes]]


class Messages:
    """Output records of one split. `count` gives the number of partitions of a topic."""

    def __init__(self, job: JobSpec, dead_topic: str, split: Split, count: Callable[[str], int]) -> None:
        self.job, self.dead_topic, self.split, self._count = job, dead_topic, split, count
        self.spec = cast("KafkaSink", job.sink)

    def labels(self, block: Block) -> list[Record]:
        """One record a row, in order."""
        batch = block.batch
        names = [name for name in batch.schema.names if name != POSITION and name not in MESSAGE]
        rows = batch.select(names).to_pylist()
        if "~key" not in batch.schema.names:
            key = self.job.source.id
            return [self._record(_key(row.get(key)) if key else None, _json(row), [], None) for row in rows]
        keys, values, headers, times = (batch.column(name) for name in MESSAGE)
        originals = zip(keys.to_pylist(), headers.to_pylist(), times.cast(pa.int64()).to_pylist(), strict=True)
        if self.spec.mode == "json":
            return [self._record(k, _json(row), _pairs(h), t) for row, (k, h, t) in zip(rows, originals, strict=True)]
        kept = set(self.job.source.kept)
        return [
            self._record(k, v, _pairs(h) + [(n, _text(x)) for n, x in row.items() if n not in kept], t)
            for row, v, (k, h, t) in zip(rows, values.to_pylist(), originals, strict=True)
        ]

    def dead_letters(self, dead: pa.RecordBatch) -> list[Record]:
        """The original message if there was one, the reason in headers."""
        records = []
        for letter in dead.to_pylist():
            row = letter.get(DEAD_ROW) or {}
            reason = {
                "code": letter["code"],
                "message": letter["message"],
                "split": letter["split"],
                "position": letter["position"],
                "topic": self.split.payload.get("topic"),
                "partition": self.split.payload.get("partition"),
                "origin_split": letter["origin_split"],
                "origin_position": letter["origin_position"],
                "row": {name: value for name, value in row.items() if name not in MESSAGE} or None,
            }
            headers = [(f"{PREFIX}.{name}", _text(value)) for name, value in reason.items() if value is not None]
            if "~value" in row:
                key, value, time = row["~key"], row["~value"] if self.job.payload else None, row["~timestamp"]
                stamp = None if time is None else round(time.replace(tzinfo=dt.UTC).timestamp() * 1000)
                headers = _pairs(row["~headers"]) + headers
            else:
                key, value, stamp = _key(row.get(self.job.source.id)), letter["payload"], None
            records.append(self._record(key, value, headers, stamp, self.dead_topic))
        return records

    def without_value(self, record: Record) -> Record:
        """A message that no topic takes, as a dead letter that says how large it was."""
        headers = [
            (f"{PREFIX}.code", DeadCode.TOO_LARGE.value.encode()),
            (
                f"{PREFIX}.message",
                b"the topic takes no message of %d bytes; the value is left out" % len(record.value or b""),
            ),
        ]
        small = [(name, value) for name, value in record.headers if len(value) < 1000 and name != f"{PREFIX}.code"]
        number = record.number if record.topic == self.dead_topic else None
        return Record(self.dead_topic, number, record.key, b"", small + headers, record.timestamp)

    def _record(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp: int | None,
        topic: str | None = None,
    ) -> Record:
        topic = topic or self.spec.topic
        number: int | None = None
        if "partition" in self.split.payload and (self.spec.partitioner == "same-partition" or key is None):
            number, count = self.split.payload["partition"], self._count(topic)
            if number >= count and topic == self.spec.topic and self.spec.partitioner == "same-partition":
                raise SinkError(
                    f"topic {topic!r} has {count} partitions, the input has one numbered {number}: give the output as "
                    "many, or say sink.partitioner: by-key"
                )
            number %= count
        if value is None and key is None:
            value, headers = b"", [*headers, (f"{PREFIX}.null_value", b"true")]  # the client sends no record of nothing
        return Record(topic, number, key, value, headers, timestamp)


def _json(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, default=_default).encode()


def _default(value: Any) -> Any:
    """What JSON has no type for: bytes as text, or as base64 if they are none; times in ISO format."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _text(value: Any) -> bytes:
    """A header's value: text as it is, everything else as JSON."""
    if isinstance(value, bytes):
        return value
    return (
        value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_default).encode()
    )


def _key(value: Any) -> bytes | None:
    return None if value is None else _text(value)


def _pairs(headers: list[dict[str, Any]] | None) -> Headers:
    """The client sends no null header value; it becomes an empty one."""
    return [(header["key"], header["value"] or b"") for header in headers or ()]
