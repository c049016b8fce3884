"""How good answers of a task are, against true ones: spans, parts of texts, new texts. Labels are in `evaluate`."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import Counter
from typing import Any

import pyarrow as pa

from tagstream.schemas.errors import SpecError
from tagstream.transforms.tasks.head import Head
from tagstream.transforms.tasks.question_answering import AnswerHead
from tagstream.transforms.tasks.text_generation import TextHead
from tagstream.transforms.tasks.token_classification import SpanHead

_TOKEN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|\w+")
"""A word, or one Chinese character, which is a word of its own here as in the measures of Chinese collections."""
_ARTICLES = {"a", "an", "the"}


def check_measurable(head: Head) -> None:
    """Raises SpecError if the head's answers can't be compared with a column of true ones."""
    name = head.entry.as_
    if isinstance(head, AnswerHead) and len(head.questions) > 1:
        raise SpecError(f"{name}: evaluate takes one question at a time: write question, not questions")
    if not isinstance(head, SpanHead | AnswerHead | TextHead):
        raise SpecError(f"{name}: there is no true value to compare vectors with: evaluate what you make of them")


def figures(head: Head, column: str, rows: pa.Table, truth: str) -> dict[str, Any]:
    """Figures of one entry. `column`: that of its answers. `truth`: that of the true ones. Raises SpecError."""
    if isinstance(head, SpanHead):
        return span_figures(rows[column].to_pylist(), _spans(rows[truth], truth))
    if isinstance(head, AnswerHead):
        answers = column + head.questions[0][0].removeprefix(head.entry.as_)
        return answer_figures(rows[answers].to_pylist(), _answers(rows[truth], truth))
    return text_figures(rows[column].to_pylist(), _answers(rows[truth], truth))


def span_figures(found: list[list[dict[str, Any]]], true: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Precision, recall and F1 of whole spans, by label and of all: a span counts if label, start and end are right."""
    hits, given, wanted = Counter[str](), Counter[str](), Counter[str]()
    for ours, theirs in zip(found, true, strict=True):
        mine, right = ({(s["label"], s["start"], s["end"]) for s in spans} for spans in (ours, theirs))
        given.update(label for label, *_ in mine)
        wanted.update(label for label, *_ in right)
        hits.update(label for label, *_ in mine & right)
    labels = sorted(given.keys() | wanted.keys())
    micro = _ratio(hits.total(), given.total(), wanted.total())
    return {"spans": {name: _ratio(hits[name], given[name], wanted[name]) for name in labels}, "micro": micro}


def _ratio(hits: int, given: int, wanted: int) -> dict[str, float]:
    return {
        "precision": hits / max(1, given),
        "recall": hits / max(1, wanted),
        "f1": 2 * hits / max(1, given + wanted),
        "support": wanted,
    }


def answer_figures(found: list[str | None], true: list[list[str]]) -> dict[str, float]:
    """Exact match and F1 of words, as SQuAD measures them; of several true answers the nearest counts.

    No true answer is an empty list, and is matched by no answer.
    """
    exact, overlap = 0.0, 0.0
    for answer, right in zip(found, true, strict=True):
        words = _words(answer or "")
        choices = [_words(one) for one in right] or [[]]
        exact += any(words == one for one in choices)
        overlap += max(_overlap(words, one) for one in choices)
    return {"exact_match": exact / max(1, len(found)), "f1": overlap / max(1, len(found))}


def _words(text: str) -> list[str]:
    found = _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())
    return [word for word in found if word not in _ARTICLES]


def _overlap(words: list[str], true: list[str]) -> float:
    if not words or not true:
        return float(words == true)
    return 2 * (Counter(words) & Counter(true)).total() / (len(words) + len(true))


def text_figures(found: list[str | None], true: list[list[str]]) -> dict[str, float]:
    """Share of texts that are equal to a true one, and chrF (0 to 100) by sacrebleu, against the first true text."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise SpecError("evaluate needs sacrebleu for texts: pip install 'tagstream[evaluate]'")
    from sacrebleu.metrics.chrf import CHRF

    texts = [text or "" for text in found]
    equal = sum(text.strip() in [one.strip() for one in right] for text, right in zip(texts, true, strict=True))
    score = CHRF().corpus_score(texts, [[right[0] if right else "" for right in true]])
    return {"exact_match": equal / max(1, len(texts)), "chrf": float(score.score)}


def _spans(column: pa.ChunkedArray, name: str) -> list[list[dict[str, Any]]]:
    kind = column.type
    inside = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    if inside is None or not pa.types.is_struct(inside) or not {"label", "start", "end"} <= {f.name for f in inside}:
        raise SpecError(f"column {name!r} is {kind}; true spans are a list of structs with label, start and end")
    return [list(spans) for spans in column.to_pylist()]


def _answers(column: pa.ChunkedArray, name: str) -> list[list[str]]:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [[text] if text else [] for text in column.to_pylist()]
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and (
        pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    ):
        return [[text for text in texts if text] for texts in column.to_pylist()]
    raise SpecError(f"column {name!r} is {kind}; true answers are a text a row, or a list of texts")
