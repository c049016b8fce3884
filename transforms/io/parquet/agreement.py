"""What the files of one source have in common: the id and kept columns, in types that hold every file's values.

Files may differ: text is text in any type, numbers widen, and a column that a file lacks is null in its rows. What
can't be unified exactly is refused, and the message names two files and their types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.types as at

from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import ParquetSource
from tagstream.transforms.io.common.block_cutter import check_text, no_column
from tagstream.transforms.io.parquet.bounds import fits
from tagstream.transforms.io.parquet.columns import Place, find_place
from tagstream.transforms.io.parquet.files import InputFile
from tagstream.transforms.io.parquet.partitions import partition_type, partitions
from tagstream.transforms.io.parquet.unify import needs_proof, plain_type, unified

_OURS = "__"
_SHOWN = 3


def with_text(files: Sequence[InputFile], spec: ParquetSource) -> list[InputFile]:
    """The files; `error` is set in those whose text column is missing or holds no text."""
    return [replace(file, error=_text_error(file, spec)) if file.schema is not None else file for file in files]


def _text_error(file: InputFile, spec: ParquetSource) -> str | None:
    assert file.schema is not None
    try:
        place = find_place(file.schema, spec.text, file.path)
        if place is None:
            raise no_column(file.path, spec.text, "source.text", file.schema.names)
        check_text(place.type, spec.text, file.path)
    except SourceError as error:
        return str(error).removeprefix(f"{file.path}: ")
    return None


@dataclass(frozen=True)
class _Shape:
    """Files with the same columns."""

    schema: pa.Schema
    files: list[InputFile]


class Agreement:
    """The kept columns of files that can be read. `notes`: what the user should know about files that differ.

    Raises SourceError if a column is nowhere, or can't be unified.
    """

    def __init__(self, fs: Any, files: Sequence[InputFile], spec: ParquetSource) -> None:
        self._fs, self._spec = fs, spec
        self.notes: list[str] = []
        self._missing: dict[str, list[InputFile]] = {}
        shapes: dict[pa.Schema, list[InputFile]] = {}
        for file in files:
            assert file.schema is not None
            shapes.setdefault(file.schema.remove_metadata(), []).append(file)
        self._shapes = [_Shape(schema, alike) for schema, alike in shapes.items()]
        self._partitions = {file.path: partitions(file.path) for file in files}
        names = self._everything() if spec.keeps_all else spec.kept
        self.kept = pa.schema([self._field(name) for name in names])
        self._note_missing(len(files))

    def _everything(self) -> list[str]:
        """What `keep: '*'` stands for: the columns of all files, in the order in which they come."""
        names = dict.fromkeys(name for shape in self._shapes for name in shape.schema.names)
        if ours := [name for name in names if name.startswith(_OURS)]:
            self.notes.append(f"keep: '*' leaves out {_listed(ours)}: names that begin with {_OURS} can't be kept")
        apart = {name for found in self._partitions.values() for name in found} - names.keys()
        if apart:
            self.notes.append(
                f"keep: '*' means the columns inside the files; to keep {_listed(sorted(apart))} of their paths, list "
                "the columns in place of '*'"
            )
        key = self._spec.key
        some = [name for name in names if not name.startswith(_OURS) and (name != self._spec.text or name in key)]
        return some + [name for name in key if name not in some]

    def _field(self, name: str) -> pa.Field:
        places = [(shape, find_place(shape.schema, name, shape.files[0].path)) for shape in self._shapes]
        seen: list[tuple[InputFile, pa.DataType]] = [(s.files[0], place.type) for s, place in places if place]
        apart = [file for shape, place in places if place is None for file in shape.files]
        in_path = [file for file in apart if name in self._partitions[file.path]]
        if not seen and not in_path:
            first = self._shapes[0]
            field = "source.id" if name in self._spec.key else "source.keep"
            there = [*first.schema.names, *self._partitions[first.files[0].path]]
            raise no_column(first.files[0].path, name, field, there)
        if in_path:
            seen.append((in_path[0], partition_type(self._partitions[file.path][name] for file in in_path)))
        if len(in_path) < len(apart):
            self._missing[name] = [file for file in apart if name not in self._partitions[file.path]]
        kind = self._unified(name, seen)
        for shape, place in places:
            if place is not None and needs_proof(place.type, kind):
                self._prove(name, shape, place, kind, seen)
        top = self._shapes[0].schema
        if top.get_field_index(name) >= 0 and plain_type(top.field(name).type) == kind:
            return top.field(name).with_type(kind).remove_metadata().with_nullable(True)
        return pa.field(name, kind)  # nullable: a file may lack the column, and unreadable rows have no values

    def _unified(self, name: str, seen: list[tuple[InputFile, pa.DataType]]) -> pa.DataType:
        if (kind := unified([kind for _, kind in seen])) is not None:
            return kind
        pairs = combinations(seen, 2)
        one, other = next((p for p in pairs if unified([p[0][1], p[1][1]]) is None), (seen[0], seen[-1]))
        raise _refusal(name, other, one, "no type holds the values of both exactly")

    def _prove(
        self, name: str, shape: _Shape, place: Place, kind: pa.DataType, seen: list[tuple[InputFile, pa.DataType]]
    ) -> None:
        """Raises SourceError if some value of the column would change in type `kind`."""
        other = next((item for item in seen if not needs_proof(item[1], kind)), seen[-1])
        if at.is_nested(place.type):
            raise _refusal(name, (shape.files[0], place.type), other, f"values may not be exact in {kind}")
        for file in shape.files:
            try:
                exact = fits(self._fs, file.path, place, kind)
            except (OSError, pa.ArrowException) as error:
                raise SourceError(f"{file.path}: column {name!r} can't be read: {error}") from None
            if not exact:
                raise _refusal(name, (file, place.type), other, f"it has values that are not exact in {kind}")

    def _note_missing(self, files: int) -> None:
        for name, lacking in list(self._missing.items())[:_SHOWN]:
            self.notes.append(
                f"column {name!r} is null for {len(lacking):,} of {files:,} files, which do not have it: "
                + _listed([file.name for file in lacking])
            )
        if len(self._missing) > _SHOWN:
            self.notes.append(f"{len(self._missing) - _SHOWN:,} more columns are missing in some files and null there")


def _refusal(
    name: str, one: tuple[InputFile, pa.DataType], other: tuple[InputFile, pa.DataType], why: str
) -> SourceError:
    return SourceError(
        f"{one[0].path}: column {name!r} is {one[1]}, but {other[1]} in {other[0].path}: {why}. Write the column in "
        "one type, leave it out of source.keep, or label these files in a job of their own"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", …" if len(names) > _SHOWN else "")
