"""What it takes to know of every sequence of a micro-batch what its logits are, or why it has none."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from tagstream.schemas.errors import DeadCode, ModelError, OutOfMemoryError
from tagstream.transforms.inference.backends.contracts import Backend
from tagstream.transforms.inference.predictions import Prediction, Recalled
from tagstream.transforms.inference.token_budget import TokenBudget
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray


@dataclass(eq=False)
class Submission:
    """`left`: sequences without logits, other submissions that are asked for some of the texts, and 1 until it is known
    how many there are. `askers`: those that ask this one, with the indices of texts asked for, here and there.
    """

    future: Future[Prediction]
    inverse: Array = None  # type: ignore[assignment]
    recalled: Recalled | None = None
    encoded: Encoded = None  # type: ignore[assignment]
    logits: Array = None  # type: ignore[assignment]
    left: int = 1
    errors: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)
    askers: list[tuple[Submission, Array, Array]] = field(default_factory=list)


class Passes:
    """Forward passes of a backend; see the engine for what failures lead to. Thread-safe.

    `works`: a row that the backend can label; without it that is the first one it has labelled.
    """

    def __init__(self, backend: Backend, budget: TokenBudget, works: tuple[Encoded, Array] | None) -> None:
        self._backend, self._budget, self._works = backend, budget, works

    def run(self, parts: list[tuple[Submission, Array]]) -> None:
        """One forward pass, or as many as it takes to know what to say of every sequence."""
        rows = sum(len(sequences) for _, sequences in parts)
        failed = self._attempt(parts, rows)
        if failed == rows and self._works is not None:
            try:
                self._backend.forward([self._works])
            except Exception as error:
                raise ModelError(
                    f"the model stopped working: a row that it labelled before fails now: {one_line(error)}"
                ) from error

    def _attempt(self, parts: list[tuple[Submission, Array]], rows: int) -> int:
        """Number of sequences that failed."""
        try:
            logits = self._backend.forward([(s.encoded, sequences) for s, sequences in parts])
        except (OutOfMemoryError, MemoryError) as error:
            longest = max(int(s.encoded.lengths[sequences].max()) for s, sequences in parts)
            if rows > 1:  # a single row that does not fit says nothing of the others
                self._budget.short_of_memory(rows * longest)
            failure = DeadCode.OUT_OF_MEMORY, one_line(error)
        except Exception as error:  # noqa: BLE001  ends as a dead letter of the row that causes it
            failure = DeadCode.INFERENCE_FAILED, one_line(error)
        else:
            return self._store(logits, parts)
        return self._bisect(parts, rows, *failure)  # the error is gone, and with it what its frames kept in memory

    def _store(self, logits: Array, parts: list[tuple[Submission, Array]]) -> int:
        """Number of sequences whose logits are not finite."""
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

    def _bisect(self, parts: list[tuple[Submission, Array]], rows: int, code: DeadCode, message: str) -> int:
        if rows == 1:
            submission, sequences = parts[0]
            self._fail(submission, int(sequences[0]), code, message)
            return 1
        left: list[tuple[Submission, Array]] = []
        right: list[tuple[Submission, Array]] = []
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
    def _fail(submission: Submission, sequence: int, code: DeadCode, message: str) -> None:
        submission.errors.setdefault(int(submission.encoded.text[sequence]), (code, message))


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]
