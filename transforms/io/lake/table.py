"""A lake table as the sink sees it, Iceberg or Delta: rows and named whole numbers that change in one atomic step.

The numbers are the ledger. Iceberg keeps them as table properties, Delta as versions of application transactions.
They survive when snapshots expire and logs are cleaned up. The description of each commit (`note`) does not; it is
meant for people.
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
from tagstream.transforms.io.common.json_text import as_list

FOLDER = "_tagstream"
"""Subfolder of a table's folder, for files that no reader sees. The underscore keeps clean-up jobs from deleting it."""
COMMIT = "tagstream.commit"
"""Key in the note of a commit. The value is the commit's token in decimal digits."""


class ConflictError(Exception):
    """Another process changed or created the table since it was loaded. Internal: the caller loads it and tries again.

    `unsure`: this process's change may have been made nevertheless.
    """

    def __init__(self, message: str, *, unsure: bool = False) -> None:
        super().__init__(message)
        self.unsure = unsure


@dataclass(frozen=True)
class LetterFilter:
    """Selects dead letters of a job: those of `split` at positions below `stop`, or all if `split` is None."""

    job: str
    split: str | None
    stop: int

    @property
    def predicate(self) -> str:
        """A row filter in the syntax of both formats. Job names and split ids can't hold quotes."""
        job = f"job = '{self.job}'"
        return job if self.split is None else f"{job} AND split = '{self.split}' AND position < {self.stop}"


class State(Protocol):
    """A table as it was when loaded. Numbers are those of one job."""

    schema: pa.Schema

    def get(self, name: str) -> int | None:
        """The number `name`; None if it was never set."""

    def all(self) -> dict[str, int]:
        """All numbers."""

    def others(self) -> list[str]:
        """Names of other jobs that write to the table, sorted."""

    def check(self) -> None:
        """Raises LedgerError if the table was rolled back, so that the numbers count rows which are gone."""

    def seconds(self) -> dict[str, tuple[int, float]]:
        """Rows in and seconds by split, summed over those commits that the table's history still holds."""


class LakeTable(Protocol):
    """One table. `where` names the table in messages. Methods raise SinkError, without secrets in the message.

    A `state` argument must come from `load` of the same table.
    """

    where: str

    def load(self) -> State | None:
        """The newest state; None if there is no such table."""

    def create(self, schema: pa.Schema, values: dict[str, int]) -> None:
        """Create the table and set its numbers in one step. Raises ConflictError if the table exists."""

    def replace(self, state: Any, schema: pa.Schema, values: dict[str, int]) -> None:
        """Replace the table by an empty one. Raises ConflictError."""

    def values(self, column: pa.Array, name: str) -> pa.Array:
        """A column as the table stores it. `name`: of the column. Raises ArrowException for a value that would change.

        Raises SinkError for a type that the table can't hold.
        """

    def append(
        self,
        state: Any,
        rows: StagedRows | None,
        values: dict[str, int],
        note: dict[str, str],
        without: LetterFilter | None,
    ) -> None:
        """Append rows, add missing columns and set numbers, in one commit. `without`: rows to delete first.

        Raises ConflictError if one of the numbers has changed since `state`. An implementation may also raise it for
        any other change of the table.
        """

    def forget(self, staged: StagedRows) -> None:
        """Delete data files that were written for a commit which did not happen."""

    def rows(self, columns: list[str], letters: LetterFilter | None, limit: int | None) -> pa.Table:
        """At most `limit` of the current rows. No `columns`: all columns. `letters`: only these dead letters.

        A table without columns if the lake table does not exist.
        """

    def put(self, name: str, rows: pa.RecordBatchReader, note: dict[str, str]) -> None:
        """Store rows and a note in a file beside the table. Readers of the table do not see the file."""

    def take(self, name: str) -> tuple[pa.Table, dict[str, str]] | None:
        """Read what `put` stored. The file stays. None if there is no such file."""

    def drop(self, name: str) -> None:
        """Delete the file that `put` wrote, if it exists."""


@dataclass
class StagedRows:
    """The rows of one commit. Each try of the commit calls `reader`. `made`: data files that an earlier try wrote."""

    schema: pa.Schema
    rows: int
    reader: Callable[[], pa.RecordBatchReader]
    made: list[Any] = field(default_factory=list)


def new_token() -> int:
    """A random positive number of 62 bits, so that no two tokens are equal."""
    return secrets.randbits(62) | 1


def lake_schema(schema: pa.Schema) -> pa.Schema:
    """The columns with types that both formats can hold. Raises SinkError for a type that they can't."""
    return pa.schema([pa.field(f.name, _lake_type(f.type, f.name)) for f in schema])


def lake_values(column: pa.Array, name: str) -> pa.Array:
    """A column with the type that `lake_schema` gives it. Raises ArrowException for a value that would change."""
    kind, column = _lake_type(column.type, name), unwrapped(column)
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        column = as_list(column)
    if pa.types.is_duration(column.type):
        return column.cast(pa.int64())
    if pa.types.is_time(column.type):
        return pc.cast(column, pa.string())
    return column if column.type == kind else column.cast(kind)


def _lake_type(kind: pa.DataType, name: str) -> pa.DataType:
    """Unsigned integers become larger signed ones, times of day become text, durations integers of their unit."""
    types, kind = pa.types, unwrapped_type(kind)
    if types.is_struct(kind):
        return pa.struct([pa.field(f.name, _lake_type(f.type, f"{name}.{f.name}")) for f in kind])
    if types.is_map(kind):
        return pa.map_(_lake_type(kind.key_type, name), _lake_type(kind.item_type, name))
    if types.is_decimal32(kind) or types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if types.is_nested(kind) and not types.is_union(kind):
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
    raise SinkError(f"column {name!r}: a lake table can't hold the type {kind}. Leave the column out of source.keep")


def lacks(table: pa.Schema | pa.DataType, wanted: pa.Schema | pa.DataType) -> bool:
    """Whether columns of `wanted`, or fields inside them, are missing in `table`."""
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
    """The inverse of `as_bytes`."""
    table = pa.ipc.open_stream(data).read_all()
    return table.replace_schema_metadata(None), json.loads(table.schema.metadata[b"note"])
