"""Encodes blocks as Arrow IPC, for a process boundary, and tells Beam their true size.

A pickled slice of a record batch carries all of its parent's buffers. Arrow IPC writes only the rows of the slice.
"""

from __future__ import annotations

import struct

import apache_beam as beam
import pyarrow as pa

from tagstream.schemas.block import Block, Span

_HEADER = struct.Struct("<qqII")
"""Start, stop, bytes of the split's id, bytes of the first stream."""


class BlockCoder(beam.coders.Coder):  # type: ignore[misc]
    """A fixed header, the split's id, then two Arrow IPC streams: the batch and its dead letters.

    Not deterministic, so a block can't be the key of a GroupByKey.
    """

    def encode(self, value: Block) -> bytes:
        split = value.span.split.encode()
        batch = _to_ipc(value.batch)
        header = _HEADER.pack(value.span.start, value.span.stop, len(split), len(batch))
        return b"".join([header, split, batch, _to_ipc(value.dead)])

    def decode(self, encoded: bytes) -> Block:
        start, stop, id_bytes, batch_bytes = _HEADER.unpack_from(encoded)
        at = _HEADER.size
        split = encoded[at : at + id_bytes].decode()
        at += id_bytes
        view = memoryview(encoded)
        return Block(
            Span(split, start, stop), _from_ipc(view[at : at + batch_bytes]), _from_ipc(view[at + batch_bytes :])
        )

    def estimate_size(self, value: Block) -> int:
        return _HEADER.size + len(value.span.split) + value.nbytes

    def is_deterministic(self) -> bool:
        return False

    def to_type_hint(self) -> type[Block]:
        return Block


def _to_ipc(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _from_ipc(data: memoryview) -> pa.RecordBatch:
    with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
        return reader.read_next_batch()


beam.coders.registry.register_coder(Block, BlockCoder)
