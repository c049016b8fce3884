"""Spans, split ids, and the part of a block above a position."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagstream.schemas.block import POSITION, TEXT, Block, Span, Split, split_id
from tagstream.schemas.dead_letters import dead_letters, no_dead
from tagstream.schemas.errors import DeadCode

KEPT = pa.schema([("id", pa.int64())])


def block_of(start: int, alive: list[bool], gap: int = 0) -> Block:
    """A block whose rows are alive or dead; positions `gap` apart from each other, as in a compacted topic."""
    step = gap + 1
    positions = [start + i * step for i in range(len(alive))]
    whole = pa.record_batch(
        {
            "id": pa.array(positions, pa.int64()),
            TEXT: pa.array([f"text {p}" for p in positions], pa.large_string()),
            POSITION: pa.array(positions, pa.int64()),
        }
    )
    rows = [i for i, a in enumerate(alive) if not a]
    dead = dead_letters("s", whole, rows, [DeadCode.NULL_TEXT] * len(rows), [""] * len(rows), payload=True)
    batch = whole.filter(pa.array(alive, pa.bool_()))
    return Block(Span("s", start, start + len(alive) * step), batch, dead if rows else no_dead(KEPT))


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_span_never_runs_backwards(start: int, stop: int) -> None:
    """A span of no rows is fine, one of less than none is a defect."""
    if stop >= start:
        assert Span("s", start, stop).stop == stop
    else:
        with pytest.raises(ValueError, match="stops before it starts"):
            Span("s", start, stop)


@given(st.integers(0, 50), st.lists(st.booleans(), max_size=12), st.integers(0, 3), st.integers(-5, 120))
def test_after_keeps_exactly_what_is_above(start: int, alive: list[bool], gap: int, position: int) -> None:
    """Rows at and above the position, alive or dead; the span follows; nothing else changes."""
    block = block_of(start, alive, gap)
    rest = block.after(position)
    cut = min(max(position, block.span.start), block.span.stop)
    assert rest.span == Span("s", cut, block.span.stop)
    assert rest.batch.column(POSITION).to_pylist() == [
        p for p in block.batch.column(POSITION).to_pylist() if p >= position
    ]
    assert rest.dead.column("position").to_pylist() == [
        p for p in block.dead.column("position").to_pylist() if p >= position
    ]
    assert rest.batch.column(TEXT).to_pylist() == [f"text {p}" for p in rest.batch.column(POSITION).to_pylist()]
    assert rest.batch.schema == block.batch.schema
    assert rest.dead.schema == block.dead.schema


@given(st.integers(0, 9), st.lists(st.booleans(), max_size=10), st.integers(0, 30), st.integers(0, 30))
def test_after_twice_is_after_the_larger(start: int, alive: list[bool], one: int, two: int) -> None:
    """Cutting in steps and cutting at once give the same."""
    block = block_of(start, alive)
    steps, at_once = block.after(one).after(two), block.after(max(one, two))
    assert steps.span == at_once.span
    assert steps.batch.equals(at_once.batch)
    assert steps.dead.equals(at_once.dead)


@given(st.lists(st.booleans(), max_size=10))
def test_rows_are_alive_and_dead_ones(alive: list[bool]) -> None:
    """Every row of the span is counted once."""
    block = block_of(0, alive)
    assert block.num_rows == len(alive) == block.span.stop
    assert block.batch.num_rows == sum(alive)


def test_bytes_are_those_of_the_slice() -> None:
    """A short rest of a long block is small, whatever buffers it shares."""
    block = block_of(0, [True] * 10_000)
    assert block.after(9_990).nbytes < block.nbytes / 500


@given(st.text(max_size=60), st.integers())
def test_split_id_is_fit_for_file_names(stem: str, number: int) -> None:
    """Letters, digits and hyphens, of bounded length, never starting like an option or a hidden file."""
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}-[0-9a-f]{12}", split_id(stem, number=number))


def test_split_id_depends_on_identity_only_through_its_hash() -> None:
    """The same input gives the same id, in any order of the parts; any change gives another."""
    assert split_id("a", x=1, y="b") == split_id("a", y="b", x=1)
    assert split_id("a", x=1) != split_id("a", x=2)
    assert split_id("A b", x=1) == split_id("a-b", x=1), "the stem is for people; the hash tells inputs apart"


def test_rows_of_a_split() -> None:
    """Unknown for a stream."""
    assert Split("s", 3, 10).rows == 7
    assert Split("s", 3, None).rows == 0
