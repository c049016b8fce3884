"""Encodes rows as Avro: makes the schema of a job's columns, and each row's bytes. Knows no registry.

Arrow first converts whole columns to Avro's types: times become integers, maps become lists of pairs. Then fastavro's
compiled writer encodes one row at a time, because each row is a message. This takes about 5 microseconds a row.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import unwrapped, unwrapped_type
from tagstream.schemas.errors import SpecError

Schema = dict[str, Any]
_LOGICAL = {
    pa.date32(): ("int", "date"),
    pa.time32("s"): ("int", "time-millis"),
    pa.time32("ms"): ("int", "time-millis"),
    pa.time64("us"): ("long", "time-micros"),
    pa.time64("ns"): ("long", "time-nanos"),
}
_UNITS = {"s": "millis", "ms": "millis", "us": "micros", "ns": "nanos"}
_WIDER = {("int", "long"), ("float", "double")}
"""(type of the column, wider type that a schema of the user's may have instead)."""


def avro_schema(columns: pa.Schema, name: str) -> Schema:
    """A record schema in which every field is nullable. In names, characters that Avro forbids become underscores.

    Raises SpecError for a column whose type has no counterpart in Avro, and for two columns with the same Avro name.
    """
    return {"type": "record", "name": _name(name), "namespace": "tagstream", "fields": _fields(list(columns), "")}


class AvroRows:
    """Encodes record batches of the schema `columns`. Attribute `schema`: the Avro schema for readers, as JSON values.

    `given`: a file whose schema replaces the generated one. The schema must have a field for each column, of the
    generated type or a wider one. It may leave out null, rename records, reorder fields, and add documentation and
    fields with a default. Raises SpecError if the schema does not fit.
    """

    def __init__(self, columns: pa.Schema, name: str, given: str | None = None) -> None:
        self.names = columns.names
        made = avro_schema(columns, name)
        self.schema = made if given is None else _given(given, made)
        self._wire = fastavro.parse_schema(_without_logical_types(self.schema))

    def __call__(self, batch: pa.RecordBatch, prefix: bytes = b"") -> list[bytes | None]:
        """One encoded value for each row, with `prefix` in front. None for a row that the schema can't hold."""
        columns = pa.StructArray.from_arrays(
            [_plain(batch.column(name)) for name in self.names], names=[_name(name) for name in self.names]
        )
        values: list[bytes | None] = []
        for row in columns.to_pylist() if self.names else [{}] * batch.num_rows:
            body = io.BytesIO()
            body.write(prefix)
            try:
                fastavro.schemaless_writer(body, self._wire, row)
            except (TypeError, ValueError, OverflowError):  # fastavro raises these for a value of a wrong type
                values.append(None)
            else:
                values.append(body.getvalue())
        return values


def _fields(fields: list[pa.Field], at: str) -> list[Schema]:
    names = [_name(field.name) for field in fields]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SpecError(f"two columns would have the Avro name {min(twice)!r}. Rename one of them")
    return [
        {"name": name, "type": _nullable(field.type, f"{at}{name}"), "default": None}
        | ({} if name == field.name else {"column": field.name})
        for name, field in zip(names, fields, strict=True)
    ]


def _nullable(kind: pa.DataType, at: str) -> Any:
    return "null" if pa.types.is_null(kind) else ["null", _type(kind, at)]


def _type(kind: pa.DataType, at: str) -> Any:
    """Avro's type of a column. `at`: the column's path, which gives nested records their names."""
    types, kind = pa.types, unwrapped_type(kind)
    if types.is_boolean(kind):
        return "boolean"
    if types.is_uint64(kind):
        return {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 0}
    if types.is_integer(kind):
        return "long" if kind.bit_width == 64 or kind == pa.uint32() else "int"
    if types.is_floating(kind):
        return "double" if kind.bit_width == 64 else "float"
    if types.is_decimal(kind):
        return {"type": "bytes", "logicalType": "decimal", "precision": kind.precision, "scale": kind.scale}
    if kind in _LOGICAL or types.is_date64(kind):
        base, logical = _LOGICAL[pa.date32() if types.is_date64(kind) else kind]
        return {"type": base, "logicalType": logical}
    if types.is_timestamp(kind):
        return {"type": "long", "logicalType": f"{'' if kind.tz else 'local-'}timestamp-{_UNITS[kind.unit]}"}
    if types.is_duration(kind):
        return {"type": "long", "unit": kind.unit}
    if types.is_struct(kind):
        return {"type": "record", "name": _name(at), "fields": _fields(list(kind), f"{at}_")}
    if types.is_map(kind):
        pair = [pa.field("key", kind.key_type), pa.field("value", kind.item_type)]
        record = {"type": "record", "name": f"{_name(at)}_entry", "fields": _fields(pair, f"{at}_entry_")}
        return {"type": "array", "items": ["null", record], "logicalType": "map"}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return {"type": "array", "items": _nullable(kind.value_type, f"{at}_item")}
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "string"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return "bytes"
    raise SpecError(f"Avro has no type for column {at!r} of type {kind}. Leave the column out, or set sink.mode: json")


def _plain(array: pa.Array) -> pa.Array:
    """The column converted so that the encoder takes its Python values. Nested fields get their Avro names."""
    array = unwrapped(array)
    types, kind = pa.types, array.type
    if types.is_uint64(kind):
        return array.cast(pa.decimal128(20, 0))
    if types.is_float16(kind):
        return array.cast(pa.float32())
    if types.is_date64(kind):
        return array.cast(pa.date32()).cast(pa.int32())
    if kind == pa.time32("s"):
        return array.cast(pa.time32("ms")).cast(pa.int32())
    if types.is_timestamp(kind) and kind.unit == "s":
        return array.cast(pa.timestamp("ms", kind.tz)).cast(pa.int64())
    if kind in _LOGICAL or types.is_timestamp(kind) or types.is_duration(kind):
        return array.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    if types.is_struct(kind):
        if not kind.num_fields:
            return array
        parts = [_plain(part) for part in array.flatten()]
        return pa.StructArray.from_arrays(parts, names=[_name(field.name) for field in kind], mask=array.is_null())
    if types.is_map(kind):
        pairs = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
        return _plain(pairs)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
        return pa.LargeListArray.from_arrays(offsets, _plain(array.flatten()), mask=array.is_null())
    return array


def _given(path: str, made: Schema) -> Schema:
    where = f"sink.avro_schema {path}"
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
        expanded = fastavro.schema.expand_schema(given)
    except Exception as error:  # noqa: BLE001  fastavro raises many kinds
        raise SpecError(f"{where}: not an Avro schema: {error}") from None
    if not isinstance(expanded, dict) or expanded.get("type") != "record":
        raise SpecError(f"{where}: the schema must be a record schema")
    if wrong := _misfit(expanded, made):
        raise SpecError(f"{where}: {wrong}; `tagstream schema --avro SPEC` prints a schema that fits")
    return dict(given)


def _misfit(given: Any, made: Any, at: str = "") -> str | None:
    """Why values of the generated schema `made` can't be written with schema `given`. None if they can."""
    if isinstance(made, list):  # null or the type itself; the user may leave null out
        branches = [b for b in given if b != "null"] if isinstance(given, list) else [given]
        given, made = (branches[0] if len(branches) == 1 else given), made[1]
    mine, theirs = _kind(made), _kind(given)
    if mine == "record" == theirs:
        fields = {field["name"]: field for field in given["fields"]}
        for field in made["fields"]:
            here = f"{at}{field['name']}"
            if field["name"] not in fields:
                return f"there is no field for column {here!r}"
            if wrong := _misfit(fields.pop(field["name"])["type"], field["type"], f"{here}."):
                return wrong
        extra = [name for name, field in fields.items() if "default" not in field]
        return f"field {at}{extra[0]!r} has no default, and the job has no such column" if extra else None
    if mine == "array" == theirs:
        return _misfit(given["items"], made["items"], at)
    logical = given.get("logicalType") if isinstance(given, dict) else None
    wanted = made.get("logicalType") if isinstance(made, dict) else None
    fits = mine == theirs or (mine, theirs) in _WIDER or (mine, theirs) == ("string", "enum")
    if fits and (logical == wanted or (logical is None and wanted != "decimal")):
        same = not logical or all(made.get(key) == given.get(key, 0) for key in ("precision", "scale") if key in made)
        if same:
            return None
    return f"field {at.rstrip('.')!r} is {json.dumps(given)}, but the column is {json.dumps(made)}"


def _kind(schema: Any) -> Any:
    return schema["type"] if isinstance(schema, dict) else schema if isinstance(schema, str) else "union"


def _without_logical_types(schema: Any) -> Any:
    """A schema with the same encoding that takes plain numbers in place of times. Decimals keep their logical type."""
    if isinstance(schema, list):
        return [_without_logical_types(branch) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "logicalType" or value == "decimal"}
    for key in ("type", "items", "values"):
        if key in kept:
            kept[key] = _without_logical_types(kept[key])
    if "fields" in kept:
        kept["fields"] = [_without_logical_types(field) for field in kept["fields"]]
    return kept


def _name(name: str) -> str:
    """The name with underscores in place of characters that Avro forbids."""
    allowed = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return allowed if re.match(r"[A-Za-z_]", allowed) else f"_{allowed}"
