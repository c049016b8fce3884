"""Runs one micro-batch. Every sequence ends with outputs, or with the error that explains why it has none."""

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
    """The texts of one call of `Engine.submit`, on their way through the engine.

    Example: the texts are [a, b, a, c], the engine remembers b, and another submission is inferring c at this moment.
    The distinct texts are then [a, b, c]. This submission infers only a, and waits for the other one to answer c.
    """

    future: Future[Prediction]
    inverse: Array = None  # type: ignore[assignment]
    """For each text, its index among the distinct texts. In the example [0, 1, 0, 2]."""
    recalled: Recalled | None = None
    """The remembered answers to the distinct texts; None if the engine has no memory."""
    encoded: Encoded = None  # type: ignore[assignment]
    """The sequences of the texts that this submission infers. In the example those of a."""
    outputs: Array = None  # type: ignore[assignment]
    """float32 [sequences, width], or [tokens of all sequences, width]; filled in by the forward passes."""
    left: int = 1
    """What the submission still waits for: its sequences without outputs, plus the other submissions that answer some
    of its texts, plus 1 until its texts are tokenised. At 0 the future completes."""
    errors: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)
    """Code and message for each inferred text that failed, by index among the inferred texts."""
    askers: list[tuple[Submission, Array, Array]] = field(default_factory=list)
    """Submissions that wait for answers of this one. Each comes with the indices of the texts in question: among the
    inferred texts of this submission, and among the distinct texts of the asker."""


class ForwardPasses:
    """Runs the forward passes of a backend, and isolates the rows that make one fail. Thread-safe.

    See the engine for its treatment of failures. `works`: a row that the backend is known to label. With None, this is
    the first row that the backend labels. The row runs once more when all rows of a micro-batch fail, to tell a backend
    that has died from rows that are bad.
    """

    def __init__(self, backend: Backend, budget: TokenBudget, works: tuple[Encoded, Array] | None) -> None:
        self._backend, self._budget, self._works = backend, budget, works

    def run(self, parts: list[tuple[Submission, Array]]) -> None:
        """Run a micro-batch, in more than one forward pass if it fails. Raises ModelError if the backend is dead.

        `parts`: pairs of a submission and the int32 numbers of its sequences.
        """
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
        """Try one forward pass, and bisect a failed one. Returns how many sequences failed in the end."""
        try:
            outputs = self._backend.forward([(s.encoded, sequences) for s, sequences in parts])
        except (OutOfMemoryError, MemoryError) as error:
            longest = max(int(s.encoded.lengths[sequences].max()) for s, sequences in parts)
            if rows > 1:  # a single row that does not fit tells nothing about other rows
                self._budget.short_of_memory(rows * longest)
            failure = DeadCode.OUT_OF_MEMORY, one_line(error)
        except Exception as error:  # noqa: BLE001  becomes a dead letter for the row that causes it
            failure = DeadCode.INFERENCE_FAILED, one_line(error)
        else:
            return self._store(outputs, parts)
        return self._bisect(parts, rows, *failure)  # outside `except`: the error's frames no longer hold memory

    def _store(self, outputs: Array, parts: list[tuple[Submission, Array]]) -> int:
        """Store the outputs in their submissions. Returns how many sequences have outputs that are not finite."""
        kind = self._backend.head.output
        tokens = kind == "tokens"
        finite = np.ones(len(outputs), bool) if kind == "text" else np.isfinite(outputs).all(axis=1)
        if tokens:
            lengths = np.concatenate([s.encoded.lengths[sequences] for s, sequences in parts])
            finite = np.logical_and.reduceat(finite, np.cumsum(lengths) - lengths)
        at = row = 0
        for submission, sequences in parts:
            mine = tokens_of(submission.encoded, sequences) if tokens else sequences
            submission.outputs[mine] = outputs[at : at + len(mine)]
            for sequence in sequences[~finite[row : row + len(sequences)]]:
                self._fail(submission, int(sequence), DeadCode.INFERENCE_FAILED, "the model's logits are not finite")
            at, row = at + len(mine), row + len(sequences)
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


def tokens_of(encoded: Encoded, sequences: Array) -> Array:
    """Where the tokens of `sequences` are among the tokens of all sequences, sequence by sequence."""
    starts = np.cumsum(encoded.lengths, dtype=np.int64) - encoded.lengths
    lengths = encoded.lengths[sequences]
    first = np.cumsum(lengths, dtype=np.int64) - lengths
    return np.repeat(starts[sequences] - first, lengths) + np.arange(int(lengths.sum()))


def one_line(error: BaseException) -> str:
    """The error's type and message in one line of at most 500 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]
