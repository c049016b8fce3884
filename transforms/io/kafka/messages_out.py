"""Turns blocks into output records: labels as JSON, Avro or headers, and dead letters with their reason in headers."""

from __future__ import annotations

import base64
import datetime as dt
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import ORIGIN_POSITION, ORIGIN_SPLIT, POSITION, Block, Split, without_rows
from tagstream.schemas.dead_letters import DEAD_ROW, buried, merged
from tagstream.schemas.errors import DeadCode, SinkError
from tagstream.schemas.kafka_spec import KafkaSink
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.contracts import Record
from tagstream.transforms.io.kafka.messages_in import MESSAGE

PREFIX = "tagstream"
"""Begins the names of the headers that a dead letter has in addition to its message's own."""
REASON = ("code", "message", "split", "position", "topic", "partition", "origin_split", "origin_position", "row")
NULL_VALUE = f"{PREFIX}.null_value"
_OURS = {*(f"{PREFIX}.{name}" for name in REASON), NULL_VALUE}
Headers = list[tuple[str, bytes]]
Encode = Callable[[pa.RecordBatch], list[bytes | None]]


class StagedRecords(NamedTuple):
    """Records to send, labels first. `block`: without the rows that the output's schema can't hold, which are dead.

    The first records are the labels of the block's rows, in order.
    """

    records: list[Record]
    block: Block


class Messages:
    """Makes the output records of one split.

    `count`: returns a topic's number of partitions. `encode`: returns the value for each row of a batch, or None for a
    row that the output's schema can't hold.
    """

    def __init__(
        self, job: JobSpec, dead_topic: str, split: Split, count: Callable[[str], int], encode: Encode
    ) -> None:
        self.job, self.dead_topic, self.split, self._count, self._encode = job, dead_topic, split, count, encode
        self.spec = cast("KafkaSink", job.sink)

    def records(self, block: Block) -> StagedRecords:
        """The block's records: labels in order, then dead letters."""
        hidden = {POSITION, ORIGIN_SPLIT, ORIGIN_POSITION, *MESSAGE}
        shown = block.batch.select([name for name in block.batch.schema.names if name not in hidden])
        dead = self._dead_letters(block.dead)
        if self.spec.mode == "headers":
            labels = self._in_headers(block.batch, shown)
        else:
            values = self._encode(shown)
            rows = np.flatnonzero([value is None for value in values])
            if len(rows):
                letters = buried(block, rows, DeadCode.REFUSED)
                dead += self._dead_letters(letters)
                block = replace(block, batch=without_rows(block.batch, rows), dead=merged(block.dead, letters))
            labels = self._in_values(block.batch, [value for value in values if value is not None])
        return StagedRecords(labels + dead, block)

    def _in_values(self, batch: pa.RecordBatch, values: list[bytes]) -> list[Record]:
        if "~key" in batch.schema.names:
            return [
                self._record(key, value, headers, time, partition=partition)
                for value, (key, headers, time, partition) in zip(values, self._originals(batch), strict=True)
            ]
        id_ = self.job.source.id
        keys = batch.column(id_).to_pylist() if id_ else [None] * len(values)
        return [self._record(_key(key), value, [], None) for key, value in zip(keys, values, strict=True)]

    def _in_headers(self, batch: pa.RecordBatch, shown: pa.RecordBatch) -> list[Record]:
        kept = set(self.job.source.kept)
        labels = shown.select([name for name in shown.schema.names if name not in kept]).to_pylist()
        originals = zip(labels, batch.column("~value").to_pylist(), self._originals(batch), strict=True)
        return [
            self._record(key, value, headers + [(n, _text(x)) for n, x in row.items()], time, partition=partition)
            for row, value, (key, headers, time, partition) in originals
        ]

    def _originals(self, batch: pa.RecordBatch) -> Iterator[tuple[bytes | None, Headers, int | None, int | None]]:
        """Key, headers, timestamp and input partition of each message."""
        times = batch.column("~timestamp").cast(pa.int64())
        columns = (column.to_pylist() for column in (batch.column("~key"), batch.column("~headers"), times))
        for key, pairs, time in zip(*columns, strict=True):
            own, _, partition = self._origin(header_pairs(pairs))
            yield key, own, time, partition

    def _origin(self, headers: Headers) -> tuple[Headers, str | None, int | None]:
        """A message's own headers, and the topic and partition where it was read.

        A replayed message has headers of ours too. They are removed, and tell where the message was first read.
        """
        if "replays" not in self.split.payload:
            return headers, self.split.payload.get("topic"), self.split.payload.get("partition")
        return without_reason(headers), *origin(headers)

    def _dead_letters(self, dead: pa.RecordBatch) -> list[Record]:
        """One record for each dead letter: the original message if there was one, with the reason in headers."""
        records = []
        for letter in dead.to_pylist():
            row = letter.get(DEAD_ROW) or {}
            headers, topic, partition = self._origin(header_pairs(row.get("~headers")))
            told = {name: letter[name] for name in REASON if name in letter} | {
                "topic": topic,
                "partition": partition,
                "row": {name: value for name, value in row.items() if name not in MESSAGE} or None,
            }
            reason = [(f"{PREFIX}.{name}", _text(told[name])) for name in REASON if told[name] is not None]
            if "~value" in row:
                key, value, time = row["~key"], row["~value"] if self.job.payload else None, row["~timestamp"]
                stamp = None if time is None else round(time.replace(tzinfo=dt.UTC).timestamp() * 1000)
            else:
                key, value, stamp = _key(row.get(self.job.source.id)), letter["payload"], None
            records.append(self._record(key, value, headers + reason, stamp, self.dead_topic, partition))
        return records

    def refused(self, record: Record, block: Block, row: int, code: DeadCode, reason: str) -> Record:
        """The dead letter for a row whose label record the output topic refuses. `reason`: the broker's words."""
        if code == DeadCode.TOO_LARGE:
            reason = f"the topic accepts no message of {len(record.value or b'')} bytes"
        else:
            stamp = "" if record.timestamp is None else f" with the timestamp {record.timestamp} ms"
            reason = f"topic {record.topic!r} does not accept the message{stamp}: {reason}"
        (letter,) = self._dead_letters(buried(block, np.array([row]), code, reason))
        return letter

    def without_value(self, letter: Record) -> Record:
        """A dead letter that is too large for its topic as well, without its value and large headers."""
        reason = f"no topic accepts a message of {len(letter.value or b'')} bytes; the value is left out"
        told = {"code": DeadCode.TOO_LARGE.value.encode(), "message": reason.encode()}
        ours = {f"{PREFIX}.{name}": value for name, value in told.items()}
        small = [(name, value) for name, value in letter.headers if len(value) < 1000 and name not in ours]
        return letter._replace(value=b"", headers=small + list(ours.items()))

    def _record(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        timestamp: int | None,
        topic: str | None = None,
        partition: int | None = None,
    ) -> Record:
        """`partition`: the partition of the input; None if the input has no partitions."""
        topic = topic or self.spec.topic
        number: int | None = None
        if partition is not None and (self.spec.partitioner == "same-partition" or key is None):
            number, count = partition, self._count(topic)
            if number >= count and topic == self.spec.topic and self.spec.partitioner == "same-partition":
                raise SinkError(
                    f"topic {topic!r} has {count} partitions, but the input has one numbered {number}. Give the output "
                    "topic as many partitions as the input, or set sink.partitioner: by-key"
                )
            number %= count
        if value is None and key is None:
            value, headers = b"", [*headers, (NULL_VALUE, b"true")]  # the client refuses a record without key and value
        return Record(topic, number, key, value, headers, timestamp)


def origin(headers: Headers) -> tuple[str | None, int | None]:
    """Topic and partition where a dead letter's message was first read. `headers`: the dead letter's."""
    told = dict(headers)
    topic, partition = told.get(f"{PREFIX}.topic"), told.get(f"{PREFIX}.partition")
    return topic.decode() if topic else None, int(partition) if partition else None


def without_reason(headers: Headers) -> Headers:
    """The headers that the message had before it became a dead letter."""
    return [header for header in headers if header[0] not in _OURS]


def as_json(batch: pa.RecordBatch) -> list[bytes | None]:
    """One JSON object for each row: the values of `mode: json`."""
    return [json.dumps(row, ensure_ascii=False, default=_default).encode() for row in batch.to_pylist()]


def _default(value: Any) -> Any:
    """Converts a value that JSON has no type for. Bytes become text, or base64 if they aren't UTF-8; times ISO 8601."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _text(value: Any) -> bytes:
    """A value as a header's bytes. Text and bytes stay as they are; other values become JSON."""
    if isinstance(value, bytes):
        return value
    return (
        value.encode() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_default).encode()
    )


def _key(value: Any) -> bytes | None:
    return None if value is None else _text(value)


def header_pairs(headers: list[dict[str, Any]] | None) -> Headers:
    """Headers as pairs. A null value becomes an empty one, because the client can't send null."""
    return [(header["key"], header["value"] or b"") for header in headers or ()]
