"""The limit on dead letters: exact over every 1,000 rows in a row, whatever the blocks are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagstream.schemas.block import POSITION, Block, Span
from tagstream.schemas.dead_letters import dead_letters, no_dead
from tagstream.schemas.errors import DeadCode, DeadLetterLimitError
from tagstream.transforms.stages.dead_letter_limit import DeadLetterLimit


def block(start: int, dead: np.ndarray) -> Block:
    """One row for each flag; the rows whose flag is set are dead."""
    positions = pa.array(np.arange(start, start + len(dead)), pa.int64())
    text = pa.array(["x"] * len(dead), pa.large_string())
    batch = pa.RecordBatch.from_arrays([text, positions], names=["__text", POSITION])
    rows = np.flatnonzero(dead)
    letters = dead_letters("s", batch, rows, [DeadCode.NULL_TEXT] * len(rows), [""] * len(rows), payload=False)
    alive = batch.select([POSITION]).filter(pa.array(~dead))
    return Block(Span("s", start, start + len(dead)), alive, letters if len(rows) else no_dead(pa.schema([])))


def run(flags: np.ndarray, sizes: list[int], share: float) -> tuple[int, bool]:
    """Rows that were given back, and whether the limit stopped the run."""
    limit, at, out = DeadLetterLimit(share, len(flags)), 0, 0
    try:
        while at < len(flags):
            size = sizes[at % len(sizes)]
            for given_back in limit.see(block(at, flags[at : at + size])):
                out += given_back.num_rows
            at += size
        for given_back in limit.end():
            out += given_back.num_rows
    except DeadLetterLimitError:
        return out, True
    return out, False


@given(
    st.lists(st.tuples(st.integers(1, 900), st.floats(0, 0.12)), min_size=1, max_size=8),
    st.lists(st.integers(1, 700), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
)
def test_stops_exactly_where_a_stretch_is_bad(stretches, sizes, seed) -> None:
    """By a plain count of every window. Of the first bad window no row was given back."""
    random = np.random.default_rng(seed)
    flags = np.concatenate([random.random(rows) < share for rows, share in stretches])
    out, stopped = run(flags, sizes, 0.05)
    windows = [at for at in range(len(flags) - 999) if flags[at : at + 1000].sum() > 50]
    short = len(flags) < 1000 and flags.all()
    assert stopped == (bool(windows) or short)
    assert out <= (windows[0] if windows else 0) if stopped else out == len(flags)


def test_nothing_stops_without_a_limit() -> None:
    assert run(np.ones(3000, bool), [100], 1.0) == (3000, False)


def test_a_live_job_gets_its_blocks_at_once() -> None:
    limit = DeadLetterLimit(0.05, holds=False)
    for at in range(50):
        assert len(list(limit.see(block(at, np.array([True]))))) == 1
    assert limit.dead_share == 1.0
    with pytest.raises(DeadLetterLimitError, match="1,000 of 1,000 rows in a row are dead letters"):
        list(limit.see(block(50, np.ones(1000, bool))))
