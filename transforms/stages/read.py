"""Reads splits as blocks of text. Reading a split begins where its chain in the sink ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import apache_beam as beam

from tagstream.schemas.block import Block, Split
from tagstream.transforms.io.common.open_writers import OpenWriters
from tagstream.transforms.io.contracts import (
    ReclassifyingSink,
    RoundsSource,
    Sink,
    Source,
    StateWriter,
    again_of,
)
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.stages.block_coder import BlockCoder  # noqa: F401  registers the coder of blocks


class _ReadFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, context: JobContext, source: Source, sink: Sink) -> None:
        self.context = context
        self.source = source
        self.sink = sink

    def process(self, element: tuple[Split, int | None]) -> Iterator[Block]:
        split, known = element
        stop, writers = self.context.stop, self.context.resource(OpenWriters)
        with self.context.failing():
            if stop.is_set():
                return
            start = writers.open(self.sink, split, known).position
            if split.stop is not None and start >= split.stop:
                writers.close_one(split.id)
                return
            blocks = self._blocks(split, start)
            while True:
                with self.context.metrics.busy("read"):
                    block = next(blocks, None)
                if block is None or stop.is_set() or writers.of(split.id) is None:
                    return
                yield block

    def _blocks(self, split: Split, start: int) -> Iterator[Block]:
        blocks = self.source.read(split, start)
        if again_of(split) is None and isinstance(self.source, RoundsSource) and self.source.by_state:
            writer = cast("StateWriter", self.context.resource(OpenWriters).of(split.id))
            return (writer.missing(block) for block in blocks)
        if (again := again_of(split)) is None:
            return blocks
        sink = cast("ReclassifyingSink", self.sink)
        return (sink.chosen(block, again) for block in blocks)


class ReadSplits(beam.PTransform):  # type: ignore[misc]
    """Turns pairs of (split, known position) into blocks. The blocks of a split come in order of position.

    known position: one that the split's chain has reached for certain, so that looking for its end begins there.
    """

    def __init__(self, context: JobContext, source: Source, sink: Sink) -> None:
        super().__init__()
        self.fn = _ReadFn(context, source, sink)

    def expand(self, splits: Any) -> Any:
        return splits | beam.ParDo(self.fn).with_output_types(Block)
