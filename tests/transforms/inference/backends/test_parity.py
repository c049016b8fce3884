"""Every architecture's scores equal those of a plain transformers forward pass, row by row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tagstream.schemas.errors import DeadCode, ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.tasks.text_classification import activate
from tests.models import ARCHITECTURES, make_model, random_texts

TEXTS = [*random_texts(60, seed=3, longest=30), "", "!", "free " * 200, random_texts(1, seed=9)[0]]


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp(request.param), request.param, labels=("a", "b", "c"))


def plain_logits(folder: Path, texts: list[str]) -> np.ndarray:
    """One row at a time, no padding, as transformers' documentation does it."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
            rows.append(model(**inputs).logits[0].numpy())
    return np.stack(rows)


def pytorch(folder: Path, **backend) -> InferEntry:
    return InferEntry.model_validate({"model": str(folder), "backend": {"type": "pytorch", **backend}})


def predict(entry: InferEntry, texts: list[str]):
    engine = Engine(load_backend(entry))
    try:
        return engine.submit(pa.array(texts, pa.large_string())).result(60)
    finally:
        engine.close()


def test_scores_equal_plain_transformers(folder: Path) -> None:
    """Within 1e-5 for each row, packed and padded or not; the long text is cut as transformers cuts it, and marked."""
    from transformers import AutoTokenizer

    prediction = predict(InferEntry(model=str(folder)), TEXTS)
    expected = activate(plain_logits(folder, TEXTS), "softmax")
    assert np.abs(expected - 1 / 3).max() > 0.1, "a model whose scores are all alike would show nothing"
    np.testing.assert_allclose(prediction.values, expected, atol=1e-5)
    lengths = [len(ids) for ids in AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]]
    assert prediction.tokens.tolist() == lengths
    assert prediction.truncated.tolist() == [length > 64 for length in lengths]
    assert 0 < prediction.truncated.sum() < len(TEXTS)
    assert not prediction.errors


def test_long_text_is_cut_on_the_side_that_the_tokenizer_says(tmp_path: Path) -> None:
    """With truncation on the left, the end of the text stays."""
    folder = make_model(tmp_path / "model", labels=("a", "b", "c"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"truncation_side": "left"}))
    long = [" ".join(random_texts(40, seed=5, longest=30))]
    prediction = predict(InferEntry(model=str(folder)), long)
    assert prediction.truncated.all()
    np.testing.assert_allclose(prediction.values, activate(plain_logits(folder, long), "softmax"), atol=1e-5)


def test_tiny_token_budgets_change_nothing(folder: Path) -> None:
    """Scores do not depend on how sequences are packed."""
    whole = predict(InferEntry(model=str(folder)), TEXTS)
    alone = predict(pytorch(folder, token_budget=64), TEXTS)
    np.testing.assert_allclose(whole.values, alone.values, atol=1e-5)


@pytest.mark.parametrize(
    ("problem", "labels", "activation"),
    [
        ("multi_label_classification", ("x", "y", "z"), "sigmoid"),
        ("regression", ("value",), "identity"),
        (None, ("value",), "sigmoid"),
        (None, ("x", "y"), "softmax"),
    ],
)
def test_heads_get_their_activation(
    tmp_path: Path, problem: str | None, labels: tuple[str, ...], activation: str
) -> None:
    """Sigmoid for several labels a row and for a single logit, identity for regression, softmax otherwise."""
    folder = make_model(tmp_path, labels=labels, problem_type=problem)
    prediction = predict(InferEntry(model=str(folder)), TEXTS)
    np.testing.assert_allclose(prediction.values, activate(plain_logits(folder, TEXTS), activation), atol=1e-5)


def test_windows_are_scored_each_and_averaged(tmp_path: Path) -> None:
    """A long text's logits are the mean over its overlapping windows. Short texts keep their scores."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make_model(tmp_path)
    texts = ["good news", " ".join(random_texts(1, seed=5, longest=400)[0].split() * 3), "call now"]
    prediction = predict(InferEntry(model=str(folder), long_text="window"), texts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    windows = tokenizer(
        texts[1], truncation=True, max_length=64, stride=16, return_overflowing_tokens=True, return_tensors=None
    )["input_ids"]
    assert len(windows) > 2
    with torch.inference_mode():
        logits = [model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in windows]
    np.testing.assert_allclose(
        prediction.values[1:2], activate(np.mean(logits, axis=0, keepdims=True), "softmax"), atol=1e-5
    )
    expected = activate(plain_logits(folder, [texts[0], texts[2]]), "softmax")
    np.testing.assert_allclose(prediction.values[[0, 2]], expected, atol=1e-5)
    whole = len(tokenizer(texts[1])["input_ids"])
    assert prediction.tokens[1] == whole
    assert not prediction.truncated.any()


def test_too_long_text_is_refused_when_asked(tmp_path: Path) -> None:
    """dead_letter: the long text alone becomes an error, its neighbours keep their scores."""
    folder = make_model(tmp_path)
    texts = ["good", "free " * 100, "bad", "free " * 100]
    prediction = predict(InferEntry(model=str(folder), long_text="dead_letter"), texts)
    assert {row: code for row, (code, _) in prediction.errors.items()} == {1: DeadCode.TOO_LONG, 3: DeadCode.TOO_LONG}
    assert "102 tokens" in prediction.errors[1][1]
    expected = activate(plain_logits(folder, [texts[0], texts[2]]), "softmax")
    np.testing.assert_allclose(prediction.values[[0, 2]], expected, atol=1e-5)


def test_bf16_keeps_labels_close(tmp_path: Path) -> None:
    """With bf16, scores are close to those of fp32, but not equal."""
    folder = make_model(tmp_path)
    full = predict(InferEntry(model=str(folder)), TEXTS)
    half = predict(pytorch(folder, precision="bf16"), TEXTS)
    drift = np.abs(full.values - half.values)
    assert 0 < drift.max() < 0.1


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    """Weights without a classification head raise an error, because the head would be random."""
    from safetensors.torch import load_file, save_file

    folder = make_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if not name.startswith("classifier")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"weights lack classifier\.bias"):
        load_backend(InferEntry(model=str(folder)))


def test_damaged_weights_are_a_clear_error(tmp_path: Path) -> None:
    """Cut-off safetensors name the model and the folder."""
    folder = make_model(tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="can't be loaded"):
        load_backend(InferEntry(model=str(folder)))


def test_device_that_is_not_there(tmp_path: Path) -> None:
    """Names the device and what to do."""
    folder = make_model(tmp_path)
    with pytest.raises(ModelError, match="device cuda:7"):
        load_backend(pytorch(folder, device="cuda:7"))


def test_windows_beside_a_text_without_tokens(tmp_path: Path) -> None:
    """A text in two windows and one without any token are as many sequences as texts: the mean counts all the same."""
    folder = make_model(tmp_path / "model", "roberta", bytewise={"pad": "<|pad|>"})
    entry = InferEntry(model=str(folder), long_text="window")
    long = "abcdefghij " * 9
    both = predict(entry, ["", long])
    assert list(both.errors) == [0]
    np.testing.assert_allclose(both.values[1], predict(entry, [long]).values[0], atol=1e-6)
