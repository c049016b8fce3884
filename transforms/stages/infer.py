"""Turns blocks of text into blocks of labels: `BlockInference` does it with Arrow alone, `Infer` in a Beam pipeline.

Owns which rows become dead letters, and how many blocks are in flight. Knows no source, no sink and no model.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from tagstream.schemas.block import TEXT, Block, without_rows
from tagstream.schemas.dead_letters import dead_letters, merged
from tagstream.schemas.errors import REASONS, DeadCode, ModelError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.inference.backends.registry import identify
from tagstream.transforms.inference.labelling import Labelling
from tagstream.transforms.inference.predictions import Prediction
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.stages.dead_letter_limit import DeadLetterLimit
from tagstream.transforms.stages.kept_values import split_off_bad_values
from tagstream.transforms.tokenization.text_checks import as_text, unfit_rows

Array = np.ndarray
IN_FLIGHT, GPU_IN_FLIGHT = 4, 16
"""How many blocks are in flight by default, on a CPU and on a GPU. A micro-batch of a GPU holds about as many tokens as
a block. With few blocks pending, texts of different lengths would have to share one, and need padding."""


@dataclass
class Pending:
    """A block whose texts the engines are working on. Its batch holds only the rows that have a text."""

    block: Block
    dead: pa.RecordBatch
    futures: list[Future[Prediction]]
    """One for each entry. Entries that share an engine share the future."""

    @property
    def done(self) -> bool:
        return all(future.done() for future in self.futures)


class BlockInference:
    """Submits blocks to the engines of a job, and turns their answers into label columns."""

    def __init__(self, spec: JobSpec, labelling: Labelling) -> None:
        self.spec, self.labelling = spec, labelling
        named = [name for entry in spec.infer for name in entry.texts]
        self.texts = tuple(dict.fromkeys([spec.source.text, *named]))
        """Columns whose texts the models need."""
        self.in_flight = spec.blocks.in_flight or (GPU_IN_FLIGHT if labelling.on_gpu else IN_FLIGHT)

    def submit(self, block: Block) -> Pending:
        """Move rows without a valid text or row to the dead letters, and hand the others to every engine.

        Does not wait.
        """
        batch, dead = split_off_bad_values(block.span.split, block.batch)
        dead = merged(block.dead, dead) if dead.num_rows else block.dead
        for name in self.texts:
            rows, codes = unfit_rows(self._text(batch, name))
            if len(rows):
                told = [f"column {name!r}: {REASONS[code]}" if name != self.spec.source.text else "" for code in codes]
                batch, dead = self._bury(block.span.split, batch, dead, rows, codes, told)
        futures = (
            self.labelling.submit(batch.column(TEXT), functools.partial(self._text, batch)) if batch.num_rows else []
        )
        return Pending(Block(block.span, batch, dead), dead, futures)

    def _text(self, batch: pa.RecordBatch, name: str) -> pa.LargeStringArray:
        return batch.column(TEXT) if name == self.spec.source.text else as_text(batch.column(name), name)

    def finish(self, pending: Pending, timeout: float | None = None) -> Block:
        """The block with label columns in place of the text. Raises TimeoutError after `timeout` seconds."""
        predictions = [future.result(timeout) for future in pending.futures]
        batch = pending.block.batch
        kept = [name for name in batch.schema.names if name != TEXT]
        labelled = pa.RecordBatch.from_arrays(
            [*(batch.column(name) for name in kept), *self.labelling.columns(predictions)],
            schema=pa.schema([*(batch.schema.field(name) for name in kept), *self.labelling.fields]),
        )
        dead = pending.dead
        if errors := self.labelling.errors(predictions):
            rows = np.array(sorted(errors), np.int64)
            codes, messages = zip(*(errors[row] for row in rows.tolist()), strict=True)
            _, dead = self._bury(pending.block.span.split, batch, dead, rows, list(codes), list(messages))
            labelled = without_rows(labelled, rows)
        return Block(pending.block.span, labelled, dead)

    def _bury(
        self,
        split: str,
        batch: pa.RecordBatch,
        dead: pa.RecordBatch,
        rows: Array,
        codes: list[DeadCode],
        messages: list[str],
    ) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Move `rows` from the batch to the dead letters. These stay in order of position."""
        letters = dead_letters(split, batch, rows, codes, messages, payload=self.spec.payload)
        return without_rows(batch, rows), merged(dead, letters)


class _InferFn(beam.DoFn):  # type: ignore[misc]
    """Keeps some blocks in flight, emits them in order, and waits for all of them at the end of the bundle."""

    def __init__(
        self, context: JobContext, spec: JobSpec, expected: list[dict[str, Any]] | None, rows: int | None
    ) -> None:
        self.context = context
        self.spec = spec
        self.expected = expected
        self.rows = rows

    def setup(self) -> None:
        with self.context.failing():
            if self.expected is not None:
                _check_worker(self.spec, self.expected)
            self.inference = BlockInference(self.spec, Labelling.of(self.spec.infer, self.context))
        self.limit = DeadLetterLimit(self.spec.max_dead, self.rows, holds=not self.spec.live)
        self.pending: deque[Pending] = deque()

    def process(self, block: Block) -> Iterator[Block]:
        with self.context.failing():
            heartbeat = block.span.start == block.span.stop
            if not heartbeat:
                pending = self.inference.submit(block)
                for future in pending.futures if self.spec.live else ():
                    future.add_done_callback(self.context.wakeup.wake)
                self.pending.append(pending)
            yield from self._finished(drain=False)
            if heartbeat:  # lets a sink commit by time although no data comes
                yield block

    def finish_bundle(self) -> Iterator[WindowedValue]:
        with self.context.failing():
            for block in self._finished(drain=True):
                yield WindowedValue(block, MIN_TIMESTAMP, [GlobalWindow()])

    def _finished(self, *, drain: bool) -> Iterator[Block]:
        """The finished blocks, in order. Waits for the oldest one while more than `in_flight` blocks are pending.

        drain: waits for all of them.
        """
        while self.pending and (drain or len(self.pending) > self.inference.in_flight or self.pending[0].done):
            block = self._next()
            if block is None:
                self.pending.clear()
                break
            yield from self.limit.see(block)
            self.context.metrics.dead_share = self.limit.dead_share
        if drain:
            yield from self.limit.end()

    def _next(self) -> Block | None:
        """The oldest block. None if the job is stopping and the block is not finished in time: then it is given up."""
        stop = self.context.stop
        while True:
            try:
                block = self.inference.finish(self.pending[0], stop.seconds_left() if stop.is_set() else 0.2)
            except FutureTimeout:
                if stop.is_set() and not stop.seconds_left():
                    return None
            else:
                self.pending.popleft()
                return block


def _check_worker(spec: JobSpec, expected: list[dict[str, Any]]) -> None:
    """Raises ModelError if this worker would make other labels than the job's fingerprint promises."""
    version = importlib.metadata.version("tagstream")
    for entry, wanted in zip(spec.infer, expected, strict=True):
        found = {"tagstream": version, **identify(entry)}
        wrong = [
            f"{key}: {found.get(key)} here, {value} there" for key, value in wanted.items() if found.get(key) != value
        ]
        if wrong:
            raise ModelError(
                f"{entry.as_}: this worker differs from the machine that submitted the job ({'; '.join(wrong)}). "
                "Install the same tagstream and model on both. With backend.type auto, both also need the same "
                "certificate and kind of device; or name the backend in the specification"
            )


class Infer(beam.PTransform):  # type: ignore[misc]
    """Turns blocks of text into blocks of labels and dead letters.

    expected: what a worker on another machine must find, see `Job.expectations`; None if the job runs here.
    rows: how many rows the job has, for the limit on dead letters; None if earlier runs have done some of them.
    """

    def __init__(
        self,
        context: JobContext,
        spec: JobSpec,
        expected: list[dict[str, Any]] | None = None,
        rows: int | None = None,
    ) -> None:
        super().__init__()
        self.fn = _InferFn(context, spec, expected, rows)

    def expand(self, blocks: Any) -> Any:
        return blocks | beam.ParDo(self.fn).with_output_types(Block)
