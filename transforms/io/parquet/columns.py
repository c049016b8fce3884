"""Finds a job's columns in one file, and gives its rows the columns that all files of the source share.

A name means a column of that name, or else a path into structs (`message.body`; quotes for a literal dot:
`"a.b".c`), or else a partition of the file's path. A column that a file lacks is null in its rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.types as at

from tagstream.schemas.errors import SourceError
from tagstream.transforms.io.parquet.partitions import partitions
from tagstream.transforms.io.parquet.unify import plain_type

_PATH = re.compile(r'(?:"[^"]+"|[^."]+)(?:\.(?:"[^"]+"|[^."]+))*')
_STEP = re.compile(r'"([^"]+)"|([^."]+)')


@dataclass(frozen=True)
class Place:
    """Where a column is in a file: the names from the top to a field of a struct, and its type in the file."""

    path: tuple[str, ...]
    type: pa.DataType

    @property
    def selects(self) -> str:
        """How Parquet calls it."""
        return ".".join(self.path)


def find_place(schema: pa.Schema, name: str, where: str) -> Place | None:
    """The place of a column; None if the file has none of that name.

    Raises SourceError, naming the file `where`, if there are several, or the path leads through something else than
    structs.
    """
    if schema.get_field_index(name) >= 0:
        return Place((name,), plain_type(schema.field(name).type))
    if name in schema.names:
        raise SourceError(f"{where}: has several columns named {name!r}")
    first, *rest = steps(name)
    if (index := schema.get_field_index(first)) < 0:
        return None
    done, kind = [first], plain_type(schema.field(index).type)
    for step in rest:
        if at.is_null(kind):
            return Place(tuple(done), kind)
        if at.is_nested(kind) and not at.is_struct(kind):
            raise SourceError(
                f"{where}: {name!r} leads into {'.'.join(done)!r}, which is {kind}: a row would have many values. "
                f"Only fields of structs have a path; keep {'.'.join(done)!r} as a whole"
            )
        if not at.is_struct(kind):
            raise SourceError(f"{where}: {name!r} leads into {'.'.join(done)!r}, which is {kind} and has no fields")
        if (index := kind.get_field_index(step)) < 0:
            return None
        done.append(step)
        kind = kind.field(index).type
    return Place(tuple(done), kind)


def steps(name: str) -> list[str]:
    """The parts of a path. What is no path is one part."""
    if not _PATH.fullmatch(name):
        return [name]
    return [quoted or plain for quoted, plain in _STEP.findall(name)]


def conform(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column's values in another type, which `unified` gave. Raises ArrowInvalid if one does not fit."""
    if isinstance(column, pa.ExtensionArray):
        return conform(column.storage, kind)
    if column.type == kind:
        return column
    if at.is_dictionary(column.type) and not at.is_dictionary(kind):
        column = column.dictionary_decode()
    return column.cast(kind)


class FileColumns:
    """What the rows of one file need, to have the text column `text` and the columns `kept`."""

    def __init__(self, schema: pa.Schema, path: str, text: str, kept: pa.Schema) -> None:
        self.kept, self.text = kept, text
        self.places = {name: find_place(schema, name, path) for name in dict.fromkeys([text, *kept.names])}
        self.values = partitions(path)

    @property
    def selection(self) -> list[str]:
        """What to read."""
        return [place.selects for place in self.places.values() if place is not None]

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """A batch as it was read, with the shared columns."""
        columns = {field.name: self._column(batch, field) for field in self.kept}
        if self.text not in columns:
            columns[self.text] = value_at(batch, self.places[self.text])
        return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))

    def _column(self, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        if (place := self.places[field.name]) is not None:
            return conform(value_at(batch, place), field.type)
        value = self.values.get(field.name)
        if value is None:
            return pa.nulls(batch.num_rows, field.type)
        return pa.repeat(pa.scalar(value, pa.string()), batch.num_rows).cast(field.type)


def value_at(batch: pa.RecordBatch, place: Place | None) -> pa.Array:
    """The column at a place, in its own type."""
    assert place is not None
    column = batch.column(place.path[0])
    for step in place.path[1:]:
        column = column.storage if isinstance(column, pa.ExtensionArray) else column
        column = column.flatten()[column.type.get_field_index(step)]  # a null struct has null fields
    return column
