"""Scores equal those of transformers' pipeline, row by row; by vectors, the label is the nearest one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tagstream import load
from tagstream.schemas.errors import ModelError, SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import describe
from tests.models import make_model, random_texts
from tests.transforms.tasks.test_feature_extraction import sentence_model

TASK = "zero-shot-classification"
NLI = ("contradiction", "neutral", "entailment")
LABELS = ["free prize", "movie", "call me later"]
TEXTS = [text or "!" for text in random_texts(40, seed=3, longest=30)] + ["free " * 200, "ÉCOLE 中文 😀"]


def theirs(folder: Path, texts: list[str], labels: list[str], **settings) -> list[dict[str, float]]:
    from transformers import pipeline

    made = pipeline(TASK, str(folder), device="cpu")
    found = [made(text, candidate_labels=labels, **settings) for text in texts]
    return [dict(zip(one["labels"], one["scores"], strict=True)) for one in found]


def rows_of(folder: Path, **settings):
    with load(str(folder), as_="x", task=TASK, scores="all", **settings) as model:
        rows = model.predict(TEXTS)
    assert rows["error"].null_count == len(rows)
    return rows


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("names", [NLI, ("entailment", "neutral", "contradiction"), ("ENTAIL", "NOT_ENTAILMENT")])
def test_equal_to_transformers(tmp_path: Path, names: tuple[str, ...], *, multi_label: bool) -> None:
    """One label or several, wherever the model has its label entailment; a long text is cut, never the label."""
    folder = make_model(tmp_path / "model", labels=names)
    rows = rows_of(folder, labels=LABELS, multi_label=multi_label, template="It is {}!")
    expected = theirs(folder, TEXTS, LABELS, multi_label=multi_label, hypothesis_template="It is {}!")
    for row, scores in zip(rows.to_pylist(), expected, strict=True):
        assert row["x_scores"] == pytest.approx(scores, abs=1e-5)
        if multi_label:
            assert row["x"] == [name for name in LABELS if scores[name] >= 0.5]
        else:
            assert row["x"] == max(LABELS, key=lambda name: scores[name])
    assert rows["x_truncated"].to_pylist()[-2]
    assert np.ptp([scores[LABELS[0]] for scores in expected]) > 0.1, "scores all alike would show nothing"


def test_descriptions_thresholds_and_windows(tmp_path: Path) -> None:
    """A description stands for its label; a weak label is `abstain`; the mean of a long text's windows counts."""
    folder = make_model(tmp_path / "model", labels=NLI)
    described = rows_of(folder, labels={"a": LABELS[0], "b": LABELS[1]})
    plain = rows_of(folder, labels=LABELS[:2])
    assert [list(row.values()) for row in described["x_scores"].to_pylist()] == [
        list(row.values()) for row in plain["x_scores"].to_pylist()
    ]
    assert set(described["x"].to_pylist()) <= {"a", "b"}
    strict = rows_of(folder, labels=["a", "b"], thresholds={"a": 1.0, "b": 1.0}, abstain="none")
    assert set(strict["x"].to_pylist()) == {"none"}
    long = rows_of(folder, labels=LABELS, long_text="window")
    assert not any(long["x_truncated"].to_pylist())
    assert long["x_score"][-2].as_py() != plain["x_score"][-2].as_py()


def test_by_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The label whose vector is nearest, as sentence-transformers would say; ONNX the same."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    model = sentence_model(folder, dense=6, prompts={"query": "free "})
    rows = rows_of(folder, labels=LABELS, template="{}")
    cosines = model.encode(TEXTS, batch_size=1) @ model.encode(LABELS, batch_size=1).T
    raised = np.exp(20 * cosines)
    expected = raised / raised.sum(axis=1, keepdims=True)
    found = np.array([list(row.values()) for row in rows["x_scores"].to_pylist()])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert rows["x"].to_pylist() == [LABELS[at] for at in cosines.argmax(axis=1)]
    by_onnx = rows_of(folder, labels=LABELS, template="{}", backend="onnx")
    others = rows_of(folder, labels=LABELS[::-1], template="{}", backend="onnx")
    for one in (by_onnx, others):
        assert one["x"].to_pylist() == rows["x"].to_pylist()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "labels: give two or more, for example"),
        ({"labels": ["a"]}, "labels: give two or more, for example"),
        ({"labels": ["a", "b"], "template": "about"}, r"template: must have one \{\}"),
        ({"labels": ["a", "b"], "thresholds": {"c": 0.5}}, "thresholds: no label 'c'; there are a, b"),
        ({"labels": ["a", "b"], "pooling": "cls"}, "pooling: has no effect with a model of NLI"),
        ({"labels": ["a", "b"], "text": ["q", "a"]}, "takes one text, not a pair"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict, said: str) -> None:
    """Refused when the job is planned."""
    folder = make_model(tmp_path / "model", labels=NLI)
    with pytest.raises(SpecError, match=said):
        describe(InferEntry.model_validate({"model": str(folder), "as": "x", "task": TASK, **settings}))


def test_models_that_do_not_fit(tmp_path: Path) -> None:
    """A classifier without entailment, a token classifier, several labels by vectors, a label twice."""
    spam = make_model(tmp_path / "spam")
    entry = {"as": "x", "task": TASK, "labels": ["a", "b"]}
    with pytest.raises(SpecError, match=r"has no label entailment \(ham, spam\)"):
        describe(InferEntry.model_validate({**entry, "model": str(spam)}))
    tagger = make_model(tmp_path / "tagger", head="AutoModelForTokenClassification")
    with pytest.raises(ModelError, match="needs a model of NLI"):
        describe(InferEntry.model_validate({**entry, "model": str(tagger)}))
    with pytest.raises(ModelError, match=r"x: the label 'b' has \d+ tokens, which leaves no room for a text"):
        load(str(make_model(tmp_path / "nli", labels=NLI)), as_="x", task=TASK, labels={"a": "free", "b": "free " * 70})
    sentence_model(tmp_path / "vectors")
    with pytest.raises(SpecError, match="multi_label: needs a model of NLI"):
        describe(InferEntry.model_validate({**entry, "model": str(tmp_path / "vectors"), "multi_label": True}))
    with pytest.raises(ValueError, match="the label 'a' is there twice"):
        InferEntry.model_validate({**entry, "model": str(spam), "labels": ["a", "b", "a"]})
