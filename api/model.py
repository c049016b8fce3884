"""One model in this process: `load` it, `predict` labels of texts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from tagstream.schemas.errors import DeadCode, SourceError, SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.labelling import Labelling
from tagstream.transforms.inference.predictions import Prediction
from tagstream.transforms.io.memory import as_table
from tagstream.transforms.runtime.job_context import JobContext
from tagstream.transforms.tokenization.text_checks import as_text, unfit_rows

BLOCK_ROWS, IN_FLIGHT = 2048, 16
ERROR = "error"
"""Column that says why a row has no label; null where it has one."""


def load(
    model: str | None = None,
    *,
    backend: str | Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """Load a model. Use it as a context manager, or call `close`.

    model: a bundled name (`tagstream/spam`), a local folder, or a Hugging Face id.
    backend: `pytorch`, `onnx`, `auto`, or the fields of a backend as in a specification.
    settings: any other field of an entry of `infer`: `scores="all"`, `thresholds={"spam": 0.9}`, `max_length=128`, ...
    Raises ModelError, SpecError.
    """
    fields = {**settings, "model": model}
    if backend is not None:
        fields["backend"] = {"type": backend} if isinstance(backend, str) else dict(backend)
    try:
        entry = InferEntry.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SpecError(f"load: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    return Model(entry)


class Model:
    """A loaded model. Thread-safe: texts of several threads share micro-batches."""

    def __init__(self, entry: InferEntry) -> None:
        self.entry = entry
        self._context = JobContext(entry.as_)
        try:
            self._labelling = Labelling.of([entry], self._context)
        except BaseException:
            self._context.close()
            raise

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

        texts: a list of str or None, one str, an Arrow array, a pandas or polars Series, whatever has the Arrow
        PyCapsule interface; or a table of any of these libraries, DuckDB's relations included, with `text` naming the
        column. The result is an Arrow table: `pl.from_arrow(table)`, `table.to_pandas()`, and DuckDB's queries read it
        without a copy.

        A text that can't be labelled has nulls, and the reason in the column `error` (`null_text: the text is null`).
        Raises SourceError for what is no text, ModelError if the model stops working.
        """
        column = _column(texts, text)
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


def _said(code: DeadCode, message: str) -> str:
    from tagstream.schemas.errors import REASONS

    return f"{code}: {message or REASONS[code]}"


def _column(texts: Any, name: str | None) -> pa.ChunkedArray:
    if isinstance(texts, str):
        texts = [texts]
    if name is None and (array := _as_array(texts)) is not None:
        return array
    table = as_table(texts)
    if name is None:
        if table.num_columns != 1:
            raise SourceError(f"predict: name the column of the texts with text=...; there are {table.column_names}")
        return table.column(0)
    if table.column_names.count(name) != 1:
        raise SourceError(f"predict: no single column {name!r}; there are {table.column_names}")
    return table[name]


def _as_array(texts: Any) -> pa.ChunkedArray | None:
    """The texts as a chunked array; None if they are a table."""
    try:
        if isinstance(texts, list | tuple):
            if texts and isinstance(texts[0], Mapping):
                return None
            return pa.chunked_array([pa.array(list(texts), pa.large_string())])
        if isinstance(texts, pa.ChunkedArray):
            return texts
        if isinstance(texts, pa.Array):
            return pa.chunked_array([texts])
        if isinstance(texts, Mapping | pa.Table | pa.RecordBatch | pa.RecordBatchReader) or hasattr(texts, "columns"):
            return None
        if hasattr(texts, "__arrow_c_stream__"):
            return pa.chunked_array(texts)
        return pa.chunked_array([pa.array(texts)])
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SourceError(f"predict: these texts can't be read: {error}") from None


def _pieces(column: pa.ChunkedArray) -> Iterator[pa.LargeStringArray]:
    """Arrays of at most BLOCK_ROWS texts."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), BLOCK_ROWS):
            yield as_text(chunk.slice(start, BLOCK_ROWS), "text")
