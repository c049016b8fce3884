"""Blocks cross process boundaries unchanged, and only with the rows they have."""

from __future__ import annotations

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagstream.schemas.block import POSITION, TEXT, Block, Span
from tagstream.schemas.dead_letters import dead_letters, kept_schema, no_dead
from tagstream.schemas.errors import DeadCode
from tagstream.transforms.stages.block_coder import BlockCoder
from tests.transforms.io.source_contract import columns_of_all_types

CODER = BlockCoder()


def block_of(texts: list[str | None], dead: set[int], start: int = 0) -> Block:
    positions = pa.array(range(start, start + len(texts)), pa.int64())
    whole = pa.record_batch(
        {
            "id": pa.array([f"id{i}" for i in range(len(texts))], pa.string()),
            "tags": pa.array([[i] * (i % 3) for i in range(len(texts))], pa.list_(pa.int16())),
            TEXT: pa.array(texts, pa.large_string()),
            POSITION: positions,
        }
    )
    rows = sorted(dead)
    letters = dead_letters("s", whole, rows, [DeadCode.NULL_TEXT] * len(rows), [""] * len(rows), payload=True)
    alive = [i not in dead for i in range(len(texts))]
    return Block(
        Span("splitté", start, start + len(texts)),
        whole.filter(pa.array(alive, pa.bool_())),
        letters if rows else no_dead(kept_schema(whole.schema)),
    )


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(st.none() | st.text(max_size=30), max_size=20), st.integers(0, 1 << 50))
def test_round_trip_of_slices(data: st.DataObject, texts: list[str | None], start: int) -> None:
    """Span, rows, schemas of any part of any block."""
    dead = data.draw(st.sets(st.integers(0, len(texts) - 1), max_size=5)) if texts else set()
    block = block_of(texts, dead, start).after(start + data.draw(st.integers(0, len(texts))))
    again = CODER.decode(CODER.encode(block))
    assert again.span == block.span
    assert again.batch.equals(block.batch)
    assert again.batch.schema == block.batch.schema
    assert again.dead.equals(block.dead)
    assert again.dead.schema == block.dead.schema


def test_every_kept_type_passes() -> None:
    """Whatever column a source keeps, workers get it unchanged."""
    columns = {**columns_of_all_types(30), POSITION: pa.array(range(30), pa.int64())}
    batch = pa.record_batch(columns).slice(7, 11)
    block = Block(Span("s", 7, 18), batch, no_dead(kept_schema(batch.schema)))
    again = CODER.decode(CODER.encode(block)).batch
    assert again.schema == batch.schema
    assert str(again.to_pylist()) == str(batch.to_pylist())


def test_a_slice_does_not_drag_its_parent_along() -> None:
    """Ten rows of ten thousand are encoded as ten rows."""
    block = block_of([f"{i:0200d}" for i in range(10_000)], set())
    small = block.after(9_990)
    assert len(CODER.encode(small)) < len(CODER.encode(block)) / 100
    assert len(CODER.encode(small)) < len(CODER.encode(block_of([f"{i:0200d}" for i in range(10)], set()))) * 1.2


@settings(max_examples=30, deadline=None)
@given(st.integers(200, 2_000), st.integers(20, 300), st.integers(0, 1_900), st.integers(0, 60))
def test_size_estimate_is_close(rows: int, length: int, cut: int, dead: int) -> None:
    """Within a tenth, and what the schemas take; also of slices and with dead letters."""
    block = block_of(["x" * (length - i % 7) for i in range(rows)], set(range(0, min(rows, dead), 2)))
    block = block.after(min(cut, rows - 1))
    true = len(CODER.encode(block))
    assert abs(CODER.estimate_size(block) - true) <= 0.1 * true + 4_000


def test_beam_uses_it() -> None:
    """It is registered for blocks, and never makes a key."""
    assert isinstance(beam.coders.registry.get_coder(Block), BlockCoder)
    assert not CODER.is_deterministic()
    assert CODER.to_type_hint() is Block


@pytest.mark.parametrize("texts", [[], [None], ["x" * 1_000_000]])
def test_extremes(texts: list[str | None]) -> None:
    """No rows, a null, a megabyte."""
    block = block_of(texts, set())
    again = CODER.decode(CODER.encode(block))
    assert again.batch.equals(block.batch)
    assert again.batch[TEXT].to_pylist() == texts


def test_decoded_blocks_can_be_worked_with() -> None:
    """NumPy may look into the decoded buffers, and the encoded bytes may go away."""
    encoded = CODER.encode(block_of(["a", "b"], {1}))
    block = CODER.decode(encoded)
    del encoded
    assert np.asarray(block.batch[POSITION]).tolist() == [0]
    assert block.dead["position"].to_pylist() == [1]
