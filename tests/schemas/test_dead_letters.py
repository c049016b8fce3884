"""Dead letters: position, code, message, payload and row of exactly the rows that died."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tagstream.schemas.block import ORIGIN_POSITION, ORIGIN_SPLIT, POSITION, TEXT
from tagstream.schemas.dead_letters import dead_letters, dead_schema, kept_schema, no_dead, unreadable
from tagstream.schemas.errors import REASONS, DeadCode

KEPT = pa.schema([("id", pa.string()), ("tags", pa.list_(pa.int32()))])


def batch(**more) -> pa.RecordBatch:
    columns = {
        "id": pa.array(["a", "b", "c"]),
        "tags": pa.array([[1], None, []], pa.list_(pa.int32())),
        TEXT: pa.array([b"x", None, b"\xff"], pa.large_binary()).view(pa.large_string()),
        POSITION: pa.array([7, 8, 9], pa.int64()),
        **more,
    }
    return pa.record_batch(columns)


def test_every_code_has_a_reason() -> None:
    """A sentence for each, so that a report never shows a bare code."""
    assert set(REASONS) == set(DeadCode)
    assert all(reason and not reason.endswith(".") for reason in REASONS.values())


def test_letter_says_everything() -> None:
    """Split, position, code, the message or the code's reason, original bytes, id and kept columns."""
    codes = [DeadCode.NULL_TEXT, DeadCode.BAD_ENCODING]
    letters = dead_letters("s", batch(), [1, 2], codes, ["", "odd"], payload=True)
    assert letters.schema == dead_schema(KEPT)
    assert letters.to_pylist() == [
        {
            "split": "s", "position": 8, "code": "null_text", "message": REASONS[DeadCode.NULL_TEXT],
            "payload": None, "row": {"id": "b", "tags": None}, "origin_split": "s", "origin_position": 8,
        },
        {
            "split": "s", "position": 9, "code": "bad_encoding", "message": "odd",
            "payload": b"\xff", "row": {"id": "c", "tags": []}, "origin_split": "s", "origin_position": 9,
        },
    ]  # fmt: skip


def test_payload_can_be_left_out() -> None:
    """`payload: false` keeps no text in dead letters."""
    letters = dead_letters("s", batch(), [0], [DeadCode.TOO_LONG], ["long"], payload=False)
    assert letters.column("payload").to_pylist() == [None]


def test_replayed_letter_remembers_its_origin() -> None:
    """Where it was first seen, not where it was read from."""
    origin = {ORIGIN_SPLIT: pa.array(["o"] * 3), ORIGIN_POSITION: pa.array([1, 2, 3], pa.int64())}
    letters = dead_letters("s", batch(**origin), [2], [DeadCode.BAD_ENCODING], [""], payload=True)
    row = letters.to_pylist()[0]
    assert (row["split"], row["position"], row["origin_split"], row["origin_position"]) == ("s", 9, "o", 3)
    assert letters.schema == dead_schema(KEPT), "our own columns are never kept"


def test_no_kept_columns_no_row() -> None:
    """Without id and kept columns there is no row: Parquet has no empty structs."""
    letters = dead_letters("s", batch().select([TEXT, POSITION]), [0], [DeadCode.TOO_LONG], [""], payload=True)
    assert letters.schema == dead_schema(pa.schema([]))
    assert "row" not in letters.schema.names
    assert unreadable("s", 0, 2, "gone", pa.schema([])).schema == letters.schema


def test_unreadable_rows_are_counted_one_by_one() -> None:
    """One letter a position."""
    letters = unreadable("s", 5, 9, "gone", KEPT)
    assert letters.schema == dead_schema(KEPT)
    assert letters.column("position").to_pylist() == [5, 6, 7, 8] == letters.column("origin_position").to_pylist()
    assert set(letters.column("code").to_pylist()) == {"bad_file"}
    assert letters.column("row").null_count == 4


def test_kept_schema_leaves_our_columns_out() -> None:
    """All that begins with two underscores is ours."""
    assert kept_schema(batch().schema) == KEPT
    assert no_dead(KEPT).num_rows == 0
    assert no_dead(KEPT).schema == dead_schema(KEPT)


@pytest.mark.parametrize("text", [pa.string(), pa.large_string()])
def test_any_text_type_of_a_block(text: pa.DataType) -> None:
    """Both string types of Arrow."""
    source = pa.record_batch({TEXT: pa.array(["x"], text), POSITION: pa.array([0], pa.int64())})
    assert dead_letters("s", source, [0], [DeadCode.TOO_LONG], [""], payload=True)["payload"].to_pylist() == [b"x"]
