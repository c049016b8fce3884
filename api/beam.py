"""Models in anybody's Beam pipeline: `rows | tagstream.Infer([...])`.

Elements are dicts, `beam.Row`s or named tuples, Arrow record batches or tables. Each comes out with the label columns
beside its own; a row that can't be labelled comes out of the second output, with the reason. Windows, timestamps and
panes stay.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.utils.windowed_value import WindowedValue

from tagstream.jobs import entries_of
from tagstream.model import close_elsewhere
from tagstream.schemas.block import take_rows
from tagstream.schemas.errors import REASONS, DeadCode, SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.texts import plain_text
from tagstream.transforms.inference.labelling import Labelling
from tagstream.transforms.inference.predictions import Prediction
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.tokenization.text_checks import as_text, is_text, unfit_rows

LABELLED, FAILED = "labelled", "failed"
CODE, MESSAGE = "error_code", "error_message"
"""Columns that a record batch of failed rows has beside its own."""
IN_FLIGHT = 4


class FailedRow(NamedTuple):
    """A row that can't be labelled. `row`: as it came in; `code`: one of the dead letters' codes; `message`: why."""

    row: Any
    code: str
    message: str


class Infer(beam.PTransform):  # type: ignore[misc]
    """Label each element of a PCollection.

        labelled, failed = rows | tagstream.Infer([{"model": "tagstream/spam", "as": "spam"}], text="body")

    infer: entries as in a specification. text: the field that holds the text. batch_rows: most single rows that are
    given to the models together; a bundle's rows never wait for another bundle's.

    The output `labelled` has elements of the kind that came in, with the label fields added; a named tuple becomes a
    `beam.Row`. The output `failed` has a `FailedRow` for each dict or Row; for record batches and tables, it has one of
    the failed rows with the columns `error_code` and `error_message`.

    Raises SpecError at construction for entries that are wrong. A bundle fails if an element has a field of the name
    of a label field already, or is of another kind.
    """

    def __init__(
        self, infer: Sequence[Mapping[str, Any] | InferEntry], text: str = "text", *, batch_rows: int = 512
    ) -> None:
        super().__init__()
        if not isinstance(text, str):
            raise SpecError(f"Infer: text: give the name of the field that holds the text, not {type(text).__name__}")
        if batch_rows < 1:
            raise SpecError(f"Infer: batch_rows: give a number from 1 on, not {batch_rows}")
        entries = entries_of(infer, "Infer")
        self._fn = _InferRowsFn(JobContext("infer"), entries, text, batch_rows)

    def default_label(self) -> str:
        """Names the columns, so that a pipeline with two of these needs no labels of its own."""
        return f"Infer({', '.join(entry.as_ for entry in self._fn.entries)})"

    def expand(self, rows: Any) -> Any:
        return rows | beam.ParDo(self._fn).with_outputs(FAILED, main=LABELLED)


class _Users:
    """How many DoFns of this process use a context: the last one closes it."""

    def __init__(self, context: JobContext) -> None:
        self._context = context
        self._count = 0
        self._lock = threading.Lock()

    def come(self) -> None:
        with self._lock:
            self._count += 1

    def go(self, close: Callable[[JobContext], None]) -> None:
        with self._lock:
            self._count -= 1
            if self._count:
                return
        close(self._context)

    def close(self) -> None:
        """Nothing: it only counts."""


@dataclass
class _Batch:
    """Elements that are given to the models together: single rows, or one record batch."""

    elements: list[tuple[Any, Any]] = field(default_factory=list)
    """Each element, and its timestamp, windows and pane."""
    of_table: bool = False
    texts: Any = field(default_factory=list)
    """A list of bytes or None, or an Arrow array."""
    unfit: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)
    fit: np.ndarray = None  # type: ignore[assignment]
    futures: list[Future[Prediction]] = field(default_factory=list)


class _InferRowsFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, context: JobContext, entries: tuple[InferEntry, ...], text: str, batch_rows: int) -> None:
        self.forgotten: weakref.finalize[Any, Any] | None = None
        self.context, self.entries, self.text, self.batch_rows = context, entries, text, batch_rows

    def setup(self) -> None:
        users = self.context.resource(_Users)
        users.come()
        self.forgotten = weakref.finalize(self, users.go, close_elsewhere)  # not every runner ends a DoFn that failed
        self.forgotten.atexit = False
        try:
            self.labelling = Labelling.of(self.entries, self.context)
        except BaseException:
            self.teardown()
            raise
        self.names = [column.name for column in self.labelling.fields]

    def teardown(self) -> None:
        if self.forgotten is not None and self.forgotten.detach():
            self.context.resource(_Users).go(JobContext.close)

    def start_bundle(self) -> None:
        self.rows, self.pending = _Batch(), deque[_Batch]()

    def process(
        self,
        element: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        windows: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[Any]:
        place = (timestamp, (windows,), pane)
        if isinstance(element, pa.RecordBatch | pa.Table):
            self._refuse_taken(element.schema.names, self.names, CODE, MESSAGE)
            for batch in _batches_of(element):
                yield from self._submit(self._of_batch(batch, place, of_table=isinstance(element, pa.Table)))
            return
        fields = _fields(element)
        self._refuse_taken(fields, self.names)
        row = len(self.rows.elements)
        self.rows.elements.append((element, place))
        try:
            text = plain_text(fields[self.text])
        except (KeyError, TypeError) as error:
            found = "is missing" if isinstance(error, KeyError) else f"holds {error}, not text"
            self.rows.unfit[row] = (DeadCode.BAD_SCHEMA, f"field {self.text!r} {found}")
            text = None
        self.rows.texts.append(text)
        if len(self.rows.elements) >= self.batch_rows:
            batch, self.rows = self.rows, _Batch()
            yield from self._submit(batch)

    def finish_bundle(self) -> Iterator[Any]:
        if self.rows.elements:
            self.pending.append(self._asked(self.rows))
            self.rows = _Batch()
        while self.pending:
            yield from self._finish(self.pending.popleft())

    def _refuse_taken(self, fields: Any, names: Sequence[str], *others: str) -> None:
        if taken := [name for name in names if name in fields]:
            raise SpecError(f"the rows have a field {taken[0]!r} already: give the entry another name with 'as'")
        if taken := [name for name in others if name in fields]:
            raise SpecError(f"the rows have a column {taken[0]!r} already, which the failed rows need: rename it")

    def _of_batch(self, element: pa.RecordBatch, place: Any, *, of_table: bool) -> _Batch:
        batch = _Batch([(element, place)], of_table)
        at = element.schema.get_field_index(self.text)
        if at < 0 or not is_text(element.schema.field(at).type):
            found = f"is {element.schema.field(at).type}, not text" if at >= 0 else "is missing, or there several times"
            reason = (DeadCode.BAD_SCHEMA, f"column {self.text!r} {found}")
            batch.unfit = dict.fromkeys(range(element.num_rows), reason)
            batch.texts = [None] * element.num_rows
        else:
            batch.texts = element.column(at)
        return batch

    def _submit(self, batch: _Batch) -> Iterator[Any]:
        self.pending.append(self._asked(batch))
        while len(self.pending) > IN_FLIGHT:
            yield from self._finish(self.pending.popleft())

    def _asked(self, batch: _Batch) -> _Batch:
        texts = batch.texts if isinstance(batch.texts, pa.Array) else pa.array(batch.texts, pa.large_binary())
        texts = as_text(texts, self.text)
        rows, codes = unfit_rows(texts)
        for row, code in zip(rows.tolist(), codes, strict=True):
            batch.unfit.setdefault(row, (code, REASONS[code]))
        batch.fit = np.setdiff1d(np.arange(len(texts)), rows)
        if len(batch.fit):
            batch.futures = self.labelling.submit(texts.take(pa.array(batch.fit)) if len(rows) else texts)
        return batch

    def _finish(self, batch: _Batch) -> Iterator[Any]:
        predictions = [future.result() for future in batch.futures]
        errors = batch.unfit | {int(batch.fit[at]): error for at, error in self.labelling.errors(predictions).items()}
        columns = self.labelling.columns(predictions)
        good = np.array([at for at, row in enumerate(batch.fit.tolist()) if row not in errors], np.int64)
        Metrics.counter("tagstream", "rows_in").inc(len(batch.fit) + len(batch.unfit))
        Metrics.counter("tagstream", "rows_out").inc(len(good))
        for code, _ in errors.values():
            Metrics.counter("tagstream", f"dead_{code}").inc()
        labels = [column.take(pa.array(good)) for column in columns]
        first = batch.elements[0]
        if isinstance(first[0], pa.RecordBatch):
            for tag, found in self._batches(first[0], batch.fit[good], labels, errors):
                value = WindowedValue(pa.Table.from_batches([found]) if batch.of_table else found, *first[1])
                yield beam.pvalue.TaggedOutput(tag, value) if tag else value
            return
        values = pa.RecordBatch.from_arrays(labels, schema=pa.schema(self.labelling.fields)).to_pylist()
        labelled = dict(zip(batch.fit[good].tolist(), values, strict=True))
        for row, (element, place) in enumerate(batch.elements):
            if row in errors:
                code, message = errors[row]
                failed = FailedRow(element, str(code), message)
                yield beam.pvalue.TaggedOutput(FAILED, WindowedValue(failed, *place))
            else:
                yield WindowedValue(_with(element, labelled[row]), *place)

    def _batches(
        self, element: pa.RecordBatch, rows: np.ndarray, labels: list[pa.Array], errors: dict[int, Any]
    ) -> Iterator[tuple[str | None, pa.RecordBatch]]:
        """The labelled rows, and those that have an error, each with the output that they go to."""
        if len(rows) or not errors:
            kept = take_rows(element, rows) if errors else element
            schema = pa.schema([*element.schema, *self.labelling.fields], element.schema.metadata)
            yield None, pa.RecordBatch.from_arrays([*kept.columns, *labels], schema=schema)
        if errors:
            failed = take_rows(element, sorted(errors))
            codes, messages = zip(*(errors[row] for row in sorted(errors)), strict=True)
            schema = element.schema.append(pa.field(CODE, pa.string())).append(pa.field(MESSAGE, pa.string()))
            reasons = [pa.array(map(str, codes), pa.string()), pa.array(messages, pa.string())]
            yield FAILED, pa.RecordBatch.from_arrays([*failed.columns, *reasons], schema=schema)


def _batches_of(element: pa.RecordBatch | pa.Table) -> list[pa.RecordBatch]:
    """Nearly always one: only columns of more than 2 GiB stay in pieces."""
    if isinstance(element, pa.RecordBatch):
        return [element]
    found: list[pa.RecordBatch] = element.combine_chunks().to_batches()
    return found or [pa.RecordBatch.from_pylist([], schema=element.schema)]


def _fields(element: Any) -> Mapping[str, Any]:
    if isinstance(element, Mapping):
        return element
    as_dict = getattr(element, "_asdict", None) or getattr(element, "as_dict", None)  # of named tuples and beam.Row
    if as_dict is not None:
        return dict(as_dict())
    raise SpecError(f"elements are dicts, Rows or record batches, not {type(element).__name__}")


def _with(element: Any, labels: dict[str, Any]) -> Any:
    return {**element, **labels} if isinstance(element, Mapping) else beam.Row(**{**_fields(element), **labels})
