"""Turns records of a Kafka partition into blocks. Messages that can't be decoded become dead letters.

If the sink is Kafka too, a block also carries each message's key, value, headers and timestamp, in columns whose names
begin with `~`. From these columns, dead letters and `mode: headers` reproduce the message byte for byte.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tagstream.schemas.block import POSITION, TEXT, Block, Span, without_rows
from tagstream.schemas.dead_letters import dead_letters, no_dead
from tagstream.schemas.errors import DeadCode
from tagstream.schemas.kafka_spec import META, KafkaSource
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.kafka.client.cluster import HEADERS
from tagstream.transforms.io.kafka.payloads import Decoded, Decoder
from tagstream.transforms.io.kafka.schema_registry import SchemaRegistry
from tagstream.transforms.tokenization.text_checks import as_text

MESSAGE = {
    "~key": pa.binary(),
    "~value": pa.binary(),
    "~headers": HEADERS,
    "~timestamp": pa.timestamp("ms"),
}
"""The columns that hold the message itself."""
_META_TYPES = {
    "topic": pa.string(),
    "partition": pa.int32(),
    "offset": pa.int64(),
    "timestamp": pa.timestamp("ms"),
    "key": pa.binary(),
    "headers": HEADERS,
}


class RecordBlocks:
    """Makes blocks from record batches of the schema `cluster.RECORDS`."""

    def __init__(self, spec: JobSpec, source: KafkaSource) -> None:
        self.decode = Decoder(source, SchemaRegistry(source.registry) if source.registry else None)
        fields = [pa.field(name, _META_TYPES.get(name, pa.string())) for name in source.kept]
        if spec.sink.wants_messages:
            fields += [pa.field(name, kind) for name, kind in MESSAGE.items()]
        self.kept = pa.schema(fields)
        self.payload = spec.payload
        self._schema = pa.schema(
            [*self.kept, pa.field(TEXT, pa.large_string()), pa.field(POSITION, pa.int64(), nullable=False)]
        )
        self._no_dead = no_dead(self.kept)

    def block(self, split: str, topic: str, start: int, stop: int, records: pa.RecordBatch) -> Block:
        """One block that covers offsets `start` to `stop`, including offsets without a record."""
        topics = pa.array([topic]).take(pa.array(np.zeros(records.num_rows, np.int32)))
        return self.of(Span(split, start, stop), topics, records, {POSITION: records.column("offset")})

    def of(
        self, span: Span, topics: pa.Array, records: pa.RecordBatch, ours: dict[str, pa.Array], headers: pa.Array = None
    ) -> Block:
        """A block of records. `topics`: the topic of each record. For the other arguments see `batch`."""
        decoded = self.decode(records.column("value"))
        defects = records.column("defect")
        if defects.null_count < len(defects):
            found = {
                row: (DeadCode.BAD_VALUE, told) for row, told in enumerate(defects.to_pylist()) if told is not None
            }
            decoded.errors = found | decoded.errors
        batch = self.batch(topics, records, decoded, ours, headers)
        dead = self._no_dead
        if decoded.errors:
            rows = sorted(decoded.errors)
            codes, messages = zip(*(decoded.errors[row] for row in rows), strict=True)
            text = batch.schema.get_field_index(TEXT)
            raw = batch.set_column(text, batch.schema.field(TEXT), as_text(records.column("value"), TEXT))
            dead = dead_letters(span.split, raw, np.array(rows), list(codes), list(messages), payload=self.payload)
            batch = without_rows(batch, rows)
        return Block(span, batch, dead)

    def batch(
        self,
        topics: pa.Array,
        records: pa.RecordBatch,
        decoded: Decoded,
        ours: dict[str, pa.Array],
        headers: pa.Array = None,
    ) -> pa.RecordBatch:
        """The kept columns, the text, and then the columns `ours`, of which POSITION must be the first.

        `headers`: replaces the record's own headers in the column `~headers`.
        """
        arrays = [self._column(name, topics, records, decoded) for name in self.kept.names]
        if headers is not None:
            arrays[self.kept.names.index("~headers")] = headers
        schema = self._schema
        for name in list(ours)[1:]:
            schema = schema.append(pa.field(name, ours[name].type))
        return pa.RecordBatch.from_arrays([*arrays, decoded.texts, *ours.values()], schema=schema)

    def nothing(self, split: str, at: int) -> Block:
        """A heartbeat: an empty block at position `at`."""
        empty = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in self._schema], schema=self._schema)
        return Block(Span(split, at, at), empty, self._no_dead)

    @staticmethod
    def _column(name: str, topics: pa.Array, records: pa.RecordBatch, decoded: Decoded) -> pa.Array:
        if name in MESSAGE:
            return records.column(name.removeprefix("~"))
        if name == "topic":
            return topics
        if name in META:
            return records.column(name)
        return decoded.fields[name]
