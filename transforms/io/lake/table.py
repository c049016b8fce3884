"""What Iceberg and Delta tables have in common for us: rows and named whole numbers that change in one atomic step.

The numbers are the ledger: Iceberg keeps them as table properties, Delta as versions of application transactions.
Both outlive expired snapshots and cleaned logs, unlike the description of each commit (`note`), which is for people.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import unwrapped, unwrapped_type
from tagstream.schemas.errors import SinkError

FOLDER = "_tagstream"
"""Folder inside a table's own, for files that no reader sees; a leading underscore keeps clean-up jobs away."""
COMMIT = "tagstream.commit"
"""In the note of a commit: its token, in decimal digits."""


class ConflictError(Exception):
    """Somebody else has changed the table since it was loaded, or made it first. Internal: load and look again.

    `unsure`: the own change may have been made nevertheless.
    """

    def __init__(self, message: str, *, unsure: bool = False) -> None:
        super().__init__(message)
        self.unsure = unsure


@dataclass(frozen=True)
class LetterFilter:
    """Dead letters of a job: those of `split` at positions below `stop`; all if `split` is None."""

    job: str
    split: str | None
    stop: int

    @property
    def predicate(self) -> str:
        """Condition of a row filter, as both formats read it. The names hold no quotes: see `JobSpec`, `split_id`."""
        job = f"job = '{self.job}'"
        return job if self.split is None else f"{job} AND split = '{self.split}' AND position < {self.stop}"


class State(Protocol):
    """A table as it was when loaded."""

    schema: pa.Schema

    def get(self, name: str) -> int | None:
        """A number of the job's."""

    def all(self) -> dict[str, int]:
        """All numbers of the job's."""

    def others(self) -> list[str]:
        """Other jobs whose output the table is too, sorted."""

    def check(self) -> None:
        """Raises LedgerError if rows were taken back of which the numbers still tell."""

    def seconds(self) -> dict[str, tuple[int, float]]:
        """Rows in and seconds by split, of those commits that the table still knows."""


class LakeTable(Protocol):
    """One table. `where`: the table as it may be shown. Methods raise SinkError, without secrets in it.

    A `state` that is given is one that the same table has loaded.
    """

    where: str

    def load(self) -> State | None:
        """The newest state; None if there is no such table."""

    def create(self, schema: pa.Schema, values: dict[str, int]) -> None:
        """The table, with its numbers from the first moment on. Raises ConflictError if it is there."""

    def replace(self, state: Any, schema: pa.Schema, values: dict[str, int]) -> None:
        """The table anew, without rows. Raises ConflictError."""

    def append(
        self,
        state: Any,
        rows: StagedRows | None,
        values: dict[str, int],
        note: dict[str, str],
        without: LetterFilter | None,
    ) -> None:
        """Rows, missing columns and numbers, in one commit; `without`: rows that leave before.

        Raises ConflictError if one of the numbers has changed since `state`, or for any change of the table.
        """

    def forget(self, staged: StagedRows) -> None:
        """Delete the files of rows that were not appended."""

    def rows(self, columns: list[str], letters: LetterFilter | None, limit: int | None) -> pa.Table:
        """Rows as they are now, of all columns if none is named; `letters`: only these. No columns without a table."""

    def put(self, name: str, rows: pa.RecordBatchReader, note: dict[str, str]) -> None:
        """Keep rows in a file that no reader of the table sees."""

    def take(self, name: str) -> tuple[pa.Table, dict[str, str]] | None:
        """What `put` has kept; None if it was dropped."""

    def drop(self, name: str) -> None:
        """Forget what `put` has kept, if it is there."""


@dataclass
class StagedRows:
    """Rows of one commit, read as often as it is tried. `made`: what the table has made of them, for the next try."""

    schema: pa.Schema
    rows: int
    reader: Callable[[], pa.RecordBatchReader]
    made: list[Any] = field(default_factory=list)


def new_token() -> int:
    """A positive number of 62 bits that nobody else has."""
    return secrets.randbits(62) | 1


def lake_schema(schema: pa.Schema) -> pa.Schema:
    """The columns with types that both formats hold. Raises SinkError for a type that neither does."""
    return pa.schema([pa.field(f.name, _lake_type(f.type, f.name)) for f in schema])


def lake_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the types of `lake_schema`. Raises SinkError for a value that would be cut."""
    schema = lake_schema(batch.schema)
    arrays = []
    for column, to in zip(batch.columns, schema, strict=True):
        try:
            arrays.append(_lake_array(column, to.type))
        except pa.ArrowException as error:
            raise SinkError(f"column {to.name!r} can't be written as {to.type}: {error}") from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _lake_array(column: pa.Array, kind: pa.DataType) -> pa.Array:
    column = unwrapped(column)
    if pa.types.is_duration(column.type):
        return column.cast(pa.int64())
    if pa.types.is_time(column.type):
        return pc.cast(column, pa.string())
    return column if column.type == kind else column.cast(kind)


def _lake_type(kind: pa.DataType, name: str) -> pa.DataType:
    """Unsigned whole numbers become larger signed ones, times text, durations whole numbers of their unit."""
    types, kind = pa.types, unwrapped_type(kind)
    if types.is_struct(kind):
        return pa.struct([pa.field(f.name, _lake_type(f.type, f"{name}.{f.name}")) for f in kind])
    if types.is_map(kind):
        return pa.map_(_lake_type(kind.key_type, name), _lake_type(kind.item_type, name))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_lake_type(kind.value_type, name))
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    return next((lake for test, lake in _LAKE_TYPES if test(kind)), None) or _refuse(kind, name)


_LAKE_TYPES: list[tuple[Callable[[pa.DataType], bool], pa.DataType]] = [
    (pa.types.is_boolean, pa.bool_()),
    (lambda t: t in (pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16()), pa.int32()),
    (lambda t: t in (pa.int64(), pa.uint32()) or pa.types.is_duration(t), pa.int64()),
    (lambda t: t == pa.uint64(), pa.decimal128(20, 0)),
    (lambda t: t in (pa.float16(), pa.float32()), pa.float32()),
    (pa.types.is_float64, pa.float64()),
    (pa.types.is_date, pa.date32()),
    (lambda t: pa.types.is_time(t) or pa.types.is_null(t), pa.string()),
    (lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t), pa.string()),
    (lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t) or pa.types.is_binary_view(t), pa.binary()),
    (pa.types.is_fixed_size_binary, pa.binary()),
]


def _refuse(kind: pa.DataType, name: str) -> pa.DataType:
    if pa.types.is_decimal128(kind):
        return kind
    raise SinkError(f"column {name!r}: a lake table holds no {kind}; leave it out of source.keep")


def lacks(table: pa.Schema | pa.DataType, wanted: pa.Schema | pa.DataType) -> bool:
    """Columns of `wanted`, or fields inside them, are missing in `table`."""
    for field_ in wanted:
        number = table.get_field_index(field_.name)
        if number < 0:
            return True
        held = table.field(number).type
        if pa.types.is_struct(held) and pa.types.is_struct(field_.type) and lacks(held, field_.type):
            return True
    return False


def as_bytes(rows: pa.RecordBatchReader, note: dict[str, str]) -> bytes:
    """Rows and a note as an Arrow stream."""
    sink = pa.BufferOutputStream()
    schema = rows.schema.with_metadata({"note": json.dumps(note)})
    with pa.ipc.new_stream(sink, schema) as stream:
        for batch in rows:
            stream.write_batch(batch.replace_schema_metadata(schema.metadata))
    return bytes(sink.getvalue())


def from_bytes(data: bytes) -> tuple[pa.Table, dict[str, str]]:
    """What `as_bytes` was given."""
    table = pa.ipc.open_stream(data).read_all()
    return table.replace_schema_metadata(None), json.loads(table.schema.metadata[b"note"])
