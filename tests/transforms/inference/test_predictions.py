"""The memory of answers gives right answers, is bounded, and does not remember errors."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagstream.schemas.errors import DeadCode, ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.engine import SMALL, Engine
from tagstream.transforms.inference.predictions import AnswerMemory, Prediction
from tests.models import make_model
from tests.services.java import wait_until
from tests.transforms.inference.test_engine import LengthBackend


def texts(*values: str) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())


def answers(values: list[str]) -> Prediction:
    """Scores that identify the text: its length and its hash."""
    scores = np.array([[len(v), hash(v) % 1000] for v in values], np.float32).reshape(-1, 2)
    lengths = scores[:, 0].astype(np.int32)
    return Prediction(scores, lengths, lengths % 2 == 1, {})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.text(max_size=3), unique=True, max_size=12), max_size=12), st.integers(1, 20))
def test_recalls_what_it_was_told_and_no_more_than_fits(blocks: list[list[str]], slots: int) -> None:
    memory = AnswerMemory(slots * 213, 2)
    for block in blocks:
        recalled = memory.recall(texts(*block))
        asked = answers([block[i] for i in recalled.missing])
        memory.remember(recalled, asked)
        recalled.learn(recalled.missing, asked)
        found, expected = recalled.answers(), answers(block)
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.truncated, expected.truncated)
        assert len(memory) <= slots


def test_who_was_used_longest_ago_makes_room() -> None:
    memory = AnswerMemory(2 * 213, 2)
    for text in ("a", "b", "a", "c"):
        recalled = memory.recall(texts(text))
        memory.remember(recalled, answers([text][: len(recalled.missing)]))
    assert memory.recall(texts("a", "b", "c")).missing.tolist() == [1]


def test_errors_are_asked_again() -> None:
    memory = AnswerMemory(1 << 20, 2)
    recalled = memory.recall(texts("fine", "poison"))
    asked = answers(["fine", "poison"])
    asked.errors[1] = (DeadCode.INFERENCE_FAILED, "no")
    memory.remember(recalled, asked)
    assert memory.recall(texts("poison", "fine")).missing.tolist() == [0]


@pytest.fixture
def engine():
    spec = {"as": "x", "memory_bytes": 1 << 16, "backend": {"type": "constant", "fail_on": "poison"}}
    entry = InferEntry.model_validate(spec)
    engine = Engine(load_backend(entry), entry.memory_bytes)
    yield engine
    engine.close()


def test_equal_texts_of_different_blocks_are_inferred_once(engine) -> None:
    first = engine.submit(texts("a", "b", "poison", "a")).result(30)
    second = engine.submit(texts("poison", "b", "c", "b", "a")).result(30)
    third = engine.submit(texts("c", "a")).result(30)
    assert list(first.errors) == [2]
    assert list(second.errors) == [0]
    assert not third.errors
    assert [len(p.values) for p in (first, second, third)] == [4, 5, 2]
    counts = engine.metrics.snapshot()
    assert (counts.sequences, counts.duplicates, counts.remembered) == (5, 2, 4)


@pytest.fixture
def held():
    """An engine with a tiny memory, whose backend waits until the test releases it."""
    backend = LengthBackend()
    backend.free = threading.Event()
    forward = backend.forward

    def wait_first(parts) -> np.ndarray:
        assert backend.free.wait(30)
        logits = forward(parts)
        picked = [encoded.values[row] for encoded, rows in parts for row in rows]
        backend.answered += [text for text in picked if text != "it works"]  # run again when all of a micro-batch fail
        return logits

    backend.forward, backend.answered = wait_first, []
    engine = Engine(backend, 1, works=(backend.encode(texts("it works")), np.arange(1)))
    yield engine, backend
    backend.free.set()
    engine.close()


def test_equal_texts_in_flight_are_inferred_once(held) -> None:
    """If a text is with the model already, other submissions wait for its answer or its error."""
    engine, backend = held
    backend.poison = "poison"
    blocks = [["a", "bb", "poison"], ["bb", "ccc", "a", "bb"], ["ccc", "poison"], ["a"]]
    futures = [engine.submit(texts(*block)) for block in blocks]
    wait_until(lambda: len(engine._live) == 4, 10, "all are asked for")
    backend.free.set()
    for block, future in zip(blocks, futures, strict=True):
        found = future.result(30)
        assert [block[row] for row in found.errors] == [text for text in block if text == "poison"]
        fine = [row for row in range(len(block)) if row not in found.errors]
        assert found.values[fine, 0].tolist() == [len(block[row]) for row in fine]
    assert sorted(backend.answered) == sorted(["a", "bb", "ccc"])
    assert not engine._asked


def test_blocks_of_few_texts_share_them(held) -> None:
    """A block counts as large by its rows, not by its distinct texts."""
    engine, backend = held
    futures = [engine.submit(texts(*(["x", "yy", "zzz"] * SMALL))) for _ in range(3)]
    wait_until(lambda: len(engine._live) == 3, 10, "all are asked for")
    backend.free.set()
    for future in futures:
        assert future.result(30).values[:, 0].tolist() == [1, 2, 3] * SMALL
    assert sorted(backend.answered) == ["x", "yy", "zzz"]


def test_many_blocks_that_ask_each_other_are_given_up_at_once(held) -> None:
    """Each block waits for all blocks before it. Following every path between them would never end."""
    engine, backend = held
    futures = [engine.submit(texts(*("t" * n for n in range(1, k + 2)))) for k in range(40)]
    wait_until(lambda: len(engine._live) == 40, 20, "all are asked for")
    engine._die(ModelError("gone"))
    for future in futures:
        with pytest.raises(ModelError, match="gone"):
            future.result(10)
    assert not engine._asked
    backend.free.set()


def test_whatever_the_tokeniser_thread_meets_is_told(held) -> None:
    """An argument that is not an array raises an error, instead of a future that never ends."""
    engine, _ = held
    with pytest.raises(AttributeError):
        engine.submit(["a list"]).result(10)


def test_small_submission_waits_for_no_large_one(held) -> None:
    """A small submission asks the model itself, if its text is otherwise in a large block that would take long."""
    engine, backend = held
    large = engine.submit(texts(*("x" * n for n in range(1, SMALL + 30))))
    wait_until(lambda: len(engine._asked) > SMALL, 10, "the large one is with the model")
    small = engine.submit(texts("xx", "x"))
    wait_until(lambda: len(engine._live) == 2, 10, "the small one too")
    backend.free.set()
    assert small.result(30).values[:, 0].tolist() == [2, 1]
    assert large.result(30).values[:, 0].tolist() == list(range(1, SMALL + 30))
    assert sorted(backend.answered)[:4] == ["x", "x", "xx", "xx"]


def test_who_waits_for_a_backend_that_dies_hears_of_it(held) -> None:
    engine, backend = held
    backend.free.set()
    engine.submit(texts("works")).result(30)
    backend.free.clear()
    futures = [engine.submit(texts(*block)) for block in (["a", "b"], ["b"], ["a", "works"])]
    wait_until(lambda: len(engine._live) == 3, 10, "all are asked for")
    backend.broken.set()
    backend.free.set()
    for future in futures:
        with pytest.raises(ModelError, match="stopped working"):
            future.result(30)
    assert not engine._asked


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=80), max_size=12))
def test_blocks_at_once_are_answered_as_alone(blocks: list[list[int]]) -> None:
    engine = Engine(LengthBackend(), 3 * 213)
    try:
        futures = [engine.submit(texts(*("t" * n for n in block))) for block in blocks]
        assert [future.result(30).values[:, 0].tolist() for future in futures] == blocks
    finally:
        engine.close()


def test_scores_are_those_of_a_model_that_is_asked(tmp_path) -> None:
    """An engine with a memory gives the same scores as one without, over blocks that share texts."""
    entry = InferEntry.model_validate(
        {"model": str(make_model(tmp_path / "bert")), "as": "x", "backend": {"type": "pytorch"}}
    )
    blocks = [[f"text number {i % 7} of block {i % 3}" for i in range(n, n + 20)] for n in range(0, 60, 10)] * 2
    plain, remembering = Engine(load_backend(entry)), Engine(load_backend(entry), 1 << 16)
    try:
        for block in blocks:
            expected, found = plain.submit(texts(*block)).result(60), remembering.submit(texts(*block)).result(60)
            np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
    finally:
        plain.close()
        remembering.close()


def test_a_memory_is_shared_by_submitters(engine) -> None:
    """With many threads at once, every text gets its answer and the memory stays consistent."""
    done: list[int] = []

    def submit(n: int) -> None:
        done.extend(len(engine.submit(texts(*(str(i) for i in range(n, n + 50)))).result(30).values) for _ in range(5))

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(0, 100, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == [50] * 50
    assert len(engine.memory) == 140
