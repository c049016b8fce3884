"""One type for a column that has different types in several files: exact for every value, or none.

The result depends on the set of types, not on the order of the files; only the order of a struct's fields is that in
which they come. A column of one type keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.types as at

from tagstream.transforms.io.common.arrow_types import is_bytes

EXACT_IN_DOUBLE = 2**53
"""Integers up to this size are exact in a double."""
UNITS = ("s", "ms", "us", "ns")
_MANTISSA = {16: 11, 32: 24, 64: 53}
"""Bits of an integer that a float of this many bits holds exactly."""
_FLOATS = {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}
_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
_MOST_DIGITS = 76


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without extension types (UUID, JSON, tensors), at any depth: these are read as their storage."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if at.is_struct(kind):
        plain = pa.struct([_plain_field(field) for field in kind])
    elif at.is_map(kind):
        plain = pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field), keys_sorted=kind.keys_sorted)
    elif at.is_fixed_size_list(kind):
        plain = pa.list_(_plain_field(kind.value_field), kind.list_size)
    elif at.is_list(kind) or at.is_large_list(kind):
        plain = (pa.large_list if at.is_large_list(kind) else pa.list_)(_plain_field(kind.value_field))
    else:
        return kind
    return kind if plain == kind else plain


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain_type(field.type))


def unified(types: Sequence[pa.DataType]) -> pa.DataType | None:
    """A type that holds the values of all `types`; None if there is none.

    Values may not fit where `needs_proof` says so. `types` are plain, see `plain_type`.
    """
    kinds = list(dict.fromkeys(kind for kind in types if not at.is_null(kind)))
    if len(kinds) < 2:
        return kinds[0] if kinds else pa.null()
    kinds = list(dict.fromkeys(kind.value_type if at.is_dictionary(kind) else kind for kind in kinds))
    for fits, join in _RULES:
        if all(fits(kind) for kind in kinds):
            return join(kinds)
    return None


def needs_proof(kind: pa.DataType, into: pa.DataType) -> bool:
    """Whether some values of type `kind` are not exact in type `into`, the result of `unified`."""
    if at.is_integer(kind) and at.is_floating(into):
        return _bits_of_integer(kind) > _MANTISSA[into.bit_width]
    if (at.is_timestamp(kind) and at.is_timestamp(into)) or (at.is_duration(kind) and at.is_duration(into)):
        return UNITS.index(kind.unit) < UNITS.index(into.unit)
    if at.is_struct(kind) and at.is_struct(into):
        return any(needs_proof(field.type, into.field(field.name).type) for field in kind)
    if at.is_map(kind) and at.is_map(into):
        return needs_proof(kind.key_type, into.key_type) or needs_proof(kind.item_type, into.item_type)
    if _is_list(kind) and _is_list(into):
        return needs_proof(kind.value_type, into.value_type)
    return False


def _is_text(kind: pa.DataType) -> bool:
    return bool(at.is_string(kind) or at.is_large_string(kind) or at.is_string_view(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(at.is_integer(kind) or at.is_floating(kind))


def _is_decimal(kind: pa.DataType) -> bool:
    return bool(at.is_decimal(kind) or at.is_integer(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(at.is_list(kind) or at.is_large_list(kind) or at.is_fixed_size_list(kind))


def _bits_of_integer(kind: pa.DataType) -> int:
    return int(kind.bit_width - at.is_signed_integer(kind))


def _integer(kinds: list[pa.DataType]) -> pa.DataType | None:
    signed = max((kind.bit_width for kind in kinds if at.is_signed_integer(kind)), default=0)
    unsigned = max((kind.bit_width for kind in kinds if at.is_unsigned_integer(kind)), default=0)
    if not signed:
        return max(kinds, key=lambda kind: kind.bit_width)
    return _SIGNED.get(max(signed, 2 * unsigned))


def _number(kinds: list[pa.DataType]) -> pa.DataType | None:
    floats = [kind.bit_width for kind in kinds if at.is_floating(kind)]
    if not floats:
        return _integer(kinds)
    bits = max((_bits_of_integer(kind) for kind in kinds if at.is_integer(kind)), default=0)
    exact = (kind for width, kind in _FLOATS.items() if width >= max(floats) and _MANTISSA[width] >= bits)
    return next(exact, pa.float64())


def _decimal(kinds: list[pa.DataType]) -> pa.DataType | None:
    shapes = [(kind.precision, kind.scale) if at.is_decimal(kind) else (_DIGITS[kind.bit_width], 0) for kind in kinds]
    scale = max(scale for _, scale in shapes)
    digits = scale + max(precision - scale for precision, scale in shapes)
    if digits > _MOST_DIGITS:
        return None
    return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale)


def _finest(kinds: list[pa.DataType]) -> pa.DataType | None:
    """Of timestamps of one zone, of times, or of durations."""
    if len({kind.tz for kind in kinds if at.is_timestamp(kind)}) > 1:
        return None
    return max(kinds, key=lambda kind: UNITS.index(kind.unit))


def _struct(kinds: list[pa.DataType]) -> pa.DataType | None:
    """All fields, in the order in which they come; a field that a type lacks is null there."""
    fields: dict[str, list[pa.DataType]] = {}
    for kind in kinds:
        if len({field.name for field in kind}) < kind.num_fields:
            return None
        for field in kind:
            fields.setdefault(field.name, []).append(field.type)
    joined = {name: unified(types) for name, types in fields.items()}
    if any(kind is None for kind in joined.values()):
        return None
    return pa.struct([pa.field(name, kind) for name, kind in joined.items()])


def _list(kinds: list[pa.DataType]) -> pa.DataType | None:
    inner = unified([kind.value_type for kind in kinds])
    if inner is None:
        return None
    sizes = {kind.list_size if at.is_fixed_size_list(kind) else -1 for kind in kinds}
    if len(sizes) == 1 and -1 not in sizes:
        return pa.list_(inner, sizes.pop())
    return (pa.large_list if all(at.is_large_list(kind) for kind in kinds) else pa.list_)(inner)


def _map(kinds: list[pa.DataType]) -> pa.DataType | None:
    key, item = unified([kind.key_type for kind in kinds]), unified([kind.item_type for kind in kinds])
    return None if key is None or item is None else pa.map_(key, item)


def _common(wide: pa.DataType) -> Callable[[list[pa.DataType]], pa.DataType]:
    """The only type there is, or else the common one."""
    return lambda kinds: kinds[0] if len(kinds) == 1 else wide


_RULES: tuple[tuple[Callable[[pa.DataType], bool], Callable[[list[pa.DataType]], pa.DataType | None]], ...] = (
    (_is_text, _common(pa.string())),
    (is_bytes, _common(pa.binary())),
    (_is_number, _number),
    (_is_decimal, _decimal),
    (at.is_timestamp, _finest),
    (at.is_time, _finest),
    (at.is_duration, _finest),
    (at.is_date, lambda _: pa.date32()),
    (at.is_struct, _struct),
    (at.is_map, _map),
    (_is_list, _list),
    (lambda _: True, lambda kinds: kinds[0] if len(kinds) == 1 else None),
)
"""Pairs of a test that all types must pass, and what joins them."""
