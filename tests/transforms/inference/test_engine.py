"""The engine answers every text, whatever the backend does."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import wait

import numpy as np
import pyarrow as pa
import pytest

from tagstream.schemas.errors import DeadCode, ModelError, OutOfMemoryError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.self_check import try_out
from tagstream.transforms.tasks.text_classification import LabelHead
from tagstream.transforms.tokenization.encoded import Encoded


def entry(**backend) -> InferEntry:
    return InferEntry.model_validate({"as": "x", "backend": {"type": "constant", **backend}})


def texts(*values: str) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())


@pytest.fixture
def engine_of():
    engines: list[Engine] = []

    def make(backend) -> Engine:
        if not isinstance(backend, Engine):
            backend = Engine(backend if not isinstance(backend, InferEntry) else load_backend(backend))
        engines.append(backend)
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


class LengthBackend:
    """Logit = the text's length, so that every answer can be told from every other. Counts what it is given."""

    device = "length"
    token_budget = 64
    max_rows = 8
    parallel = 1
    buckets = ()
    head = LabelHead.of(InferEntry.model_validate({"backend": {"type": "constant"}}), ["length"], "identity", "length")

    def __init__(self) -> None:
        self.forwards: list[int] = []
        self.broken = threading.Event()
        self.poison: str | None = None
        self.nan: str | None = None

    def encode(self, texts: pa.LargeStringArray) -> Encoded:
        values = texts.to_pylist()
        if "untokenisable" in values:
            raise ValueError("no tokens for this")
        lengths = np.array([max(1, len(v)) for v in values], np.int32)
        encoded = Encoded(lengths, np.arange(len(values), dtype=np.int32), lengths, np.zeros(len(values), bool))
        encoded.values = values
        return encoded

    def forward(self, parts) -> np.ndarray:
        picked = [encoded.values[i] for encoded, rows in parts for i in rows]
        self.forwards.append(len(picked))
        if self.broken.is_set():
            raise RuntimeError("device lost")
        if self.poison in picked:
            raise ValueError(f"poison {self.poison}")
        return np.array([[float("nan") if v == self.nan else len(v)] for v in picked], np.float32)

    def close(self) -> None:
        pass


def test_answers_come_back_in_order(engine_of) -> None:
    """Whatever the packing, row i has the score of text i; equal texts get one forward pass."""
    backend = LengthBackend()
    engine = engine_of(backend)
    values = [("ab" * (i % 40)) + str(i % 7) for i in range(500)]
    prediction = engine.submit(texts(*values)).result(30)
    assert prediction.values[:, 0].tolist() == [len(v) for v in values]
    assert sum(backend.forwards) == len(set(values))


def test_many_submitters_share_micro_batches(engine_of) -> None:
    """Concurrent submissions all get their own answers."""
    backend = LengthBackend()
    engine = engine_of(backend)
    submissions = [[f"{'x' * (n % 30)}{n}-{i}" for i in range(20)] for n in range(50)]
    futures = [engine.submit(texts(*values)) for values in submissions]
    assert not wait(futures, 30).not_done
    for values, future in zip(submissions, futures, strict=True):
        assert future.result().values[:, 0].tolist() == [len(v) for v in values]
    assert len(backend.forwards) < 1000


@pytest.mark.parametrize("at", [0, 1, 499, 500, 998, 999])
def test_poison_row_costs_itself_alone(engine_of, at: int) -> None:
    """Anywhere in a batch: that row has an error, every other row its score."""
    values = [f"text {i}" for i in range(1000)]
    values[at] = "poison pill"
    prediction = engine_of(entry(fail_on="poison")).submit(texts(*values)).result(30)
    assert list(prediction.errors) == [at]
    code, message = prediction.errors[at]
    assert code is DeadCode.INFERENCE_FAILED
    assert "poison" in message


def test_equal_poison_rows_all_fail(engine_of) -> None:
    """A text inferred once for several rows fails for all of them."""
    prediction = engine_of(entry(fail_on="bad")).submit(texts("ok", "bad", "ok", "bad")).result(30)
    assert sorted(prediction.errors) == [1, 3]


def test_untokenisable_text_costs_itself_alone(engine_of) -> None:
    """An exception of the tokenizer is the row's, not the block's."""
    engine = engine_of(LengthBackend())
    prediction = engine.submit(texts("ab", "untokenisable", "abcd")).result(30)
    assert {row: code for row, (code, _) in prediction.errors.items()} == {1: DeadCode.TOKENISATION_FAILED}
    assert prediction.values[[0, 2], 0].tolist() == [2, 4]
    alone = engine.submit(texts("untokenisable")).result(30)
    assert alone.errors[0][0] is DeadCode.TOKENISATION_FAILED


def test_scores_that_are_not_finite_are_errors(engine_of) -> None:
    """NaN is no label."""
    backend = LengthBackend()
    backend.nan = "bb"
    prediction = engine_of(backend).submit(texts("a", "bb", "ccc")).result(30)
    assert {row: code for row, (code, _) in prediction.errors.items()} == {1: DeadCode.INFERENCE_FAILED}


def test_out_of_memory_halves_the_budget(engine_of) -> None:
    """All rows get their label, and the budget has come down to what fits."""
    engine = engine_of(entry(memory_tokens=1000, token_budget=100_000))
    prediction = engine.submit(texts(*(f"{i:050d}" for i in range(400)))).result(30)
    assert not prediction.errors
    assert engine.token_budget <= 1000


def test_failed_pass_leaves_nothing_in_memory(engine_of) -> None:
    """Its activations are gone before the halves are tried, else those would not fit either."""

    class Activations:
        """What a forward pass makes."""

    alive: list[int] = []
    made: weakref.WeakSet[Activations] = weakref.WeakSet()

    class Large(LengthBackend):
        def forward(self, parts) -> np.ndarray:
            alive.append(len(made))
            activations = Activations()
            made.add(activations)
            if sum(len(rows) for _, rows in parts) > 1:
                raise OutOfMemoryError("too large")
            return super().forward(parts)

    prediction = engine_of(Large()).submit(texts(*"abcdefgh")).result(30)
    assert not prediction.errors
    assert len(alive) >= 15
    assert set(alive) == {0}


def test_one_row_that_never_fits_leaves_the_budget(engine_of) -> None:
    """It says nothing of the others."""
    engine = engine_of(entry(memory_tokens=100, token_budget=300))
    assert engine.submit(texts("b" * 500)).result(30).errors
    assert engine.token_budget == 300


def test_budget_grows_again(engine_of, monkeypatch) -> None:
    """The shortage of memory may have been another program's."""
    monkeypatch.setattr("tagstream.transforms.inference.token_budget.GROW_PASSES", 3)
    engine = engine_of(entry(memory_tokens=1000, token_budget=100_000))
    engine.submit(texts(*(f"{i:050d}" for i in range(400)))).result(30)
    for i in range(60):
        engine.submit(texts(f"one {i}")).result(30)
    assert engine.token_budget == 100_000


def test_backend_that_never_worked_is_nobodys_dead_letter(engine_of) -> None:
    """It is tried out before the first row; and from then on it is known that it could."""
    backend = LengthBackend()
    works = try_out(backend, "tag")
    backend.broken.set()
    with pytest.raises(ModelError, match=r"tag: the model is loaded, but can't label a first text: .*device lost"):
        try_out(backend, "tag")
    engine = engine_of(Engine(backend, works=works))
    with pytest.raises(ModelError, match="stopped working"):
        engine.submit(texts("a", "b")).result(30)
    backend.broken.clear()
    backend.nan = "Is it working?"
    with pytest.raises(ModelError, match="not finite"):
        try_out(backend, "tag")


def test_row_that_never_fits_is_a_dead_letter(engine_of) -> None:
    """Out of memory for one row alone is that row's error."""
    prediction = engine_of(entry(memory_tokens=100)).submit(texts("a" * 50, "b" * 500, "c" * 50)).result(30)
    assert {row: code for row, (code, _) in prediction.errors.items()} == {1: DeadCode.OUT_OF_MEMORY}


def test_dead_backend_stops_the_job(engine_of) -> None:
    """When rows that worked fail too, nothing is dead-lettered: every pending and later future gets a ModelError."""
    backend = LengthBackend()
    engine = engine_of(backend)
    engine.submit(texts("fine")).result(30)
    backend.broken.set()
    with pytest.raises(ModelError, match=r"stopped working.*device lost"):
        engine.submit(texts(*(f"later {i}" for i in range(30)))).result(30)
    with pytest.raises(ModelError, match="stopped working"):
        engine.submit(texts("even later")).result(30)


def test_micro_batch_of_poison_only_is_no_dead_backend(engine_of) -> None:
    """If what worked before still works, the rows are at fault."""
    backend = LengthBackend()
    backend.poison = "poison"
    engine = engine_of(backend)
    engine.submit(texts("fine")).result(30)
    assert list(engine.submit(texts("poison")).result(30).errors) == [0]
    assert not engine.submit(texts("fine again")).result(30).errors


def test_closing_wakes_whoever_waits() -> None:
    """A closed engine answers with an error, never with silence."""
    engine = Engine(load_backend(entry(ms_per_row=20.0, token_budget=10)))
    futures = [engine.submit(texts(*(f"{n} {i}" for i in range(50)))) for n in range(4)]
    engine.close()
    assert not wait(futures, 30).not_done
    assert any(isinstance(future.exception(), ModelError) for future in futures)
    with pytest.raises(ModelError, match="closed"):
        engine.submit(texts("late")).result(30)


def test_closing_answers_for_texts_that_wait_for_the_tokenizer() -> None:
    """Submissions queued behind a slow tokenizer get the error too."""
    backend = LengthBackend()
    started, release = threading.Event(), threading.Event()
    encode = backend.encode

    def slow(batch: pa.LargeStringArray) -> Encoded:
        started.set()
        release.wait(30)
        return encode(batch)

    backend.encode = slow  # type: ignore[method-assign]
    engine = Engine(backend)
    futures = [engine.submit(texts(f"text {n}")) for n in range(4)]
    assert started.wait(30)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine.submit(texts("a closed engine answers at once")).done():
        time.sleep(0.01)
    release.set()
    assert not wait(futures, 30).not_done
    assert all(isinstance(future.exception(), ModelError) for future in futures[1:])
    closing.join(30)


def test_a_small_submission_does_not_wait_for_a_large_one_to_be_tokenised(engine_of) -> None:
    """It is answered while the tokenizer is still busy with the other."""
    entered, resume = threading.Event(), threading.Event()

    class SlowTokenizer(LengthBackend):
        def encode(self, texts: pa.LargeStringArray) -> Encoded:
            if len(texts) > 1:
                entered.set()
                resume.wait(30)
            return super().encode(texts)

    engine = engine_of(SlowTokenizer())
    large = engine.submit(texts(*map(str, range(100))))
    assert entered.wait(30)
    assert engine.submit(texts("abc")).result(30).values.tolist() == [[3.0]]
    assert not large.done()
    resume.set()
    assert len(large.result(30).values) == 100


def test_counts_what_it_computes(engine_of) -> None:
    """Tokens, padding, duplicates."""
    engine = engine_of(LengthBackend())
    engine.submit(texts("aaaa", "bbbb", "cccc", "aaaa")).result(30)
    counts = engine.metrics.snapshot()
    assert (counts.tokens, counts.padded_tokens, counts.sequences, counts.duplicates) == (12, 12, 3, 1)
