"""Models in anybody's Beam pipeline: `rows | tagstream.Infer([...])`.

Elements are dicts, `beam.Row`s (or named tuples), or Arrow record batches. Each comes out with the label columns beside
its own; a row that can't be labelled comes out of the second output, with the reason. Windows and timestamps stay.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.metrics import Metrics
from apache_beam.utils.windowed_value import WindowedValue

from tagstream.schemas.errors import REASONS, DeadCode, SpecError
from tagstream.schemas.spec import InferEntry
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
    `beam.Row`. The output `failed` has a `FailedRow` for each dict or Row; for record batches, it has a batch of the
    failed rows with the columns `error_code` and `error_message`.

    Raises SpecError at construction for entries that are wrong. A bundle fails if an element has a field of the name
    of a label field already.
    """

    def __init__(
        self, infer: Sequence[Mapping[str, Any] | InferEntry], text: str = "text", *, batch_rows: int = 512
    ) -> None:
        super().__init__()
        from tagstream.jobs import specification

        unused = {"type": "parquet", "path": "unused"}
        entries = specification(source={**unused, "text": text}, infer=infer, sink=unused).infer
        self._fn = _InferRowsFn(JobContext("infer"), entries, text, batch_rows)

    def expand(self, rows: Any) -> Any:
        return rows | beam.ParDo(self._fn).with_outputs(FAILED, main=LABELLED)


class _Users:
    """How many DoFns of this process use a context: the last one closes it."""

    def __init__(self, context: JobContext) -> None:
        self.count = 0

    def close(self) -> None:
        pass


@dataclass
class _Batch:
    """Elements that are given to the models together: single rows, or one record batch."""

    elements: list[tuple[Any, Any]] = field(default_factory=list)
    """Each element, and its timestamp, windows and pane."""
    texts: Any = field(default_factory=list)
    """A list of bytes or None, or an Arrow array."""
    unfit: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)
    fit: np.ndarray = None  # type: ignore[assignment]
    futures: list[Future[Prediction]] = field(default_factory=list)


class _InferRowsFn(beam.DoFn):  # type: ignore[misc]
    def __init__(self, context: JobContext, entries: tuple[InferEntry, ...], text: str, batch_rows: int) -> None:
        self.context, self.entries, self.text, self.batch_rows = context, entries, text, batch_rows

    def setup(self) -> None:
        self.users = self.context.resource(_Users)
        self.users.count += 1
        self.labelling = Labelling.of(self.entries, self.context)
        self.names = [column.name for column in self.labelling.fields]

    def teardown(self) -> None:
        self.users.count -= 1
        if self.users.count == 0:
            self.context.close()

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
        if isinstance(element, pa.Table):
            element = element.combine_chunks().to_batches()[0] if element.num_rows else pa.record_batch(element.schema)
        if isinstance(element, pa.RecordBatch):
            self._refuse_taken(element.schema.names)
            yield from self._submit(self._of_batch(element, place))
            return
        self._refuse_taken(_fields(element))
        value = _fields(element).get(self.text, _MISSING)
        row = len(self.rows.elements)
        self.rows.elements.append((element, place))
        if value is None:
            self.rows.unfit[row] = (DeadCode.NULL_TEXT, REASONS[DeadCode.NULL_TEXT])
        elif not isinstance(value, str | bytes):
            found = "has no such field" if value is _MISSING else f"holds {type(value).__name__}"
            self.rows.unfit[row] = (DeadCode.BAD_SCHEMA, f"field {self.text!r}: the row {found}, not text")
            value = None
        self.rows.texts.append(value.encode(errors="surrogatepass") if isinstance(value, str) else value)
        if len(self.rows.elements) >= self.batch_rows:
            batch, self.rows = self.rows, _Batch()
            yield from self._submit(batch)

    def finish_bundle(self) -> Iterator[Any]:
        if self.rows.elements:
            self.pending.append(self._asked(self.rows))
            self.rows = _Batch()
        while self.pending:
            yield from self._finish(self.pending.popleft())

    def _refuse_taken(self, fields: Any) -> None:
        if taken := [name for name in self.names if name in fields]:
            raise SpecError(f"the rows have a field {taken[0]!r} already: give the entry another name with 'as'")

    def _of_batch(self, element: pa.RecordBatch, place: Any) -> _Batch:
        batch = _Batch([(element, place)])
        at = element.schema.get_field_index(self.text)
        if at < 0 or not is_text(element.schema.field(at).type):
            found = "is missing" if at < 0 else f"is {element.schema.field(at).type}"
            reason = (DeadCode.BAD_SCHEMA, f"column {self.text!r} {found}, not text")
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
            yield from self._batches(first[0], first[1], batch.fit[good], labels, errors)
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
        self, element: pa.RecordBatch, place: Any, rows: np.ndarray, labels: list[pa.Array], errors: dict[int, Any]
    ) -> Iterator[Any]:
        if len(rows) or not errors:
            kept = element.take(pa.array(rows)) if errors else element
            arrays = [*kept.columns, *labels]
            schema = pa.schema([*element.schema, *self.labelling.fields], element.schema.metadata)
            yield WindowedValue(pa.RecordBatch.from_arrays(arrays, schema=schema), *place)
        if errors:
            failed = element.take(pa.array(sorted(errors)))
            reasons = [errors[row] for row in sorted(errors)]
            schema = element.schema.append(pa.field(CODE, pa.string())).append(pa.field(MESSAGE, pa.string()))
            arrays = [
                *failed.columns,
                pa.array([str(code) for code, _ in reasons]),
                pa.array([message for _, message in reasons]),
            ]
            batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
            yield beam.pvalue.TaggedOutput(FAILED, WindowedValue(batch, *place))


_MISSING = object()


def _fields(element: Any) -> Mapping[str, Any]:
    if isinstance(element, Mapping):
        return element
    as_dict = getattr(element, "_asdict", None) or getattr(element, "as_dict", None)  # of named tuples and beam.Row
    if as_dict is not None:
        return dict(as_dict())
    raise SpecError(f"elements are dicts, Rows or record batches, not {type(element).__name__}")


def _with(element: Any, labels: dict[str, Any]) -> Any:
    return {**element, **labels} if isinstance(element, Mapping) else beam.Row(**{**_fields(element), **labels})
