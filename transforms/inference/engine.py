"""Runs one model for all submitters that want its predictions.

The way of a submission, from `submit(texts)` to its future:

1. Another thread tokenises the texts. Small submissions have a thread of their own.
2. The sequences join the pool of pending sequences of all submitters, sorted by length.
3. The backend runs micro-batches of the pool under a token budget, `backend.parallel` at a time.
4. The outputs go back to their submissions. A future completes when its last sequence is done.

The engine never waits to fill a micro-batch. Whenever the device is free, the engine takes the sequences that are
pending. So an idle stream has low latency and a bulk job has full micro-batches, by the same rule.

Failures of a micro-batch:

- Out of memory: the token budget is halved for a while, and the micro-batch runs in two halves.
- Any other error: the micro-batch is bisected down to the row that causes the error. The other rows get their outputs.
- Every row fails: a row that worked before runs once more. If that row fails too, the backend is dead. All futures
  then get a ModelError, and no row becomes a dead letter because of it.
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
from tagstream.transforms.inference.forward import ForwardPasses, Submission, one_line
from tagstream.transforms.inference.packing import Pool
from tagstream.transforms.inference.predictions import AnswerMemory, Prediction, Recalled
from tagstream.transforms.inference.token_budget import TokenBudget
from tagstream.transforms.runtime.metrics import JobMetrics
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray
SMALL = 64
"""Submissions of at most this many texts are tokenised in a thread of their own, and so never wait behind a large one.
One thread for small and one for large submissions are enough, because the Rust tokenizer uses all cores by itself."""


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
        """`memory_bytes`: room for remembered answers, which save inferring a text again in a later block; 0 for none.

        `works`: a row that the backend is known to label, see `ForwardPasses`. `budget`: the backend's own if None.
        `metrics`: counts rows, tokens and busy time.
        """
        self.backend = backend
        self.metrics = metrics or JobMetrics()
        self.memory = AnswerMemory(memory_bytes, backend.head.vector_width) if memory_bytes else None
        self._budget = budget or TokenBudget(backend.token_budget)
        self._parallel = max(1, backend.parallel)
        self._tokenise_large = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._tokenise_small = ThreadPoolExecutor(1, thread_name_prefix="tokenise-small")
        self._pool = Pool(backend.buckets)
        self._ready = threading.Condition()
        self._live: set[Submission] = set()
        self._asked: dict[bytes, tuple[Submission, int]] = {}
        """Texts that are being inferred and are not remembered yet, by digest: the submission, and the index there."""
        self._passes = ForwardPasses(backend, self._budget, works)
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
        """How many tokens the next micro-batch may hold, padding included."""
        return self._budget.tokens

    def submit(self, texts: pa.LargeStringArray) -> Future[Prediction]:
        """Infer valid UTF-8 texts without nulls; equal texts are inferred once. Does not wait."""
        future: Future[Prediction] = Future()
        with self._ready:
            if stopped := self._stopped():
                future.set_exception(stopped)
            else:
                tokenisers = self._tokenise_small if len(texts) <= SMALL else self._tokenise_large
                tokenisers.submit(self._tokenise, texts, future)
        return future

    def close(self) -> None:
        """Stop the threads and free the device. Pending futures get a ModelError."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()
        for tokenisers in (self._tokenise_small, self._tokenise_large):
            tokenisers.shutdown()  # waiting submissions still run; they find the engine closed and get the error
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
            head = self.backend.head
            rows = int(encoded.lengths.sum()) if head.output == "tokens" else len(encoded.lengths)
            text = head.output == "text"
            submission.outputs = np.empty(rows, object) if text else np.zeros((rows, head.width), np.float32)
            with self._ready:
                if stopped := self._stopped():
                    raise stopped
                if future.done():  # given up together with a submission that should have answered some of its texts
                    return
                self._live.add(submission)
                submission.left += len(encoded.lengths)
                self._pool.add(submission, encoded.lengths + head.reserve)
                self._ready.notify_all()
            self._completed(submission, 1)
        except BaseException as error:  # noqa: BLE001  in a worker thread: the future hands it to the submitter
            self._give_up(submission, error)

    def _recall(self, texts: pa.LargeStringArray, submission: Submission) -> pa.LargeStringArray:
        """The texts that this submission must infer: not remembered, and not being inferred for another submission.

        For a text that is being inferred elsewhere, the submission waits for that other submission. A small submission
        does not wait for a large one, whose results come all together, but infers the text itself.
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

    def _end_asking(self, submission: Submission) -> list[tuple[Submission, Array, Array]]:
        """The `askers` of a submission that has ended. From now on no other submission asks it for a text."""
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
        for asker, _, _ in self._end_asking(submission):
            self._give_up(asker, error)

    def _encode(self, texts: pa.LargeStringArray, submission: Submission) -> Encoded:
        """Tokenise all texts at once. If that fails, each text is tried alone, and those that fail become errors.

        An empty text takes the place of a failed one.
        """
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
                with self._device.taken():  # sequences that arrive while another engine runs join this micro-batch
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
                    self._completed(submission, len(sequences))
        except BaseException as error:  # noqa: BLE001  no other thread runs the model: every future must get the error
            self._die(error if isinstance(error, ModelError) else ModelError(f"inference stopped: {one_line(error)}"))

    def _completed(self, submission: Submission, count: int) -> None:
        """Take `count` from what the submission waits for, see `Submission.left`. With nothing left, it is finished."""
        with self._ready:
            submission.left -= count
            done = not submission.left and submission in self._live
        if done:
            self._finish(submission)
            with self._ready:
                self._live.discard(submission)

    def _finish(self, submission: Submission) -> None:
        encoded, inverse = submission.encoded, submission.inverse
        values = self.backend.head.merge(encoded, submission.outputs)
        answers = Prediction(values, encoded.tokens, encoded.truncated, submission.errors)
        if self.memory is not None and submission.recalled is not None:
            self.memory.remember(submission.recalled, answers)
            for asker, there, here in self._end_asking(submission):
                cast("Recalled", asker.recalled).learn(here, answers.take(there))
                self._completed(asker, 1)
            submission.recalled.learn(submission.recalled.missing, answers)
            answers = submission.recalled.answers()
        answers = answers.take(inverse)
        self.metrics.add(truncated=int(answers.truncated.sum()))
        with suppress(InvalidStateError):  # the backend has died meanwhile, and the future has the error
            submission.future.set_result(answers)

    def _die(self, error: ModelError) -> None:
        with self._ready:
            self._dead = self._dead or error
            live, self._live = self._live, set()
            self._ready.notify_all()
        for submission in live:
            self._give_up(submission, error)
