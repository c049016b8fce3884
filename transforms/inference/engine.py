"""One model, shared by all who want labels from it.

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
from collections import defaultdict
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import DeadCode, ModelError
from tagstream.transforms.inference.backends.contracts import Backend
from tagstream.transforms.inference.device_lock import Device
from tagstream.transforms.inference.forward import Passes, Submission, one_line
from tagstream.transforms.inference.packing import Pool
from tagstream.transforms.inference.predictions import AnswerMemory, Prediction, Recalled
from tagstream.transforms.inference.token_budget import TokenBudget
from tagstream.transforms.runtime.metrics import JobMetrics
from tagstream.transforms.tasks.text_classification import activate
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray
SMALL = 64
"""Texts of a submission that is tokenised in a thread of its own, so that it never waits behind a large one. There is
one thread for each kind: the Rust tokenizer spreads a batch over all cores by itself."""


class Engine:
    """See the module. Thread-safe."""

    def __init__(
        self,
        backend: Backend,
        memory_bytes: int = 0,
        works: tuple[Encoded, Array] | None = None,
        budget: TokenBudget | None = None,
        metrics: JobMetrics | None = None,
    ) -> None:
        """`memory_bytes`: of answers to remember, so that a text is not inferred again in a later block. `works`: a row
        that the backend can label; without it that is the first one it has labelled. `budget`: else the backend's.
        `metrics`: where rows, tokens and busy time are counted.
        """
        self.backend = backend
        self.metrics = metrics or JobMetrics()
        self.memory = AnswerMemory(memory_bytes, backend.width) if memory_bytes else None
        self._budget = budget or TokenBudget(backend.token_budget)
        self._parallel = max(1, backend.parallel)
        self._tokenise_large = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._tokenise_small = ThreadPoolExecutor(1, thread_name_prefix="tokenise-small")
        self._pool = Pool(backend.buckets)
        self._ready = threading.Condition()
        self._live: set[Submission] = set()
        self._asked: dict[bytes, tuple[Submission, int]] = {}
        """Who has a text inferred that nobody remembers yet, by the text's digest: the submission, its index there."""
        self._passes = Passes(backend, self._budget, works)
        self._dead: ModelError | None = None
        self._closed = False
        self._device = Device.join(backend.device, self._parallel)
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
        self._device.leave(self._parallel)
        self.backend.close()

    def _stopped(self) -> ModelError | None:
        return self._dead or (ModelError("the engine is closed") if self._closed else None)

    def _tokenise(self, texts: pa.LargeStringArray, future: Future[Prediction]) -> None:
        submission = Submission(future)
        try:
            if stopped := self._stopped():
                raise stopped
            unique = texts.dictionary_encode()
            submission.inverse = unique.indices.to_numpy(zero_copy_only=False)
            self.metrics.add(duplicates=len(texts) - len(unique.dictionary))
            with self.metrics.busy("tokenise"):
                unknown = self._recall(unique.dictionary, submission)
                submission.encoded = self._encode(unknown, submission)
            encoded = submission.encoded
            submission.errors = {**encoded.errors, **submission.errors}  # why a text was replaced by "" stays
            submission.logits = np.zeros((len(encoded.lengths), self.backend.width), np.float32)
            with self._ready:
                if stopped := self._stopped():
                    raise stopped
                if future.done():  # given up with a submission that it has asked
                    return
                self._live.add(submission)
                submission.left += len(encoded.lengths)
                self._pool.add(submission, encoded.lengths)
                self._ready.notify_all()
            self._came(submission, 1)
        except BaseException as error:  # noqa: BLE001  a worker thread: the submitter re-raises it
            self._give_up(submission, error)

    def _recall(self, texts: pa.LargeStringArray, submission: Submission) -> pa.LargeStringArray:
        """The texts that the model is to be asked for: not remembered, and not asked for by another submission.

        A small submission doesn't wait for a large one, whose results come together.
        """
        if self.memory is None:
            return texts
        recalled = submission.recalled = self.memory.recall(texts)
        others: defaultdict[Submission, list[tuple[int, int]]] = defaultdict(list)
        mine: list[int] = []
        with self._ready:
            for index in recalled.missing.tolist():
                other, at = self._asked.setdefault(recalled.digests[index], (submission, len(mine)))
                if other is submission or len(submission.inverse) <= SMALL < len(other.inverse):
                    mine.append(index)
                else:
                    others[other].append((at, index))
            for other, pairs in others.items():
                there, here = np.array(pairs, np.int64).T
                other.askers.append((submission, there, here))
            submission.left += len(others)
        recalled.missing = np.array(mine, np.int64)
        self.metrics.add(remembered=len(texts) - len(mine))
        return texts.take(pa.array(recalled.missing))

    def _askers(self, submission: Submission) -> list[tuple[Submission, Array, Array]]:
        """Those that have asked for texts of this one, which nobody does any more."""
        with self._ready:
            for digest in submission.recalled.digests if submission.recalled else ():
                if self._asked.get(digest, (None, 0))[0] is submission:
                    del self._asked[digest]
            return submission.askers

    def _give_up(self, submission: Submission, error: BaseException) -> None:
        with self._ready:
            self._live.discard(submission)
        try:
            submission.future.set_exception(error)
        except InvalidStateError:
            return
        for asker, _, _ in self._askers(submission):
            self._give_up(asker, error)

    def _encode(self, texts: pa.LargeStringArray, submission: Submission) -> Encoded:
        """All texts at once; if that fails without those that fail alone, which are left out as errors."""
        try:
            return self.backend.encode(texts)
        except Exception as error:  # noqa: BLE001
            if len(texts) == 1:
                submission.errors[0] = (DeadCode.TOKENISATION_FAILED, one_line(error))
                return self.backend.encode(pa.array([""], pa.large_string()))
        bad: dict[int, str] = {}
        for i in range(len(texts)):
            try:
                self.backend.encode(texts.slice(i, 1))
            except Exception as error:  # noqa: BLE001
                bad[i] = one_line(error)
        submission.errors.update({i: (DeadCode.TOKENISATION_FAILED, message) for i, message in bad.items()})
        return self.backend.encode(
            pa.array(["" if i in bad else texts[i].as_py() for i in range(len(texts))], texts.type)
        )

    def _loop(self) -> None:
        try:
            while True:
                with self._ready:
                    self._ready.wait_for(lambda: self._stopped() or len(self._pool))
                with self._device.taken():  # what comes while another engine has the device is in the micro-batch too
                    with self._ready:
                        if stopped := self._stopped():
                            raise stopped
                        if not len(self._pool):
                            continue
                        budget = self._budget.tokens
                        micro = self._pool.take(budget, self.backend.max_rows)
                        busy = len(self._pool) > 0
                    self.metrics.add(
                        micro_batches=1, sequences=micro.rows, tokens=micro.tokens, padded_tokens=micro.padded_tokens
                    )
                    parts: Any = micro.parts
                    with self.metrics.busy("infer", 1 / self._parallel):
                        self._passes.run(parts)
                self._budget.passed(budget, micro.tokens, time.perf_counter(), busy=busy)
                for submission, sequences in parts:
                    self._came(submission, len(sequences))
        except BaseException as error:  # noqa: BLE001  nobody else runs the model: whoever waits must hear of it
            self._die(error if isinstance(error, ModelError) else ModelError(f"inference stopped: {one_line(error)}"))

    def _came(self, submission: Submission, count: int) -> None:
        """So much of what is left of it is there."""
        with self._ready:
            submission.left -= count
            done = not submission.left and submission in self._live
        if done:
            self._finish(submission)
            with self._ready:
                self._live.discard(submission)

    def _finish(self, submission: Submission) -> None:
        encoded, inverse = submission.encoded, submission.inverse
        logits, texts = submission.logits, len(encoded.tokens)
        if len(encoded.text) != texts:  # windows, or texts without sequences: the mean over each text's sequences
            sums = np.zeros((texts, logits.shape[1]), np.float64)
            np.add.at(sums, encoded.text, logits)
            counts = np.bincount(encoded.text, minlength=texts)
            logits = sums / np.maximum(counts, 1)[:, None]
        scores = activate(logits, self.backend.activation)
        answers = Prediction(scores, encoded.tokens, encoded.truncated, submission.errors)
        if self.memory is not None and submission.recalled is not None:
            self.memory.remember(submission.recalled, answers)
            for asker, there, here in self._askers(submission):
                cast("Recalled", asker.recalled).learn(here, answers.take(there))
                self._came(asker, 1)
            submission.recalled.learn(submission.recalled.missing, answers)
            answers = submission.recalled.prediction
        answers = answers.take(inverse)
        self.metrics.add(truncated=int(answers.truncated.sum()))
        with suppress(InvalidStateError):  # the backend has died meanwhile
            submission.future.set_result(answers)

    def _die(self, error: ModelError) -> None:
        with self._ready:
            self._dead = self._dead or error
            live, self._live = self._live, set()
            self._ready.notify_all()
        for submission in live:
            self._give_up(submission, error)
