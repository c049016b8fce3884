"""`evaluate` of tasks whose answers are spans, parts of texts, or new texts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from tagstream import load
from tagstream.pipelines.jobs.evaluate import evaluate_job, print_evaluation
from tagstream.pipelines.jobs.figures import answer_figures, span_figures, text_figures
from tagstream.schemas.errors import SpecError
from tests.models import random_texts
from tests.pipelines.bulk_jobs import BulkJob
from tests.task_models import entry_of

TEXTS = [text or "!" for text in random_texts(40, seed=2, longest=12)]


def evaluated(tmp_path: Path, task: str, true: Any) -> tuple[dict[str, Any], str]:
    """The figures, and what is printed. `true`: makes the true answers of the model's."""
    entry = entry_of(task, tmp_path / "model")
    name = entry.pop("as")
    with load(**entry, as_=name) as model:
        found = model.predict(TEXTS)[name]
    job = BulkJob(tmp_path)
    job.put("a.parquet", [*TEXTS, "no truth"], truth=pa.array([*(true(one) for one in found.to_pylist()), None]))
    result = evaluate_job(job.spec(infer=[{**entry, "as": name}]), "truth", job.console)
    print_evaluation(job.console, result)
    assert result["rows"] == len(TEXTS)
    return result["entries"][name], job.said


def test_spans(tmp_path: Path) -> None:
    """True spans of which some were missed and some have another label."""
    chooser = random.Random(0)
    found: list[list[dict]] = []
    kept: list[list[dict]] = []

    def true(spans: list[dict]) -> list[dict]:
        found.append(spans)
        kept.append([{**span, "label": chooser.choice(["PER", "LOC"])} for span in spans if chooser.random() < 0.8])
        return kept[-1]

    figures, said = evaluated(tmp_path, "token-classification", true)
    assert figures == span_figures(found, kept)
    assert 0 < figures["micro"]["f1"] < 1
    assert set(figures["spans"]) == {"PER", "LOC"}
    assert "precision" in said


def test_span_figures() -> None:
    """By hand: one right, one of another label, one missed, one too much; a span that is there twice counts once."""
    found = [[{"label": "PER", "start": 0, "end": 3}, {"label": "LOC", "start": 5, "end": 7}], []]
    true = [[{"label": "PER", "start": 0, "end": 3}] * 2, [{"label": "PER", "start": 1, "end": 2}]]
    figures = span_figures(found, true)
    assert figures["spans"]["PER"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert figures["spans"]["LOC"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert figures["micro"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}


def test_answers(tmp_path: Path) -> None:
    """The model's own answers are all right; as the first of several true ones too."""
    figures, said = evaluated(tmp_path, "question-answering", lambda answer: ["something else", answer])
    assert figures == {"exact_match": 1.0, "f1": 1.0}
    assert "exact match 1.0000, f1 1.0000" in said


def test_answer_figures() -> None:
    """SQuAD's measures: case, articles and punctuation do not count; Chinese is compared by characters."""
    found = ["The Prize!", "a red house", None, "北京大学", "x"]
    true = [["prize"], ["the red barn"], [], ["北京"], []]
    assert answer_figures(found, true) == {"exact_match": 2 / 5, "f1": pytest.approx((1 + 0.5 + 1 + 2 / 3 + 0) / 5)}


def test_texts(tmp_path: Path) -> None:
    """Equal texts, and chrF as sacrebleu computes it."""
    figures, _ = evaluated(tmp_path, "text-generation", lambda text: text or "-")
    assert figures["exact_match"] > 0.9
    assert figures["chrf"] > 90
    half = text_figures(["the cat sat", "a dog"], [["the cat sat"], ["an owl", "a dog"]])
    assert half["exact_match"] == 1.0
    assert 0 < half["chrf"] < 100


def test_what_can_not_be_compared(tmp_path: Path) -> None:
    """Vectors, spans against texts, several questions at once, labels to leave out of a task without labels."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["a", "b"], truth=pa.array(["x", "y"]))
    console = Console(quiet=True)
    for task, more, without, said in (
        ("feature-extraction", {}, (), "no true value to compare vectors with"),
        ("token-classification", {}, (), "true spans are a list of structs with label, start and end"),
        ("question-answering", {"question": None, "questions": {"q": "a", "r": "b"}}, (), "one question at a time"),
        ("text-generation", {}, ("spam",), "--without names labels to leave out"),
    ):
        entry = {**entry_of(task, tmp_path / task), **more}
        with pytest.raises(SpecError, match=said):
            evaluate_job(job.spec(infer=[entry]), "truth", console, without=without)
