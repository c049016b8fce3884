"""Null lists and maps of structs, which PyIceberg turns into empty ones, both when it writes and when it reads.

`ArrowProjectionVisitor` (PyIceberg 0.12) makes such arrays anew from offsets and values, without their nulls.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as at


def may_become_empty(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold such a value, at any depth."""
    if at.is_list(kind) or at.is_large_list(kind) or at.is_fixed_size_list(kind):
        return at.is_struct(kind.value_type) or may_become_empty(kind.value_type)
    if at.is_map(kind):
        return at.is_struct(kind.item_type) or may_become_empty(kind.item_type)
    return at.is_struct(kind) and any(may_become_empty(field.type) for field in kind)


def check_nulls(array: pa.Array) -> None:
    """Raises ArrowInvalid if a value of the array would become another one."""
    kind = array.type
    if not may_become_empty(kind):
        return
    if at.is_struct(kind):
        for child in array.filter(array.is_valid()).flatten():
            check_nulls(child)
        return
    values = array.items if at.is_map(kind) else array.flatten()
    if array.null_count and at.is_struct(values.type):
        raise pa.ArrowInvalid("PyIceberg stores a null list or map of structs as an empty one")
    check_nulls(values)
