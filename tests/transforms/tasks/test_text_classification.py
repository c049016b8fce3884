"""From logits to columns: scores follow the formulas, and columns are as announced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.text_classification import LabelHead, activate

NAMES = ["x", "y", "z"]
logits = hnp.arrays(np.float32, st.tuples(st.integers(0, 8), st.just(3)), elements=st.floats(-500, 500, width=32))


def head(activation: str, names: list[str] | None = None, **spec: Any) -> LabelHead:
    entry = InferEntry.model_validate({"model": "m", "as": "tag", **spec})
    return LabelHead.of(entry, NAMES if names is None else names, activation, "m")


def columns(head: LabelHead, scores: list[list[float]]) -> dict[str, list]:
    """Columns by name for these scores."""
    array = np.asarray(scores, np.float32).reshape(len(scores), len(head.names))
    made = head.columns(array, np.arange(len(scores), dtype=np.int32), np.zeros(len(scores), bool))
    return {field.name: column.to_pylist() for field, column in zip(head.fields, made, strict=True)}


@given(logits)
@pytest.mark.filterwarnings("error")
def test_softmax(values: np.ndarray) -> None:
    """Rows sum to one and keep the order of the logits. Large logits cause no overflow."""
    scores = activate(values, "softmax")
    assert scores.dtype == np.float32
    exact = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True, initial=-1e9))
    np.testing.assert_allclose(scores, exact / exact.sum(axis=1, keepdims=True), atol=1e-6)


@given(logits)
@pytest.mark.filterwarnings("error")
def test_sigmoid(values: np.ndarray) -> None:
    """Each label has its own sigmoid. Large logits cause no overflow and no warning."""
    scores = activate(values, "sigmoid")
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-values.astype(np.float64))), atol=1e-6)


@given(logits)
def test_identity(values: np.ndarray) -> None:
    """Regression: the model's own numbers."""
    np.testing.assert_array_equal(activate(values, "identity"), values)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
@pytest.mark.parametrize("scores", ["top", "all", "none"])
@pytest.mark.parametrize("names", [["x"], NAMES], ids=["one label", "three labels"])
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_columns_are_as_announced(activation: str, scores: str, names: list[str], data: st.DataObject) -> None:
    """Names, types and lengths, for every setting; every list has as many scores as labels."""
    provenance = data.draw(st.permutations(["tokens", "truncated", "model"]))
    settings_ = {"abstain": data.draw(st.sampled_from([None, "none of them"])), "thresholds": {"x": 0.7}}
    if activation == "identity":
        settings_, scores = {}, "top" if scores == "all" else scores
    made = head(activation, names, scores=scores, provenance=provenance, **settings_)
    rows = data.draw(st.integers(0, 6))
    values = data.draw(hnp.arrays(np.float32, (rows, len(names)), elements=st.floats(0, 1, width=32)))
    arrays = made.columns(values, np.arange(rows, dtype=np.int32), np.zeros(rows, bool))
    assert [a.type for a in arrays] == [f.type for f in made.fields]
    batch = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(made.fields))
    batch.validate(full=True)
    assert batch.num_rows == rows
    if activation == "sigmoid" and scores != "none" and len(names) > 1:
        assert [len(v) for v in batch["tag"].to_pylist()] == [len(v) for v in batch["tag_score"].to_pylist()]


def test_highest_score_wins() -> None:
    """One label a row, its score, and all scores if asked."""
    got = columns(head("softmax", scores="all", provenance=[]), [[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]])
    assert got["tag"] == ["y", "x"]
    assert got["tag_score"] == pytest.approx([0.5, 0.6])
    assert got["tag_scores"][0] == pytest.approx({"x": 0.2, "y": 0.5, "z": 0.3})


def test_threshold_is_that_of_the_winner() -> None:
    """Below the winner's threshold the row abstains; at the threshold the label stands. The score stays."""
    spec = {"thresholds": {"x": 0.5, "z": 0.9}, "provenance": []}
    scores = [[0.5, 0.3, 0.2], [0.49, 0.3, 0.21], [0.2, 0.45, 0.35], [0.1, 0.05, 0.85]]
    got = columns(head("softmax", abstain="?", **spec), scores)
    assert got["tag"] == ["x", "?", "y", "?"]
    assert got["tag_score"] == pytest.approx([0.5, 0.49, 0.45, 0.85])
    assert columns(head("softmax", **spec), scores)["tag"] == ["x", None, "y", None]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_threshold_equal_to_the_score(threshold: float) -> None:
    """A score equal to the threshold, as float32, reaches the threshold."""
    score = np.float32(threshold)
    got = columns(head("softmax", ["x"], thresholds={"x": threshold}, abstain="?", provenance=[]), [[score]])
    assert got["tag"] == ["x"]


def test_several_labels_a_row() -> None:
    """All labels at or above their threshold, 0.5 unless given, in the model's order; or none."""
    scores = [[0.9, 0.2, 0.5], [0.1, 0.2, 0.3], [0.4, 0.8, 0.9], [0.1, 0.1, 0.1]]
    got = columns(head("sigmoid", thresholds={"y": 0.2, "z": 0.95}, scores="all", provenance=[]), scores)
    assert got["tag"] == [["x", "y"], ["y"], ["y"], []]
    assert [[round(s, 6) for s in row] for row in got["tag_score"]] == [[0.9, 0.2], [0.2], [0.8], []]
    assert got["tag_scores"][2] == pytest.approx({"x": 0.4, "y": 0.8, "z": 0.9})


@settings(max_examples=100)
@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 9), st.just(3)), elements=st.floats(0, 1, width=32)))
def test_abstaining_among_several_labels(scores: np.ndarray) -> None:
    """A row without a label gets `abstain` and its best score; every other row is as without `abstain`."""
    plain = columns(head("sigmoid", provenance=[]), scores.tolist())
    with_abstain = columns(head("sigmoid", abstain="?", provenance=[]), scores.tolist())
    assert with_abstain["tag"] == [row or ["?"] for row in plain["tag"]]
    expected = [
        row or [float(best)] for row, best in zip(plain["tag_score"], scores.max(axis=1, initial=0), strict=True)
    ]
    assert with_abstain["tag_score"] == expected


def test_regression() -> None:
    """One number is a plain column, several are a struct. Neither has a score."""
    assert columns(head("identity", ["x"], provenance=[]), [[1.5], [-2.0]]) == {"tag": [1.5, -2.0]}
    got = columns(head("identity", provenance=[]), [[1.0, 2.0, 3.0]])
    assert got == {"tag": [{"x": 1.0, "y": 2.0, "z": 3.0}]}


def test_single_logit() -> None:
    """As transformers' pipeline: the one label and its score, whatever the score; a threshold has its effect."""
    spec = {"provenance": [], "scores": "all"}
    got = columns(head("sigmoid", ["x"], **spec), [[0.25], [0.75]])
    assert got == {"tag": ["x", "x"], "tag_score": [0.25, 0.75], "tag_scores": [{"x": 0.25}, {"x": 0.75}]}
    got = columns(head("sigmoid", ["x"], thresholds={"x": 0.5}, abstain="?", **spec), [[0.25], [0.75]])
    assert got["tag"] == ["?", "x"]


def test_single_label_of_a_model_for_several() -> None:
    """A model that says that a row may have several labels gives a list, even with one label."""
    entry = InferEntry.model_validate({"model": "m", "as": "tag", "provenance": []})
    several = LabelHead.of(entry, ["x"], "sigmoid", "m", multi_label=True)
    assert columns(several, [[0.25], [0.75]]) == {"tag": [[], ["x"]], "tag_score": [[], [0.75]]}


@pytest.mark.parametrize("of_model", ["softmax", "sigmoid", "identity"])
def test_function_to_apply(of_model: str) -> None:
    """The entry's function counts, whatever the model says."""
    assert head(of_model).activation == of_model
    for function, activation in (("sigmoid", "sigmoid"), ("softmax", "softmax"), ("none", "identity")):
        made = head(of_model, function_to_apply=function)
        assert (made.activation, made.several) == (activation, activation == "sigmoid")
    assert columns(head(of_model, function_to_apply="none", provenance=[]), [[1.0, 2.0, 3.0]]) == {
        "tag": [{"x": 1.0, "y": 2.0, "z": 3.0}]
    }


@pytest.mark.parametrize(
    ("setting", "name"),
    [({"thresholds": {"x": 0.5}}, "thresholds"), ({"scores": "all"}, "scores: all"), ({"abstain": "?"}, "abstain")],
)
@pytest.mark.parametrize("activation", ["identity", "softmax"])
@pytest.mark.parametrize("names", [["x"], NAMES], ids=["one value", "three values"])
def test_setting_without_effect_is_refused(setting: dict, name: str, activation: str, names: list[str]) -> None:
    """Values that are written as they are have no thresholds, no scores and nothing to abstain from."""
    function = {} if activation == "identity" else {"function_to_apply": "none"}
    with pytest.raises(SpecError, match=f"^tag: {name}: has no effect"):
        head(activation, names, **setting, **function)


def test_softmax_of_one_value_is_refused() -> None:
    """It is 1 for every row."""
    with pytest.raises(SpecError, match="softmax of a single value is always 1; write sigmoid or none"):
        head("sigmoid", ["x"], function_to_apply="softmax")


def test_label_map() -> None:
    """Columns, scores and thresholds use the user's names. Labels that are not mapped keep theirs."""
    spec = {"labels": {"x": "yes"}, "thresholds": {"yes": 0.9}, "scores": "all", "provenance": []}
    got = columns(head("softmax", **spec), [[0.8, 0.1, 0.1], [0, 1, 0]])
    assert got["tag"] == [None, "y"]
    assert list(got["tag_scores"][0]) == ["yes", "y", "z"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"labels": {"w": "v"}}, "tag: labels: the model has no 'w'; it has x, y, z"),
        ({"labels": {"x": "y"}}, "tag: labels: two labels of the model would have the same name"),
        ({"thresholds": {"w": 0.5}}, "tag: thresholds: no label 'w'; there are x, y, z"),
        ({"labels": {"x": "v"}, "thresholds": {"x": 0.5}}, "tag: thresholds: no label 'x'; there are v, y, z"),
    ],
)
def test_labels_that_the_model_does_not_have(spec: dict, message: str) -> None:
    """The message names the unknown label and the existing ones."""
    with pytest.raises(SpecError, match=message):
        head("softmax", **spec)


def test_labels_may_swap_names() -> None:
    """All names are mapped at once, so that two labels can swap names."""
    assert head("softmax", labels={"x": "y", "y": "x"}).names == ("y", "x", "z")


def test_provenance() -> None:
    """Tokens, truncation and model come in the requested order."""
    made = head("softmax", scores="none", provenance=["model", "tokens", "truncated"])
    arrays = made.columns(np.eye(3, dtype=np.float32), np.array([5, 6, 7], np.int32), np.array([True, False, True]))
    got = dict(zip([f.name for f in made.fields], [a.to_pylist() for a in arrays], strict=True))
    assert got == {
        "tag": ["x", "y", "z"],
        "tag_model": ["m"] * 3,
        "tag_tokens": [5, 6, 7],
        "tag_truncated": [True, False, True],
    }


def test_same_labels() -> None:
    """Best label, set of labels, or a value within 1 % of the spread; a best label below its threshold is none."""
    names, reference = ["a", "b"], np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    same = {name: head(name, names).agree for name in ("softmax", "sigmoid", "identity")}
    assert same["softmax"](np.array([[0.6, 0.4], [0.7, 0.3]]), reference).tolist() == [True, False]
    assert same["sigmoid"](np.array([[0.6, 0.6], [0.1, 0.7]]), reference).tolist() == [False, True]
    assert same["identity"](reference + np.array([[0.001], [0.1]]), reference).tolist() == [True, False]
    strict = head("softmax", names, thresholds={"a": 0.8}).agree
    assert strict(np.array([[0.6, 0.4], [0.3, 0.7]]), reference).tolist() == [False, True]
