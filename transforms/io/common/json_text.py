"""Converts Arrow arrays to JSON text and back, for systems that have no nested types.

What each type becomes, at any depth: numbers and booleans as they are; decimals, times and text as strings; durations
as the number of their units; bytes as base64; lists of any kind as arrays; structs as objects; maps as arrays of
`{"key": …, "value": …}`, because their keys may repeat and need not be text. JSON has no NaN and no infinity: they are
the strings `"NaN"`, `"Infinity"` and `"-Infinity"`, and `not_in_json` tells which rows have them.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as at

from tagstream.schemas.block import unwrapped
from tagstream.transforms.io.common.arrow_types import is_bytes

_FRACTION = re.compile(r"([^.]*?\d\d:\d\d:\d\d)(\.\d+)?(?:Z|[+-]\d\d:?\d\d)?")


def as_json(array: pa.Array) -> pa.StringArray:
    """One JSON document for each value; null stays null."""
    return _text(array).cast(pa.string())


def from_json(texts: Sequence[str | None], kind: pa.DataType) -> pa.Array:
    """The inverse of `as_json`, exact for every type.

    Slow: converts one value at a time. Meant for dead letters, which are few.
    """
    return _array([None if text is None else _value(json.loads(text), kind) for text in texts], kind)


def not_in_json(array: pa.Array) -> np.ndarray:
    """Bool for each value: whether it holds a NaN or an infinity, at any depth."""
    array = _simple(array)
    kind = array.type
    if at.is_floating(kind):
        array = array.cast(pa.float32()) if at.is_float16(kind) else array
        return np.asarray(pc.fill_null(pc.invert(pc.is_finite(array)), fill_value=False))
    if at.is_struct(kind):
        found = np.zeros(len(array), bool)
        for child in array.flatten():
            found |= not_in_json(child)
        return found
    if at.is_list(kind) or at.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        found = np.zeros(len(array), bool)
        found[np.repeat(np.arange(len(array)), lengths)[not_in_json(array.flatten())]] = True
        return found
    return np.zeros(len(array), bool)


def _value(value: Any, kind: pa.DataType) -> Any:
    """A value of JSON as `pa.array` takes it for type `kind`; temporal values as the number of their units."""
    if isinstance(kind, pa.BaseExtensionType):
        return _value(value, kind.storage_type)
    if at.is_dictionary(kind) or at.is_run_end_encoded(kind):
        return _value(value, kind.value_type)
    if value is None or at.is_duration(kind):
        return value
    if at.is_struct(kind):
        return {field.name: _value(value.get(field.name), field.type) for field in kind}
    if at.is_map(kind):
        return [(_value(item["key"], kind.key_type), _value(item["value"], kind.item_type)) for item in value]
    if at.is_nested(kind):
        return [_value(item, kind.value_type) for item in value]
    if is_bytes(kind):
        return base64.b64decode(value)
    if at.is_decimal(kind):
        return Decimal(value)
    if at.is_floating(kind):
        return np.float16(value) if at.is_float16(kind) else float(value)
    if at.is_time(kind):
        return _units(f"1970-01-01 {value}", pa.timestamp(kind.unit))
    if at.is_timestamp(kind):
        return _units(value, kind)
    if at.is_date(kind):
        return pa.scalar(value).cast(pa.date32()).as_py()
    return value


def _units(text: str, kind: pa.DataType) -> int:
    """A time as the number of its units since 1970. Arrow's own parser fails near the limits of nanoseconds."""
    whole, fraction = _FRACTION.fullmatch(text).group(1, 2)  # type: ignore[union-attr]
    zone = text[len(whole) + len(fraction or "") :]
    seconds = pa.scalar(whole + zone).cast(pa.timestamp("s", kind.tz)).cast(pa.int64()).as_py()
    digits = {"s": 0, "ms": 3, "us": 6, "ns": 9}[kind.unit]
    return int(seconds * 10**digits + int((fraction or ".")[1:].ljust(digits, "0") or 0))


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """An array of the values that `_value` gives. `pa.array` takes no extension types, runs or structs of them."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _array(values, kind.storage_type))
    if at.is_dictionary(kind):
        return _array(values, kind.value_type).dictionary_encode().cast(kind)
    if at.is_run_end_encoded(kind):
        return pc.run_end_encode(_array(values, kind.value_type), run_end_type=kind.run_end_type)
    if at.is_struct(kind) and kind.num_fields:
        children = [_array([None if v is None else v[field.name] for v in values], field.type) for field in kind]
        mask = pa.array([value is None for value in values], pa.bool_())
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=mask)
    return pa.array(values, kind)


def _simple(array: pa.Array) -> pa.Array:
    """The array without extension types, dictionaries and runs, and with every kind of list as a list."""
    array = unwrapped(array)
    kind = array.type
    if at.is_run_end_encoded(kind):
        return _simple(pc.run_end_decode(array))
    if at.is_map(kind):
        return array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    if at.is_fixed_size_list(kind):
        return array.cast(pa.list_(kind.value_type))
    return as_list(array) if at.is_list_view(kind) or at.is_large_list_view(kind) else array


def as_list(view: pa.Array) -> pa.Array:
    """An array of list views as lists. Arrow's cast gives an array that other systems refuse."""
    lengths = pc.fill_null(pc.list_value_length(view), 0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
    large = at.is_large_list_view(view.type)
    make, width = (pa.LargeListArray, pa.int64()) if large else (pa.ListArray, pa.int32())
    return make.from_arrays(offsets.cast(width), view.flatten(), mask=pc.is_null(view))


def _text(array: pa.Array) -> pa.Array:
    """JSON of each value as large_string; null where the value is null."""
    array = _simple(array)
    kind = array.type
    if at.is_struct(kind):
        return _struct(array)
    if at.is_list(kind) or at.is_large_list(kind):
        values = _or_null(_text(array.flatten()))
        offsets = pa.array(pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0)), pa.int64())
        lists = pa.LargeListArray.from_arrays(pa.concat_arrays([pa.array([0], pa.int64()), offsets]), values)
        joined = pc.binary_join(lists, _scalar(", "))
        return _blank(pc.binary_join_element_wise(_scalar("["), joined, _scalar("]"), _scalar("")), array)
    if at.is_boolean(kind) or at.is_integer(kind) or at.is_null(kind):
        return array.cast(pa.large_string())
    if at.is_duration(kind):
        return array.cast(pa.int64()).cast(pa.large_string())
    if at.is_floating(kind):
        return _numbers(array.cast(pa.float32()) if at.is_float16(kind) else array)
    if is_bytes(kind):
        return _quoted(array.cast(pa.large_binary()), lambda value: base64.b64encode(value).decode())
    return _quoted(array.cast(pa.large_string()), str)


def _numbers(array: pa.Array) -> pa.Array:
    text = array.cast(pa.large_string())
    if np.asarray(pc.fill_null(pc.is_finite(array), fill_value=True)).all():
        return text
    for test, name in (
        (pc.is_nan(array), '"NaN"'),
        (pc.equal(array, float("inf")), '"Infinity"'),
        (pc.equal(array, float("-inf")), '"-Infinity"'),
    ):
        text = pc.if_else(pc.fill_null(test, fill_value=False), _scalar(name), text)
    return text


def _struct(array: pa.StructArray) -> pa.Array:
    if not array.type.num_fields:
        return _blank(pa.array(["{}"] * len(array), pa.large_string()), array)
    parts: list[Any] = []
    for number, (field, values) in enumerate(zip(array.type, array.flatten(), strict=True)):
        parts += [_scalar(("{" if not number else ", ") + json.dumps(field.name) + ": "), _or_null(_text(values))]
    return _blank(pc.binary_join_element_wise(*parts, _scalar("}"), _scalar("")), array)


def _quoted(array: pa.Array, to_text: Any) -> pa.Array:
    """JSON strings. Each distinct value is escaped only once."""
    encoded = array.dictionary_encode()
    words = pa.array(
        [json.dumps(to_text(value), ensure_ascii=False) for value in encoded.dictionary.to_pylist()], pa.large_string()
    )
    return words.take(encoded.indices) if len(words) else pa.nulls(len(array), pa.large_string())


def _scalar(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _or_null(text: pa.Array) -> pa.Array:
    return pc.fill_null(text, "null")


def _blank(text: pa.Array, like: pa.Array) -> pa.Array:
    """`text`, but null where `like` is null."""
    return pc.if_else(pc.is_valid(like), text, pa.scalar(None, pa.large_string())) if like.null_count else text
