"""One model, shared by everything in the process that wants labels from it.

    submit(texts) -> Future     tokenised in another thread, small submissions in one of their own
                                -> pool of pending sequences of all submitters, sorted by length
                                -> micro-batches under a token budget, as many at once as the backend takes
                                -> scattered back; a future completes when its last sequence is done

The engine never waits to fill a micro-batch: whenever the device is free it takes what is there. So an idle stream
has low latency and a bulk job full micro-batches, by the same rule.

Failures: out of memory halves the token budget for a while and runs the halves; any other error of a micro-batch is
bisected down to the row that causes it; when every row of a micro-batch fails, a row that worked before is run once
more, and if that fails too the backend is dead: all futures get a ModelError and nothing is dead-lettered for it.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.errors import DeadCode, ModelError, OutOfMemoryError
from schemas.spec import Classifier
from transforms.answers import AnswerMemory, Prediction, Recalled
from transforms.backends import Backend, Encoded, load_backend
from transforms.labels import activate
from transforms.metrics import METRICS
from transforms.packing import Pool
from transforms.token_budget import TokenBudget, budget_of

Array = np.ndarray
SMALL = 64
"""Texts of a submission that is tokenised in a thread of its own, so that it never waits behind a large one. There is
one thread for each kind: the Rust tokenizer spreads a batch over all cores by itself."""
_DEVICES: dict[str, threading.Semaphore] = {}
_DEVICES_LOCK = threading.Lock()


@dataclass(eq=False)
class _Submission:
    future: Future[Prediction]
    inverse: Array
    recalled: Recalled | None = None
    encoded: Encoded = None  # type: ignore[assignment]
    logits: Array = None  # type: ignore[assignment]
    left: int = 0
    errors: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)


class Engine:
    """See the module. Thread-safe."""

    def __init__(
        self,
        backend: Backend,
        memory_bytes: int = 0,
        works: tuple[Encoded, Array] | None = None,
        budget: TokenBudget | None = None,
    ) -> None:
        """`memory_bytes`: of answers to remember, so that a text is not inferred again in a later block. `works`: a row
        that the backend can label; without it that is the first one it has labelled. `budget`: else the backend's.
        """
        self.backend = backend
        self.memory = AnswerMemory(memory_bytes, len(backend.head.names)) if memory_bytes else None
        self._budget = budget or TokenBudget(backend.token_budget)
        self._parallel = max(1, backend.parallel)
        self._tokenise_large = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._tokenise_small = ThreadPoolExecutor(1, thread_name_prefix="tokenise-small")
        self._pool = Pool(backend.buckets)
        self._ready = threading.Condition()
        self._live: set[_Submission] = set()
        self._works = works
        self._dead: ModelError | None = None
        self._closed = False
        with _DEVICES_LOCK:
            self._device = _DEVICES.setdefault(backend.device, threading.Semaphore(self._parallel))
        self._threads = [
            threading.Thread(target=self._loop, name=f"infer-{n}", daemon=True) for n in range(self._parallel)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def token_budget(self) -> int:
        """Tokens, padding included, that the next micro-batch may hold."""
        return self._budget.tokens

    def submit(self, texts: pa.LargeStringArray) -> Future[Prediction]:
        """Scores for valid UTF-8 texts without nulls; equal texts are inferred once. Returns at once."""
        future: Future[Prediction] = Future()
        with self._ready:
            if stopped := self._stopped():
                future.set_exception(stopped)
            else:
                tokenisers = self._tokenise_small if len(texts) <= SMALL else self._tokenise_large
                tokenisers.submit(self._tokenise, texts, future)
        return future

    def close(self) -> None:
        """Stop the threads, free the device. Pending futures get a ModelError."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()
        for tokenisers in (self._tokenise_small, self._tokenise_large):
            tokenisers.shutdown()  # what still waits there runs, sees that the engine is closed, and says so
        self.backend.close()

    def _stopped(self) -> ModelError | None:
        return self._dead or (ModelError("the engine is closed") if self._closed else None)

    def _tokenise(self, texts: pa.LargeStringArray, future: Future[Prediction]) -> None:
        try:
            if stopped := self._stopped():
                raise stopped
            unique = texts.dictionary_encode()
            submission = _Submission(future, unique.indices.to_numpy(zero_copy_only=False))
            METRICS.add(duplicates=len(texts) - len(unique.dictionary))
            with METRICS.busy("tokenise"):
                unknown = self._recall(unique.dictionary, submission)
                submission.encoded = self._encode(unknown, submission)
            encoded = submission.encoded
            submission.errors.update(encoded.errors)
            submission.left = len(encoded.lengths)
            submission.logits = np.zeros((submission.left, len(self.backend.head.names)), np.float32)
            if not submission.left:
                self._finish(submission)
                return
            with self._ready:
                if stopped := self._stopped():
                    raise stopped
                self._live.add(submission)
                self._pool.add(submission, encoded.lengths)
                self._ready.notify_all()
        except BaseException as error:  # noqa: BLE001  a worker thread: the submitter re-raises it
            future.set_exception(error)

    def _recall(self, texts: pa.LargeStringArray, submission: _Submission) -> pa.LargeStringArray:
        """The texts whose answers are not remembered."""
        if self.memory is None:
            return texts
        submission.recalled = self.memory.recall(texts)
        missing = submission.recalled.missing
        METRICS.add(remembered=len(texts) - len(missing))
        return texts.take(pa.array(missing))

    def _encode(self, texts: pa.LargeStringArray, submission: _Submission) -> Encoded:
        """All texts at once; if that fails without those that fail alone, which are left out as errors."""
        try:
            return self.backend.encode(texts)
        except Exception as error:  # noqa: BLE001
            if len(texts) == 1:
                submission.errors[0] = (DeadCode.TOKENISATION_FAILED, _one_line(error))
                return self.backend.encode(pa.array([""], pa.large_string()))
        bad: dict[int, str] = {}
        for i in range(len(texts)):
            try:
                self.backend.encode(texts.slice(i, 1))
            except Exception as error:  # noqa: BLE001
                bad[i] = _one_line(error)
        submission.errors.update({i: (DeadCode.TOKENISATION_FAILED, message) for i, message in bad.items()})
        return self.backend.encode(
            pa.array(["" if i in bad else texts[i].as_py() for i in range(len(texts))], texts.type)
        )

    def _loop(self) -> None:
        try:
            while True:
                with self._ready:
                    while not (stopped := self._stopped()) and not len(self._pool):
                        self._ready.wait()
                    if stopped:
                        raise stopped
                    budget = self._budget.tokens
                    micro = self._pool.take(budget, self.backend.max_rows)
                    busy = len(self._pool) > 0
                METRICS.add(
                    micro_batches=1, sequences=micro.rows, tokens=micro.tokens, padded_tokens=micro.padded_tokens
                )
                parts: Any = micro.parts
                with self._device, METRICS.busy("infer", 1 / self._parallel):
                    self._run(parts)
                self._budget.passed(budget, micro.tokens, time.perf_counter(), busy=busy)
                for submission in self._done(parts):
                    self._finish(submission)
                    with self._ready:
                        self._live.discard(submission)
        except BaseException as error:  # noqa: BLE001  nobody else runs the model: whoever waits must hear of it
            self._die(error if isinstance(error, ModelError) else ModelError(f"inference stopped: {_one_line(error)}"))

    def _done(self, parts: list[tuple[_Submission, Array]]) -> list[_Submission]:
        """Submissions that have all their logits with these."""
        with self._ready:
            for submission, sequences in parts:
                submission.left -= len(sequences)
            return [s for s, _ in parts if not s.left and s in self._live]

    def _run(self, parts: list[tuple[_Submission, Array]]) -> None:
        """One forward pass, or as many as it takes to know what to say of every sequence."""
        rows = sum(len(sequences) for _, sequences in parts)
        failed = self._attempt(parts, rows)
        if failed == rows and self._works is not None:
            try:
                self.backend.forward([self._works])
            except Exception as error:
                raise ModelError(
                    f"the model stopped working: a row that it labelled before fails now: {_one_line(error)}"
                ) from error

    def _attempt(self, parts: list[tuple[_Submission, Array]], rows: int) -> int:
        """Number of sequences that failed."""
        try:
            logits = self.backend.forward([(s.encoded, sequences) for s, sequences in parts])
        except (OutOfMemoryError, MemoryError) as error:
            longest = max(int(s.encoded.lengths[sequences].max()) for s, sequences in parts)
            if rows > 1:  # a single row that does not fit says nothing of the others
                self._budget.short_of_memory(rows * longest)
            return self._bisect(parts, rows, DeadCode.OUT_OF_MEMORY, error)
        except Exception as error:  # noqa: BLE001  ends as a dead letter of the row that causes it
            return self._bisect(parts, rows, DeadCode.INFERENCE_FAILED, error)
        finite = np.isfinite(logits).all(axis=1)
        at = 0
        for submission, sequences in parts:
            mine = slice(at, at + len(sequences))
            submission.logits[sequences] = logits[mine]
            for sequence in sequences[~finite[mine]]:
                self._fail(submission, int(sequence), DeadCode.INFERENCE_FAILED, "the model's logits are not finite")
            at = mine.stop
        if self._works is None and finite[0]:
            submission, sequences = parts[0]
            self._works = (submission.encoded, sequences[:1])
        return int((~finite).sum())

    def _bisect(self, parts: list[tuple[_Submission, Array]], rows: int, code: DeadCode, error: Exception) -> int:
        if rows == 1:
            submission, sequences = parts[0]
            self._fail(submission, int(sequences[0]), code, _one_line(error))
            return 1
        left: list[tuple[_Submission, Array]] = []
        right: list[tuple[_Submission, Array]] = []
        room = rows // 2
        for submission, sequences in parts:
            take = min(room, len(sequences))
            room -= take
            if take:
                left.append((submission, sequences[:take]))
            if take < len(sequences):
                right.append((submission, sequences[take:]))
        return self._attempt(left, rows // 2) + self._attempt(right, rows - rows // 2)

    @staticmethod
    def _fail(submission: _Submission, sequence: int, code: DeadCode, message: str) -> None:
        submission.errors.setdefault(int(submission.encoded.text[sequence]), (code, message))

    def _finish(self, submission: _Submission) -> None:
        encoded, inverse = submission.encoded, submission.inverse
        logits, texts = submission.logits, len(encoded.tokens)
        if len(encoded.text) != texts:  # windows, or texts without sequences: the mean over each text's sequences
            sums = np.zeros((texts, logits.shape[1]), np.float64)
            np.add.at(sums, encoded.text, logits)
            counts = np.bincount(encoded.text, minlength=texts)
            logits = sums / np.maximum(counts, 1)[:, None]
        scores = activate(logits, self.backend.head.activation)
        answers = Prediction(scores, encoded.tokens, encoded.truncated, submission.errors)
        if self.memory is not None and submission.recalled is not None:
            self.memory.remember(submission.recalled, answers)
            answers = submission.recalled.completed(answers)
        answers = answers.take(inverse)
        METRICS.add(truncated=int(answers.truncated.sum()))
        submission.future.set_result(answers)

    def _die(self, error: ModelError) -> None:
        with self._ready:
            self._dead = self._dead or error
            while self._live:
                if not (future := self._live.pop().future).done():
                    future.set_exception(error)
            self._ready.notify_all()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]


_ENGINES: dict[str, Engine] = {}
_ENGINES_LOCK = threading.Lock()


def shared_engine(classifier: Classifier) -> Engine:
    """The engine of a classifier in this process, its model loaded at the first call. Raises ModelError."""
    key = classifier.model_dump_json()
    with _ENGINES_LOCK:
        if key not in _ENGINES:
            backend = load_backend(classifier)
            works = None if classifier.backend.type == "constant" else try_out(backend, classifier.as_)
            _ENGINES[key] = Engine(backend, classifier.memory_bytes, works, budget_of(backend, classifier))
        return _ENGINES[key]


def try_out(backend: Backend, name: str) -> tuple[Encoded, Array]:
    """A row that the backend labels, for `Engine`. Raises ModelError if it can't: then no row is to blame."""
    try:
        encoded = backend.encode(pa.array(["Is it working?"], pa.large_string()))
        works = (encoded, np.arange(1))
        logits = backend.forward([works])
    except Exception as error:
        backend.close()
        raise ModelError(f"{name}: the model is loaded, but can't label a first text: {_one_line(error)}") from error
    if not np.isfinite(logits).all():
        backend.close()
        raise ModelError(f"{name}: the model's logits are not finite, even for a plain text; are its weights whole?")
    return works


def close_engines() -> None:
    """Close every shared engine of this process."""
    with _ENGINES_LOCK:
        while _ENGINES:
            _ENGINES.popitem()[1].close()
