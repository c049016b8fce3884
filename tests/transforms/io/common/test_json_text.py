"""Arrow values as JSON and back: every type, exactly."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from tagstream.transforms.io.common.json_text import as_json, from_json, not_in_json
from tests.transforms.io.arrow_values import VALUES


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("first", [0, 1])
def test_there_and_back(kind: str, first: int) -> None:
    """Alone and inside a struct, as dead letters keep their rows. Every document is JSON as the standard has it."""
    array = VALUES[kind].slice(first)
    texts = as_json(array).to_pylist()
    assert [text is None for text in texts] == [value is None for value in array.to_pylist()]
    for text in filter(None, texts):
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    back = from_json(texts, array.type)
    assert back.type == array.type
    np.testing.assert_equal(back.to_pylist(), array.to_pylist())
    if pa.types.is_temporal(array.type) and array.type.bit_width == 64:  # Python has no nanoseconds
        assert back.view(pa.int64()).equals(array.view(pa.int64()))
    row = pa.StructArray.from_arrays([array], ["x"])
    back = from_json(as_json(row).to_pylist(), row.type)
    assert back.type == row.type
    np.testing.assert_equal(back.to_pylist(), row.to_pylist())


WITH_NAN = {"float16": [2], "float32": [1, 2], "float64": [1, 2], "struct-of-nan": [0, 1]}
"""Rows with a NaN or an infinity. Arrow says that a NaN equals nothing."""


@pytest.mark.parametrize("kind", VALUES)
def test_what_json_does_not_have(kind: str) -> None:
    array = VALUES[kind]
    assert np.flatnonzero(not_in_json(array)).tolist() == WITH_NAN.get(kind, [])
    lists = pa.ListArray.from_arrays([0, 0, 2, 3], array) if kind not in NO_LISTS else None
    if lists is not None:
        rows = {1 if row < 2 else 2 for row in WITH_NAN.get(kind, [])}
        assert set(np.flatnonzero(not_in_json(lists))) == rows


NO_LISTS = {"null"}
