"""One model in this process: `load` it, `predict` labels of texts."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from tagstream.jobs import entries_of
from tagstream.schemas.errors import REASONS, DeadCode, ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.texts import text_column
from tagstream.transforms.inference.labelling import Labelling
from tagstream.transforms.inference.predictions import Prediction
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.tokenization.text_checks import as_text, unfit_rows

BLOCK_ROWS, IN_FLIGHT = 2048, 16
ERROR = "error"
"""Column that says why a row has no label; null where it has one."""


def load(
    model: str | Path | None = None,
    *,
    backend: str | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """Load a model. Use it as a context manager, or call `close`.

    model: a bundled name (`tagstream/spam`), a local folder, or a Hugging Face id.
    backend: `pytorch`, `onnx`, `auto`, or the fields of a backend as in a specification.
    settings: any other field of an entry of `infer`: `scores="all"`, `thresholds={"spam": 0.9}`, `max_length=128`, ...
    The field `as`, which names the columns, is written `as_`: in Python, `as` is a keyword.
    Raises ModelError, SpecError.
    """
    fields = {**settings, "model": model}
    if backend is not None:
        fields["backend"] = {"type": backend} if isinstance(backend, str) else backend
    return Model(*entries_of([fields], "load"))


class Model:
    """A loaded model. Thread-safe: texts of several threads share micro-batches.

    A model that nobody refers to any more closes itself.
    """

    def __init__(self, entry: InferEntry) -> None:
        self.entry = entry
        self._closed = False
        self._context = JobContext(entry.as_)
        try:
            self._labelling = Labelling.of([entry], self._context)
        except BaseException:
            self._context.close()
            raise
        weakref.finalize(self, close_elsewhere, self._context).atexit = False

    @property
    def schema(self) -> pa.Schema:
        """The columns that `predict` returns."""
        return pa.schema([*self._labelling.fields, pa.field(ERROR, pa.string())])

    @property
    def notes(self) -> list[str]:
        """What there is to know of how the model runs, such as that no certificate allows a faster backend."""
        return self._context.metrics.snapshot().notes

    def predict(self, texts: Any, *, text: str | None = None) -> pa.Table:
        """Labels of texts, in their order: one row a text, with the columns of `schema`.

        texts: a list or another iterable of str or None, one str, a NumPy or Arrow array, a pandas or polars Series,
        whatever has the Arrow PyCapsule interface; or a table of any of these libraries, a DuckDB relation, a dict of
        columns or a list of dicts, with `text` naming the column. The result is an Arrow table: pandas, polars and
        DuckDB read it, without a copy where they can.

        A text that can't be labelled has nulls, and the reason in the column `error` (`null_text: the text is null`).
        Raises SourceError for what is no text, ModelError if the model is closed or stops working.
        """
        column = text_column(texts, text)
        if self._closed:
            raise ModelError(f"{self.entry.model or self.entry.as_}: the model is closed; load it again")
        waiting: deque[_Submitted] = deque()
        tables = [self.schema.empty_table()]
        for piece in _pieces(column):
            waiting.append(self._submit(piece))
            if len(waiting) > IN_FLIGHT:
                tables.append(self._finish(waiting.popleft()))
        tables += [self._finish(submitted) for submitted in waiting]
        return pa.concat_tables(tables).combine_chunks()

    def close(self) -> None:
        """Free the model's memory and threads."""
        self._closed = True
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, texts: pa.LargeStringArray) -> _Submitted:
        rows, codes = unfit_rows(texts)
        fit = np.setdiff1d(np.arange(len(texts)), rows)
        futures = self._labelling.submit(texts.take(pa.array(fit)) if len(rows) else texts) if len(fit) else []
        return _Submitted(len(texts), fit, dict(zip(rows.tolist(), codes, strict=True)), futures)

    def _finish(self, submitted: _Submitted) -> pa.Table:
        predictions = [future.result() for future in submitted.futures]
        said: list[str | None] = [None] * submitted.rows
        where = np.full(submitted.rows, -1, np.int64)
        where[submitted.fit] = np.arange(len(submitted.fit))
        for row, code in submitted.unfit.items():
            said[row] = _said(code, "")
        for at, (code, message) in self._labelling.errors(predictions).items():
            said[submitted.fit[at]] = _said(code, message)
            where[submitted.fit[at]] = -1
        indices = pa.array(where, mask=where < 0)
        columns = [column.take(indices) for column in self._labelling.columns(predictions)]
        return pa.Table.from_arrays([*columns, pa.array(said, pa.string())], schema=self.schema)


class _Submitted(NamedTuple):
    """Texts that are with the model: how many, which have a text, why the others have none, and the answers to come."""

    rows: int
    fit: np.ndarray
    unfit: dict[int, DeadCode]
    futures: list[Future[Prediction]]


def close_elsewhere(context: JobContext) -> None:
    """For finalizers: Python may collect an object in any thread, also in one that closing waits for."""
    threading.Thread(target=context.close, name="close", daemon=True).start()


def _said(code: DeadCode, message: str) -> str:
    return f"{code}: {message or REASONS[code]}"


def _pieces(column: pa.ChunkedArray) -> Iterator[pa.LargeStringArray]:
    """Arrays of at most BLOCK_ROWS texts."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), BLOCK_ROWS):
            yield as_text(chunk.slice(start, BLOCK_ROWS), "text")
