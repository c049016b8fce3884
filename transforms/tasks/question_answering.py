"""Answers that are a part of the text, by an extractive question-answering model.

The answer is found as transformers' pipeline of that name did it (`QuestionAnsweringPipeline`, transformers 4): in each
window, the likeliest start and end among the tokens of the text, extended to whole words; among windows, the best. All
texts of a block are done at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import DeadCode, SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.head import Head, Output, provenance_fields
from tagstream.transforms.tasks.model import Model
from tagstream.transforms.tasks.parts import split_parts
from tagstream.transforms.tasks.several import EncodedSeveral, encode_several, refuse_long, too_long
from tagstream.transforms.tokenization.encoded import Encoded, runs
from tagstream.transforms.tokenization.tokenizer import TextTokenizer

Array = np.ndarray

ARCHITECTURE = "ForQuestionAnswering"
"""See `tasks.contracts.TaskModule`."""
KIND = "question-answering model"
"""See `tasks.contracts.TaskModule`."""
SETTINGS = {"text", "question", "questions", "max_answer_len", "handle_impossible_answer"}
"""See `tasks.contracts.TaskModule`."""
PAIRS = True
"""See `tasks.contracts.TaskModule`."""
_ANSWER = pa.struct(
    [
        pa.field("answer", pa.large_string()),
        pa.field("score", pa.float32()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
    ]
)


@dataclass(frozen=True)
class AnswerHead(Head):
    """An answer to each question. `questions`: by the column that gets the answer; None if each row has its own."""

    entry: InferEntry
    model: str
    questions: tuple[tuple[str, str | None], ...]
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    output: ClassVar[Output] = "tokens"
    truncation: ClassVar[str] = "only_second"

    @property
    def copies_text(self) -> bool:
        """See `Head`."""
        return True

    @property
    def width(self) -> int:
        """A logit for the start, and one for the end."""
        return 2

    @property
    def long_text(self) -> str:
        """Windows, unless the entry says something else: an answer may be anywhere."""
        return self.entry.long_text or "window"

    def tokenizer(self, files: Any) -> TextTokenizer:
        """See `Head`. Raises ModelError for a question that leaves no room for a text."""
        found = super().tokenizer(files)
        asked = {question: question for _, question in self.questions if question is not None}
        refuse_long(self.entry.as_, "question", asked, found)
        return found

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedSeveral:
        """A sequence for each question and window: the question, then the text."""
        each = len(self.questions)
        if self.entry.pair is not None:
            asked, held = split_parts(texts)
            long = too_long(asked, tokenizer)
            asked = ["" if row in long else question for row, question in enumerate(asked)]
            found = encode_several(tokenizer, asked, held, each, places=True)
            for row, tokens in long.items():
                found.errors[row] = (
                    DeadCode.TOO_LONG,
                    f"the question has {tokens} tokens, which leaves no room for a text",
                )
            return found
        held = [text for text in texts.to_pylist() for _ in self.questions]
        asked = [str(question) for _ in range(len(texts)) for _, question in self.questions]
        return encode_several(tokenizer, asked, held, each, places=True)

    def module(self, model: Any, tokenizer: TextTokenizer) -> Any:
        """See `Head`."""
        from tagstream.transforms.tasks.outputs import StartsAndEnds

        return StartsAndEnds(model)

    @property
    def export_name(self) -> str:
        """See `Head`."""
        return "answers"

    def merge(self, encoded: Encoded, outputs: Array) -> pa.Array:
        """Answers of each text: a struct with a field for each question."""
        several = cast("EncodedSeveral", encoded)
        found = _best(several, outputs, self.entry.max_answer_len, impossible=self.entry.handle_impossible_answer)
        each = len(self.questions)
        wanted = len(several.tokens) * each
        rows = np.full(wanted, -1)
        rows[found.asked] = np.arange(len(found.asked))
        shown = found.array(several).take(pa.array(rows, mask=rows < 0))
        columns = [shown.take(pa.array(np.arange(number, wanted, each))) for number in range(each)]
        return pa.StructArray.from_arrays(columns, [f"{number}" for number in range(each)])

    @property
    def fields(self) -> list[pa.Field]:
        """For each question the answer, its score and its place, and the provenance."""
        found = []
        for column, _ in self.questions:
            names = [column, *(f"{column}_{name}" for name in ("score", "start", "end"))]
            found += [pa.field(name, field.type) for name, field in zip(names, _ANSWER, strict=True)]
        return [*found, *provenance_fields(self.entry)]

    def answers(self, values: pa.Array) -> list[pa.Array]:
        """Answer, score, start and end for each question. `values`: what `merge` gives."""
        return [column for answer in values.flatten() for column in answer.flatten()]

    @property
    def identity(self) -> dict[str, Any]:
        """The questions, and how answers are chosen."""
        entry = self.entry
        return {
            "pair": list(entry.pair) if entry.pair else None,
            "questions": [list(one) for one in self.questions],
            "max_answer_len": entry.max_answer_len,
            "handle_impossible_answer": entry.handle_impossible_answer,
        }

    @property
    def shared(self) -> str:
        """See `Head`."""
        asked = [question for _, question in self.questions]
        return json.dumps([asked, self.entry.max_answer_len, self.entry.handle_impossible_answer])

    def agree(self, values: pa.Array, reference: pa.Array) -> Array:
        """Bool [texts]: whether all answers of a text are the same."""
        pairs = zip(values.to_pylist(), reference.to_pylist(), strict=True)
        return np.array([_texts(ours) == _texts(theirs) for ours, theirs in pairs], bool)

    def drift(self, values: pa.Array, reference: pa.Array) -> Array:
        """The largest difference between scores of a text's answers; 1 where the answers differ."""
        found = []
        for ours, theirs in zip(values.to_pylist(), reference.to_pylist(), strict=True):
            same = _texts(ours) == _texts(theirs)
            scores = [(one["score"], other["score"]) for one, other in zip(_all(ours), _all(theirs), strict=False)]
            found.append(max((abs((a or 0) - (b or 0)) for a, b in scores), default=0.0) if same else 1.0)
        return np.array(found)


def _all(answers: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [one for one in (answers or {}).values() if one is not None]


def _texts(answers: dict[str, Any] | None) -> list[str | None]:
    return [one["answer"] for one in _all(answers)]


@dataclass(frozen=True)
class _Found:
    """The best answer for each thing that was asked. `asked`: its number. `first`, `last`: tokens; -1 for no answer."""

    asked: Array
    score: Array
    first: Array
    last: Array

    def array(self, encoded: EncodedSeveral) -> pa.Array:
        """As `_ANSWER`; answer, start and end are null where there is none."""
        places = encoded.places
        assert places is not None
        none = self.first < 0
        start, stop = places.start[np.maximum(self.first, 0)], places.stop[np.maximum(self.last, 0)]
        texts = [
            None if empty else places.texts[asked][a:b]
            for asked, a, b, empty in zip(
                self.asked.tolist(), start.tolist(), stop.tolist(), none.tolist(), strict=True
            )
        ]
        arrays = [
            pa.array(texts, pa.large_string()),
            pa.array(self.score, pa.float32()),
            pa.array(start, pa.int32(), mask=none),
            pa.array(stop, pa.int32(), mask=none),
        ]
        return pa.StructArray.from_arrays(arrays, fields=list(_ANSWER))


def _best(encoded: EncodedSeveral, outputs: Array, longest: int, *, impossible: bool) -> _Found:
    """The best answer of each question over its windows. `outputs`: float32 [tokens, 2]."""
    places, lengths = encoded.places, encoded.lengths
    assert places is not None
    if not len(lengths):
        empty = np.empty(0, np.int64)
        return _Found(empty, np.empty(0, np.float32), empty, empty)
    begin = encoded.starts
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    mine = places.part == 1
    counted = mine.copy()  # the token before all others stands for "no answer"
    counted[begin[places.part[begin] == -1]] = True
    starts, ends = (_softmax(outputs[:, side], counted, begin, sequence) for side in (0, 1))
    nothing = starts[begin] * ends[begin]
    starts, ends = np.where(mine, starts, -1.0), np.where(mine, ends, -1.0)
    best, width = np.full(len(starts), -1.0), np.zeros(len(starts), np.int64)
    for further in range(min(longest, int(lengths.max()))):
        product = starts[: len(starts) - further] * ends[further:]
        product[(sequence[: len(starts) - further] != sequence[further:]) | ~mine[: len(starts) - further]] = -1.0
        product[~mine[further:]] = -1.0
        better = product > best[: len(product)]
        best[: len(product)][better], width[: len(product)][better] = product[better], further
    top = np.maximum.reduceat(best, begin)
    at = np.flatnonzero(best == top[sequence])
    first = at[np.unique(sequence[at], return_index=True)[1]]  # of each sequence
    # the best window of each question; the first of equal ones
    order = np.lexsort((np.arange(len(top)), -top, encoded.asked))
    chosen = order[np.unique(encoded.asked[order], return_index=True)[1]]
    asked = encoded.asked[chosen].astype(np.int64)
    score, first = top[chosen], first[chosen]
    last = first + width[first]
    first, last = _whole_words(places, sequence, first, last)
    none = score < 0  # a text without tokens
    if impossible:
        least = np.full(int(asked.max()) + 1, np.inf)
        np.minimum.at(least, encoded.asked, nothing)
        none |= least[asked] > score
        score = np.where(least[asked] > score, least[asked], score)
    return _Found(asked, np.maximum(score, 0.0), np.where(none, -1, first), np.where(none, -1, last))


def _softmax(logits: Array, counted: Array, begin: Array, sequence: Array) -> Array:
    """Probabilities over the counted tokens of each sequence; 0 for the others."""
    masked = np.where(counted, logits.astype(np.float64), -np.inf)
    top = np.maximum.reduceat(masked, begin)
    raised = np.exp(masked - np.where(np.isfinite(top), top, 0.0)[sequence])
    return np.asarray(raised / np.maximum(np.add.reduceat(raised, begin), 1e-300)[sequence])


def _whole_words(places: Any, sequence: Array, first: Array, last: Array) -> tuple[Array, Array]:
    """The first token of the word that begins an answer, and the last one of the word that ends it."""
    begins = np.ones(len(sequence), bool)
    same = (places.part[1:] == places.part[:-1]) & (places.word[1:] == places.word[:-1]) & (places.word[1:] >= 0)
    begins[1:] = ~same
    heads, tails = runs(begins, sequence)
    run = np.repeat(np.arange(len(heads)), tails - heads + 1)
    return heads[run[first]], tails[run[last]]


def head(entry: InferEntry, model: Model) -> AnswerHead:
    """See `tasks.contracts.TaskModule`."""
    given = [entry.question is not None, bool(entry.questions), entry.pair is not None]
    if sum(given) != 1:
        raise SpecError(
            f"{entry.as_}: say what to ask, in one way: question: (one for all texts), questions: (several), or text: "
            "[QUESTION, TEXT] (a column of questions)"
        )
    named: list[tuple[str, str | None]] = [(f"{entry.as_}_{name}", asked) for name, asked in entry.questions.items()]
    return AnswerHead(entry, model.name, tuple(named or [(entry.as_, entry.question)]))
