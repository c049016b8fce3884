"""Micro-batches give the scores that transformers' pipeline gives row by row, whatever a model pads with and pools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tagstream.schemas.errors import DeadCode
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.self_check import load_checked
from tests.models import DECODERS, OTHERS, make_model, random_texts

LABELS = ("a", "b", "c")
TEXTS = [text for text in random_texts(40, seed=3, longest=8) if text]


def pipeline_scores(folder: Path, texts: list[str]) -> np.ndarray:
    """What transformers' own text-classification pipeline gives for one text after the other."""
    import torch
    from transformers import pipeline

    run = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)
    found = [run(text, truncation=True, top_k=None) for text in texts]
    rows = [{one["label"]: one["score"] for one in labels} for labels in found]
    return np.array([[row[label] for label in run.model.config.id2label.values()] for row in rows], np.float32)


def predict(folder: Path, texts: list[str], **backend: Any):
    """The engine's prediction, as a job would get it, and the notice of the check at load."""
    spec = {"model": str(folder), "backend": {"type": "pytorch", **backend}}
    loaded, works, notice = load_checked(InferEntry.model_validate(spec))
    engine = Engine(loaded, works=works)
    try:
        return engine.submit(pa.array(texts, pa.large_string())).result(60), notice
    finally:
        engine.close()


def agree(folder: Path, texts: list[str] = TEXTS, **backend: Any) -> str:
    """Asserts that all scores are the pipeline's. Returns the notice."""
    expected = pipeline_scores(folder, texts)
    assert np.ptp(expected, axis=0).max() > 0.1, "a model whose scores are all alike would show nothing"
    prediction, notice = predict(folder, texts, **backend)
    assert not prediction.errors
    np.testing.assert_allclose(prediction.values, expected, atol=1e-5)
    return notice


@pytest.mark.parametrize("architecture", sorted(DECODERS))
@pytest.mark.parametrize(
    ("tokenizer", "config"),
    [
        pytest.param({}, {"pad_token_id": 0}, id="no pad token, the end in the config"),
        pytest.param({}, {"pad_token_id": 7}, id="no pad token, a letter in the config"),
        pytest.param({"pad": "<|pad|>"}, {"pad_token_id": 0}, id="another id in the config"),
        pytest.param({"pad": "<|pad|>", "side": "left"}, {"pad_token_id": 1}, id="left"),
        pytest.param({"pad": "<|end|>", "end": True}, {"pad_token_id": 0}, id="the end of every text is padding"),
    ],
)
def test_decoders(tmp_path: Path, architecture: str, tokenizer: dict[str, Any], config: dict[str, Any]) -> None:
    """Heads of decoders pool by the config's pad_token_id. A token of the text may be that one."""
    folder = make_model(tmp_path, architecture, labels=LABELS, bytewise=tokenizer, **config)
    ends = ["good<|end|>", "<|end|>", "<|end|> bad news", "now<|pad|>", "<|pad|> now", "%", "good %"]
    assert not agree(folder, [*TEXTS, *ends])


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "openai-gpt"])
@pytest.mark.parametrize("pad_token_id", [None, -1])
@pytest.mark.parametrize("pad", [None, "<|pad|>"])
def test_decoder_without_pad_id(tmp_path: Path, architecture: str, pad: str | None, pad_token_id: int | None) -> None:
    """An id that no text holds pads. Without any, rows run one at a time, and the user is told why."""
    more = {"pad_token_id": 0, "labels": LABELS, "bytewise": {"pad": pad}}
    for size, unbatched in ((258, True), (260, False)):
        folder = make_model(tmp_path / str(size), architecture, **more, vocab_size=size)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": pad_token_id}))
        notice = agree(folder, [*TEXTS, "good<|end|>", "<|end|>"])
        assert ("run one at a time" in notice) is unbatched
        assert (str(folder) in notice) is unbatched


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "deberta-v2"])
def test_padding_side_of_the_tokenizer_changes_nothing(tmp_path: Path, architecture: str, side: str) -> None:
    """Positions are those of a row alone."""
    folder = make_model(tmp_path, architecture, labels=LABELS)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": side}))
    assert not agree(folder, ["", *TEXTS, "[PAD]", "good [PAD]", "[PAD] [PAD] good"])


@pytest.mark.parametrize("architecture", ["roberta", "bert"])
def test_pad_id_that_is_not_in_the_config(tmp_path: Path, architecture: str) -> None:
    """The id is then the one of the model's class: 1 for RoBERTa, which numbers its positions by it."""
    folder = make_model(
        tmp_path, architecture, labels=LABELS, **({"pad_token_id": 0} if architecture == "bert" else {})
    )
    config = json.loads((folder / "config.json").read_text())
    del config["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    assert not agree(folder, [*TEXTS, "free " * 200])


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("architecture", ["xlnet", "gpt2", "bert", "albert", "distilbert"])
@pytest.mark.parametrize("segment", [0, 1])
def test_segment_ids(tmp_path: Path, architecture: str, segment: int, given: bool) -> None:
    """The model gets what the tokenizer gives. For GPT-2 and XLNet zeros and none are different."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = {
        "end": True, "segment": segment, "pad": "<|pad|>", "model_input_names": names if given else names[::2],
    }  # fmt: skip
    config = {"type_vocab_size": 2} if architecture in {"bert", "albert"} else {}
    folder = make_model(tmp_path, architecture, labels=LABELS, bytewise=tokenizer, **config)
    assert not agree(folder)


@pytest.mark.parametrize("architecture", sorted(OTHERS))
def test_models_that_pool_otherwise(tmp_path: Path, architecture: str) -> None:
    """Only FNet, which has no attention mask, runs unbatched."""
    folder = make_model(tmp_path, architecture, labels=LABELS, bytewise={"end": True, "pad": "<|pad|>"})
    assert bool(agree(folder)) is (architecture == "fnet")


def test_text_without_tokens_is_a_dead_letter(tmp_path: Path) -> None:
    """transformers' pipeline fails for it. Its neighbours keep their labels."""
    folder = make_model(tmp_path, "gpt2", labels=LABELS, bytewise={}, pad_token_id=0)
    prediction, _ = predict(folder, ["", "good", ""])
    code, message = prediction.errors[0]
    assert (sorted(prediction.errors), code) == ([0, 2], DeadCode.TOKENISATION_FAILED)
    assert "makes no token of this text" in message
    np.testing.assert_allclose(prediction.values[1:2], pipeline_scores(folder, ["good"]), atol=1e-5)
    only, _ = predict(folder, [""])
    assert list(only.errors) == [0]
