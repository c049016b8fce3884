"""Two jobs have the same fingerprint exactly if everything that decides their rows is the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tagstream.schemas.fingerprint import Fingerprint

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
parts = st.dictionaries(st.text(min_size=1, max_size=4), values, max_size=3)


@given(parts)
def test_survives_json(values: dict) -> None:
    """Stored with the output and read again it is the same."""
    fingerprint = Fingerprint(values)
    again = Fingerprint.from_json(fingerprint.to_json())
    assert (again, again.hash) == (fingerprint, fingerprint.hash)
    assert fingerprint.differences(again) == []


@given(parts, parts)
def test_same_hash_same_parts(one: dict, two: dict) -> None:
    """The hash tells different parts apart, whatever their order."""
    a, b = Fingerprint(one), Fingerprint(two)
    assert (a.hash == b.hash) == (a.to_json() == b.to_json())
    assert Fingerprint(dict(reversed(one.items()))).hash == a.hash


def test_differences_name_the_part_and_both_values() -> None:
    """Dotted names into lists and mappings; a part that is missing on one side counts."""
    here = Fingerprint({"classify": [{"as": "x", "max_length": 64}], "columns": ["id: int64"]})
    there = Fingerprint({"classify": [{"as": "x", "max_length": 128}], "columns": ["id: int64", "tag: string"]})
    assert here.differences(there) == [
        "infer.0.max_length: 64 here, 128 there",  # as the specification calls it
        "columns.1: None here, 'tag: string' there",
    ]


def test_hash_is_stable() -> None:
    """The same in every version: outputs carry it for years."""
    assert Fingerprint({"a": [1, {"b": None}], "ü": "é"}).hash == "933f14d0dc57625a"
