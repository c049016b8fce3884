"""The memory of answers: what it knows is right, what it holds is bounded, and errors are asked again."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import DeadCode
from schemas.spec import Classifier
from tests.models import make_model
from transforms.answers import AnswerMemory, Prediction
from transforms.backends import load_backend
from transforms.engine import Engine
from transforms.metrics import METRICS


def texts(*values: str) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())


def answers(values: list[str]) -> Prediction:
    """Scores that tell the text: its length and its hash."""
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
        found, expected = recalled.completed(asked), answers(block)
        np.testing.assert_array_equal(found.scores, expected.scores)
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
    classifier = Classifier.model_validate(spec)
    engine = Engine(load_backend(classifier), classifier.memory_bytes)
    yield engine
    engine.close()


def test_equal_texts_of_different_blocks_are_inferred_once(engine) -> None:
    METRICS.reset()
    first = engine.submit(texts("a", "b", "poison", "a")).result(30)
    second = engine.submit(texts("poison", "b", "c", "b", "a")).result(30)
    third = engine.submit(texts("c", "a")).result(30)
    assert list(first.errors) == [2]
    assert list(second.errors) == [0]
    assert not third.errors
    assert [len(p.scores) for p in (first, second, third)] == [4, 5, 2]
    counts = METRICS.snapshot()
    assert (counts.sequences, counts.duplicates, counts.remembered) == (5, 2, 4)


def test_scores_are_those_of_a_model_that_is_asked(tmp_path) -> None:
    """Against an engine without a memory, over blocks that share texts."""
    classifier = Classifier.model_validate(
        {"model": str(make_model(tmp_path / "bert")), "as": "x", "backend": {"type": "pytorch"}}
    )
    blocks = [[f"text number {i % 7} of block {i % 3}" for i in range(n, n + 20)] for n in range(0, 60, 10)] * 2
    plain, remembering = Engine(load_backend(classifier)), Engine(load_backend(classifier), 1 << 16)
    try:
        for block in blocks:
            expected, found = plain.submit(texts(*block)).result(60), remembering.submit(texts(*block)).result(60)
            np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
            np.testing.assert_array_equal(found.tokens, expected.tokens)
    finally:
        plain.close()
        remembering.close()


def test_a_memory_is_shared_by_submitters(engine) -> None:
    """Many threads at once: every answer is there, and the memory stays consistent."""
    done: list[int] = []

    def submit(n: int) -> None:
        done.extend(len(engine.submit(texts(*(str(i) for i in range(n, n + 50)))).result(30).scores) for _ in range(5))

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(0, 100, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == [50] * 50
    assert len(engine.memory) == 140
