"""Which rows have a text: null and invalid UTF-8 are told apart from everything else, wherever they stand."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tagstream.schemas.errors import DeadCode, SourceError
from tagstream.transforms.tokenization.text_checks import as_text, is_text, unfit_rows

raw = st.one_of(
    st.none(),
    st.binary(max_size=12),
    st.text(max_size=12).map(str.encode),
    st.sampled_from([b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xc0\x80", b"\x00", "😀".encode(), b"\xf4\x90\x80\x80"]),
)


def code(value: bytes | None) -> DeadCode | None:
    """What Python's own decoder says."""
    if value is None:
        return DeadCode.NULL_TEXT
    try:
        value.decode()
    except UnicodeDecodeError:
        return DeadCode.BAD_ENCODING
    return None


def large_string(values: list[bytes | None]) -> pa.LargeStringArray:
    return pa.array(values, pa.large_binary()).view(pa.large_string())


@settings(max_examples=200)
@given(st.lists(raw, max_size=40), st.integers(0, 5))
@example([b"\xff"], 0)
@example([b"ok", b"\xe2\x82", b"\xac"], 0)  # halves of one character in neighbouring rows
def test_unfit_rows_are_those_that_python_can_not_decode(values: list[bytes | None], offset: int) -> None:
    """Row numbers ascend, each with its code; a slice is judged by its own rows only."""
    array = large_string([b"\xff"] * offset + values + [b"\xff"]).slice(offset, len(values))
    rows, codes = unfit_rows(array)
    assert dict(zip(rows.tolist(), codes, strict=True)) == {i: c for i, v in enumerate(values) if (c := code(v))}
    assert rows.tolist() == sorted(rows.tolist())


@pytest.mark.parametrize("at", [{0}, {4095}, {0, 4095}, {1, 2, 3, 2000}, set(range(0, 4096, 7)), set(range(4096))])
def test_invalid_rows_anywhere_in_a_block(at: set[int]) -> None:
    """First, last, next to each other, every seventh, all."""
    values = [b"bad \xff" if i in at else "gut ü".encode() for i in range(4096)]
    rows, codes = unfit_rows(large_string(values))
    assert set(rows.tolist()) == at
    assert set(codes) == {DeadCode.BAD_ENCODING}


def test_bytes_under_a_null_are_not_looked_at() -> None:
    """A null may lie over any bytes: it is a null, not a bad encoding."""
    whole = large_string([b"\xff\xff", b"ok"])
    masked = pa.Array.from_buffers(pa.large_string(), 2, [pa.py_buffer(b"\x02"), *whole.buffers()[1:]])
    assert unfit_rows(masked)[1] == [DeadCode.NULL_TEXT]


TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
    pa.dictionary(pa.uint16(), pa.binary()),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
@given(st.lists(st.none() | st.text(max_size=20), max_size=20), st.integers(0, 3))
def test_every_text_type(kind: pa.DataType, values: list[str | None], offset: int) -> None:
    """Values, nulls and order stay, also of slices."""
    if pa.types.is_dictionary(kind):
        data = [v if v is None or kind.value_type != pa.binary() else v.encode() for v in values]
        array = pa.array(data, kind.value_type).dictionary_encode().cast(kind)
    else:
        array = pa.array(values, pa.string()).cast(kind)
    assert is_text(array.type)
    text = as_text(array.slice(offset), "c")
    assert text.type == pa.large_string()
    assert text.to_pylist() == values[offset:]


@pytest.mark.parametrize("bad", [b"\xff", b"a long text that does not fit in a view \xff"])
def test_invalid_bytes_pass_through(bad: bytes) -> None:
    """`as_text` judges nothing: bytes of any type arrive unchanged and are found by `unfit_rows`."""
    values = [b"ok", bad, None]
    arrays = [
        pa.array(values, pa.binary()),
        pa.array(values, pa.large_binary()),
        pa.array(values, pa.binary()).view(pa.string()),
        pa.array(values, pa.binary_view()).view(pa.string_view()),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array([b"ok", bad]).view(pa.string())),
        pa.array(values, pa.binary()).dictionary_encode(),
    ]
    for array in arrays:
        text = as_text(array, "c")
        assert text.cast(pa.large_binary()).to_pylist() == values, array.type
        assert unfit_rows(text)[1] == [DeadCode.BAD_ENCODING, DeadCode.NULL_TEXT], array.type


def test_nulls_without_a_type() -> None:
    """A column of nulls only is a text column without texts."""
    assert as_text(pa.nulls(3), "c").to_pylist() == [None] * 3


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string()), pa.dictionary(pa.int32(), pa.int64())], ids=str)
def test_other_types_are_refused(kind: pa.DataType) -> None:
    """Names column and type."""
    assert not is_text(kind)
    with pytest.raises(SourceError, match=r"column 'c' is .*, not text"):
        as_text(pa.nulls(1, kind), "c")
