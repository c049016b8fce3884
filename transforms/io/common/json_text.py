"""Converts Arrow arrays to JSON text and back, for systems that have no nested types."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.block import unwrapped


def as_json(array: pa.Array) -> pa.StringArray:
    """One JSON document for each value; null stays null.

    Bytes become base64, times ISO 8601, NaN and infinities null.
    """
    return _text(array).cast(pa.string())


def from_json(texts: Sequence[str | None], kind: pa.DataType) -> pa.Array:
    """The inverse of `as_json`, except for values that JSON can't hold, such as NaN.

    Slow: converts one value at a time. Meant for dead letters, which are few.
    """
    return pa.array([None if text is None else _value(json.loads(text), kind) for text in texts], kind)


def _value(value: Any, kind: pa.DataType) -> Any:
    types = pa.types
    if value is None:
        return None
    if types.is_struct(kind):
        return {field.name: _value(value.get(field.name), field.type) for field in kind}
    if types.is_list(kind) or types.is_large_list(kind):
        return [_value(item, kind.value_type) for item in value]
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return base64.b64decode(value)
    if isinstance(value, str) and not (types.is_string(kind) or types.is_large_string(kind)):
        return pa.scalar(value).cast(kind).as_py()
    return value


def _text(array: pa.Array) -> pa.Array:
    """JSON of each value as large_string; null where the value is null."""
    array = unwrapped(array)
    kind = array.type
    if pa.types.is_struct(kind):
        return _struct(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        values = _or_null(_text(array.flatten()))
        offsets = pa.array(pc.cumulative_sum(pc.fill_null(pc.list_value_length(array), 0)), pa.int64())
        lists = pa.LargeListArray.from_arrays(pa.concat_arrays([pa.array([0], pa.int64()), offsets]), values)
        joined = pc.binary_join(lists, _scalar(", "))
        return _blank(pc.binary_join_element_wise(_scalar("["), joined, _scalar("]"), _scalar("")), array)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind):
        return array.cast(pa.large_string())
    if pa.types.is_floating(kind):
        array = array.cast(pa.float32()) if pa.types.is_float16(kind) else array
        finite = pc.is_finite(array)
        return pc.if_else(finite, array, None).cast(pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _quoted(array, lambda value: base64.b64encode(value).decode())
    return _quoted(array.cast(pa.large_string()), str)


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
