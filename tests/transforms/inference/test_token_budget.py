"""A busy engine finds the fastest token budget and keeps it for the next process. An idle engine does not search."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.token_budget import (
    FILE,
    FIRST_PASSES,
    GROW_PASSES,
    RUN_PASSES,
    TURNS,
    TokenBudget,
    budget_of,
)

SEARCH = len(TURNS) * (RUN_PASSES + 3)
"""Passes of one comparison."""


def run(budget: TokenBudget, rate: Callable[[int, float], float], passes: int, *, busy: bool = True) -> list[int]:
    """Report full micro-batches, one after the other. `rate`: tokens/s by budget and time. Returns the budgets used."""
    now, used = 0.0, []
    for _ in range(passes):
        used.append(tokens := budget.tokens)
        now += tokens / rate(tokens, now)
        budget.passed(tokens, tokens, now, busy=busy)
    return used


@given(st.sampled_from([1, 2, 4, 8]), st.floats(-0.3, 0.3))
def test_finds_the_fastest(factor: int, drift: float) -> None:
    """The budget doubles while that is faster, even if changing text lengths also change the speed."""
    found: list[int] = []
    budget = TokenBudget(100, seek=True, found=found.append)
    assert {*run(budget, lambda tokens, _: tokens, FIRST_PASSES)} == {100}, "a short job is left alone"
    run(budget, lambda tokens, now: 1e4 * min(tokens, 100 * factor) ** 0.5 * (1 + drift * now / 100), 5 * SEARCH)
    assert budget.tokens == 100 * factor
    assert found == [100 * factor]


def test_a_little_faster_is_not_worth_it() -> None:
    """3 % more speed is not worth more padding and longer waits."""
    budget = TokenBudget(100, seek=True)
    run(budget, lambda tokens, _: 1e4 * (1.03 if tokens > 100 else 1.0), FIRST_PASSES + SEARCH)
    assert budget.tokens == 100


@pytest.mark.parametrize("parallel", [1, 2, 4, 8])
@pytest.mark.parametrize(("gain", "wrong"), [(1.0, {200, 400, 800}), (1.3, {100, 400, 800})])
def test_passes_that_run_at_once(parallel: int, gain: float, wrong: set[int]) -> None:
    """Passes with the old budget may end during the new budget's run. They favour neither budget."""
    mistakes = 0
    for seed in range(30):
        chance = random.Random(seed)
        budget = TokenBudget(100, seek=True, parallel=parallel)
        running: list[tuple[float, int, int]] = [(chance.random(), n, budget.tokens) for n in range(parallel)]
        heapq.heapify(running)
        for number in range(parallel, 5000):
            at, _, tokens = heapq.heappop(running)
            budget.passed(tokens, tokens, at, busy=True)
            rate = 100 * (gain if budget.tokens >= 200 else 1.0)
            took = budget.tokens / rate * chance.gauss(1, 0.05)
            heapq.heappush(running, (at + took, number, budget.tokens))
        mistakes += budget.tokens in wrong
    assert mistakes <= 1


def test_idle_engine_tries_nothing() -> None:
    """An idle engine's passes say nothing about speed, and its rows must not wait for larger micro-batches."""
    budget = TokenBudget(100, seek=True)
    assert set(run(budget, lambda tokens, _: tokens, 3 * SEARCH, busy=False)) == {100}


def test_given_budget_stays() -> None:
    """A budget from the specification is never changed, even if another one is faster."""
    assert set(run(TokenBudget(100), lambda tokens, _: tokens, 3 * SEARCH)) == {100}


def test_shortage_of_memory_ends_the_search() -> None:
    """The budget is halved until it fits. After a while it grows again, but not beyond the best budget."""
    found: list[int] = []
    budget = TokenBudget(100, seek=True, found=found.append)
    run(budget, lambda tokens, _: tokens, FIRST_PASSES + SEARCH + 2 * RUN_PASSES)
    assert budget.tokens == 400  # tried, 200 has won
    budget.short_of_memory(400)
    assert (budget.tokens, found) == (200, [200])
    budget.short_of_memory(200)
    assert budget.tokens == 100
    assert set(run(budget, lambda tokens, _: tokens, 2 * GROW_PASSES)[GROW_PASSES:]) == {200}


def test_budget_that_was_too_much_is_not_kept() -> None:
    """A budget that ran out of memory is not stored, because the next process would fail at once."""
    found: list[int] = []
    budget = TokenBudget(100, seek=True, found=found.append)
    budget.short_of_memory(100)
    assert (budget.tokens, found) == (50, [])
    found.clear()
    budget = TokenBudget(1000, seek=True, found=found.append)
    budget.short_of_memory(1900)  # the search has tried twice as much; nor does half of that fit
    budget.short_of_memory(950)
    assert (budget.tokens, found) == (475, [1000, 475])


@dataclass
class Measured:
    """The part of a backend that the budget depends on."""

    speed_key: str
    token_budget: int = 100
    parallel: int = 1


@pytest.fixture
def spam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InferEntry:
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    return InferEntry.model_validate({"as": "tag", "model": "tagstream/spam"})


def test_found_budget_is_kept(spam: InferEntry, tmp_path: Path) -> None:
    """The budget is stored for processes on the same kind of machine only. A damaged file is ignored."""
    run(budget_of(Measured("here"), spam), lambda tokens, _: min(tokens, 200), 4 * SEARCH)
    assert set(run(budget_of(Measured("here"), spam), lambda tokens, _: tokens, 3 * SEARCH)) == {200}
    there = budget_of(Measured("there"), spam)
    assert there.tokens == 100
    run(there, lambda tokens, _: min(tokens, 400), 5 * SEARCH)
    assert [budget_of(Measured(key), spam).tokens for key in ("here", "there", "")] == [200, 400, 100]
    (file,) = (tmp_path / "cache").glob(f"*/{FILE}")
    file.write_text("[damaged")
    assert budget_of(Measured("here"), spam).tokens == 100


def test_folder_that_cannot_be_written_to(spam: InferEntry, tmp_path: Path) -> None:
    """Each process searches again, without a message to the user."""
    (tmp_path / "cache").write_text("a file")
    budget = budget_of(Measured("here"), spam)
    run(budget, lambda tokens, _: min(tokens, 200), 4 * SEARCH)
    assert budget.tokens == 200


def test_busy_engine_finds_it() -> None:
    """If every pass takes the same time, the engine chooses larger micro-batches."""
    backend = load_backend(InferEntry.model_validate({"as": "tag", "backend": {"type": "constant", "label": "x"}}))
    forward = backend.forward
    backend.forward = lambda parts: (time.sleep(0.002), forward(parts))[1]  # type: ignore[method-assign]
    found: list[int] = []
    engine = Engine(backend, budget=TokenBudget(100, seek=True, found=found.append))
    try:
        texts = pa.array([f"{n:010d}" for n in range(20_000)], pa.large_string())
        scores = engine.submit(texts).result(60).values
    finally:
        engine.close()
    assert np.array_equal(scores, np.ones((20_000, 1), np.float32))
    assert engine.token_budget >= 400
