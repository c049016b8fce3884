"""When two tables of labels are the same: scores depend a little on which texts were in a micro-batch together."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest


def near(value: Any) -> Any:
    """The value, with room for rounding wherever a float is."""
    if isinstance(value, dict):
        return {name: near(item) for name, item in value.items()}
    if isinstance(value, list):
        return [near(item) for item in value]
    return pytest.approx(value, abs=1e-5) if isinstance(value, float) else value


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    """Same columns of the same types, same rows in the same order."""
    assert [(f.name, f.type) for f in found.schema] == [(f.name, f.type) for f in expected.schema]
    assert found.to_pylist() == near(expected.to_pylist())
