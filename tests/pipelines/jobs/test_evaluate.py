"""`evaluate` gives the figures that scikit-learn gives for the labels of plain transformers."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from tagstream.pipelines.jobs.evaluate import calibration_error, evaluate_job, print_evaluation
from tagstream.schemas.errors import SourceError, SpecError
from tests.models import make_model, random_texts
from tests.pipelines.bulk_jobs import BulkJob
from tests.transforms.inference.backends.test_parity import plain_logits

TEXTS = random_texts(300, seed=2)
NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), labels=("a", "b", "c"))


@pytest.fixture
def job(tmp_path: Path) -> BulkJob:
    bulk = BulkJob(tmp_path)
    chooser = random.Random(3)
    truth = pa.array([None if i % 50 == 0 else chooser.choice(NAMES) for i in range(300)], pa.string())
    bulk.put(
        "a.parquet",
        TEXTS,
        truth=truth,
        label=truth,
        tag=truth,
        numbers=pa.array([i % 2 for i in range(300)]),
        amount=pa.array([i + 0.5 for i in range(300)]),
    )
    return bulk


def scores_of(model: Path, activation: str = "softmax") -> np.ndarray:
    """Scores by plain transformers, float [texts, 3]."""
    import torch

    logits = torch.from_numpy(plain_logits(model, TEXTS))
    return (logits.softmax(-1) if activation == "softmax" else logits.sigmoid()).numpy()


def evaluate(job: BulkJob, model: Path | None, label: str = "truth", without: tuple = (), **fields: Any) -> dict:
    backend = {"model": str(model)} if model else {"backend": {"type": "constant", "label": "b"}}
    spec = job.spec(infer=[{"as": "tag", **backend, **fields}])
    return evaluate_job(spec, label, job.console, without=without)


def truth_of(job: BulkJob) -> list[str | None]:
    import pyarrow.parquet as pq

    return pq.read_table(job.folder / "in/a.parquet")["truth"].to_pylist()


def test_without_scikit_learn_the_extra_is_named(job: BulkJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SpecError, match=r"needs scikit-learn: pip install 'tagstream\[evaluate\]'"):
        evaluate(job, None)


@pytest.mark.parametrize("without", [(), ("b",)])
def test_figures_equal_scikit_learn(job: BulkJob, model: Path, without: tuple[str, ...]) -> None:
    """Accuracy, precision, recall, F1 by label, macro, weighted, confusion matrix and calibration error."""
    truth = truth_of(job)
    rows = [i for i, t in enumerate(truth) if t is not None]
    scores = scores_of(model)[rows]
    true = np.array([truth[i] for i in rows])
    allowed = [i for i, name in enumerate(NAMES) if name not in without]
    names = [NAMES[i] for i in allowed]
    predicted = np.array(names)[scores[:, allowed].argmax(axis=1)]
    result = evaluate(job, model, without=without)
    assert (result["rows"], result["label"]) == (len(rows), "truth")
    got = result["entries"]["tag"]
    labels = [*names, *without]
    assert got["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    table = precision_recall_fscore_support(true, predicted, labels=labels, zero_division=0)
    for number, name in enumerate(labels):
        assert list(got["labels"][name].values()) == pytest.approx([column[number] for column in table]), name
    for average in ("macro", "weighted"):
        exact = precision_recall_fscore_support(true, predicted, labels=labels, average=average, zero_division=0)
        assert [got[average][k] for k in ("precision", "recall", "f1-score")] == pytest.approx(exact[:3])
    assert got["confusion"] == {
        "labels": labels,
        "rows_true": confusion_matrix(true, predicted, labels=labels).tolist(),
    }
    confidence = scores[:, allowed].max(axis=1)
    assert got["expected_calibration_error"] == pytest.approx(direct_error(confidence, predicted == true), abs=1e-4)
    assert got["labels_the_model_lacks"] == list(without)
    assert len(set(predicted)) > 1


def direct_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """The error computed bin by bin, as the formula is written."""
    total = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & ((confidence < (low + 1) / 15) | (low == 14))
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_error() -> None:
    """The error is 0 for a model that is right as often as it says, and 1 for a model that is sure and always wrong."""
    assert calibration_error(np.array([0.75] * 4), np.array([1, 1, 1, 0])) == pytest.approx(0)
    assert calibration_error(np.array([1.0, 1.0]), np.array([0, 0])) == 1
    assert calibration_error(np.array([]), np.array([])) == 0


def test_constant_model(job: BulkJob) -> None:
    """If every row gets the same label, its recall is 1, its precision is its share, and other labels have 0."""
    got = evaluate(job, None)["entries"]["tag"]
    truth = [t for t in truth_of(job) if t is not None]
    share = truth.count("b") / len(truth)
    assert got["accuracy"] == got["labels"]["b"]["precision"] == pytest.approx(share)
    assert got["labels"]["b"]["recall"] == 1
    assert got["labels"]["a"]["f1-score"] == 0
    assert got["labels_the_model_lacks"] == ["a", "c"]
    assert got["expected_calibration_error"] == pytest.approx(1 - share)


@pytest.mark.parametrize("label", ["truth", "label", "tag"])
def test_any_column_may_hold_the_truth(job: BulkJob, label: str) -> None:
    """The column of true labels may have any name, even the name of a column of the entry."""
    assert evaluate(job, None, label, **{"as": "label"})["rows"] == 294


def test_numbers_as_labels(job: BulkJob) -> None:
    """True labels may be numbers, for a model whose labels are called 0 and 1."""
    got = evaluate(job, None, "numbers", backend={"type": "constant", "label": "1"})
    assert got["entries"]["tag"]["accuracy"] == 0.5


def test_thresholds_and_abstaining_do_not_count(job: BulkJob, model: Path) -> None:
    """Thresholds do not count: the label with the highest score is measured."""
    plain = evaluate(job, model)["entries"]["tag"]
    strict = evaluate(job, model, thresholds={"a": 0.99, "b": 0.99, "c": 0.99}, abstain="?")["entries"]["tag"]
    assert strict["labels"] == plain["labels"]
    assert strict["confusion"] == plain["confusion"]
    assert strict["expected_calibration_error"] == pytest.approx(plain["expected_calibration_error"], abs=1e-5)


def test_dead_letters_are_counted(job: BulkJob) -> None:
    """Rows on which the model fails have no label to compare, and are counted by code."""
    result = evaluate(job, None, backend={"type": "constant", "label": "b", "fail_on": "^free"})
    failing = sum(text.startswith("free") for text in TEXTS)
    assert result["dead_letters"] == {"inference_failed": failing}
    assert 0 < failing < 15


def test_label_map_counts(job: BulkJob) -> None:
    """The true labels are compared with the names that the specification gives the labels."""
    got = evaluate(job, None, backend={"type": "constant", "label": "z"}, labels={"z": "c"})["entries"]["tag"]
    assert got["labels"]["c"]["recall"] == 1


def test_several_labels_a_row(tmp_path: Path) -> None:
    """With several labels a row, the truth is a list or a string with commas, and each label is measured by itself."""
    folder = make_model(tmp_path / "model", labels=("a", "b", "c"), problem_type="multi_label_classification")
    job = BulkJob(tmp_path)
    sets = [["a", "b", "c"][: i % 4] for i in range(300)]
    lists, text = pa.array(sets, pa.list_(pa.string())), pa.array([", ".join(s) for s in sets])
    job.put("a.parquet", TEXTS, lists=lists, text2=text)
    of_lists = evaluate(job, folder, "lists")["entries"]["tag"]
    of_text = evaluate(job, folder, "text2")["entries"]["tag"]
    assert {**of_lists, "expected_calibration_error": 0} == {**of_text, "expected_calibration_error": 0}
    assert of_text["labels_the_model_lacks"] == []
    predicted, true = scores_of(folder, "sigmoid") >= 0.5, np.array([[name in s for name in NAMES] for s in sets])
    assert of_lists["accuracy"] == pytest.approx((predicted == true).all(axis=1).mean())
    f1 = precision_recall_fscore_support(true, predicted, zero_division=0)[2]
    assert [of_lists["labels"][name]["f1-score"] for name in NAMES] == pytest.approx(f1)


def test_regression_has_no_labels(tmp_path: Path, job: BulkJob) -> None:
    """The error comes before anything runs."""
    folder = make_model(tmp_path / "model", labels=("x",), problem_type="regression")
    with pytest.raises(SpecError, match="tag: a regression model has no labels to evaluate"):
        evaluate(job, folder)


@pytest.mark.parametrize(
    ("label", "without", "error", "message"),
    [
        ("truht", (), SourceError, r"no column 'truht' \(--label\).*did you mean 'truth'"),
        (
            "amount",
            (),
            SpecError,
            r"tag: .* has none of the model's labels \(b\); it holds 0\.5, 1\.5,.*--label",
        ),
        ("truth", ("z",), SpecError, "tag: no label 'z'; there are b"),
        ("truth", ("b",), SpecError, "tag: --without leaves no label to choose"),
    ],
)
def test_wrong_questions(job: BulkJob, label: str, without: tuple, error: type[Exception], message: str) -> None:
    """The message names the columns or labels that exist."""
    with pytest.raises(error, match=message):
        evaluate(job, None, label, without)


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_compare(tmp_path: Path, rows: int) -> None:
    """Without rows, or without a true label in any row, there is an error."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x"] * rows, truth=pa.nulls(rows, pa.string()))
    with pytest.raises(SpecError, match="no row has both a true label in 'truth' and a prediction"):
        evaluate(job, None)


def test_truth_that_is_no_label(tmp_path: Path) -> None:
    """A list of true labels does not fit a model that gives one label."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x"], truth=pa.array([["a"]]))
    with pytest.raises(SpecError, match="the true labels are list"):
        evaluate(job, None)


def test_leaves_no_output(job: BulkJob) -> None:
    """`evaluate` only measures, and writes nothing."""
    result = evaluate(job, None)
    assert sorted(path.name for path in job.folder.iterdir()) == ["in"]
    print_evaluation(job.console, result)
    for text in ("accuracy", "macro", "weighted", "expected calibration error", "does not have: a, c"):
        assert text in job.said
