"""A folder with a LoRA adapter is the adapted model: merged by peft, with its own hash; or it is refused by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import describe, identify
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.self_check import load_checked
from tagstream.transforms.model_files import find_model
from tests.models import make_model, random_texts

TEXTS = random_texts(20, seed=4, longest=10)
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft: the extra peft")


def make_adapter(folder: Path, base: Path, labels: int, seed: int = 0, **config: Any) -> Path:
    """An adapter with random weights, saved by peft, for a classifier with so many labels."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, ignore_mismatched_sizes=True)
    settings = peft.LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=16, init_lora_weights=False, **config)
    peft.get_peft_model(model, settings).save_pretrained(folder)
    return folder


def reference(folder: Path, labels: int) -> np.ndarray:
    """Logits of peft's own class, one row at a time, unmerged."""
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoTokenizer

    model = AutoPeftModelForSequenceClassification.from_pretrained(
        folder, num_labels=labels, ignore_mismatched_sizes=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(model.peft_config["default"].base_model_name_or_path)
    with torch.inference_mode():
        return np.stack([model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in TEXTS])


@needs_peft
@pytest.mark.parametrize(("architecture", "labels"), [("bert", 3), ("bert", 2), ("gpt2", 3), ("distilbert", 2)])
def test_adapter_is_merged(tmp_path: Path, architecture: str, labels: int) -> None:
    """Logits are those of peft, for a head of any size; the weights' hash is another than the base model's."""
    base = make_model(tmp_path / "base", architecture)
    distil = {"target_modules": ["q_lin"], "modules_to_save": ["pre_classifier"]}
    adapter = make_adapter(tmp_path / "adapter", base, labels, **(distil if architecture == "distilbert" else {}))
    entry = InferEntry(model=str(adapter))
    head, _ = describe(entry)
    names = ("ham", "spam") if labels == 2 else tuple(f"LABEL_{number}" for number in range(labels))
    assert head.names == names
    backend, _, notice = load_checked(entry)
    encoded = backend.encode(pa.array(TEXTS, pa.large_string()))
    logits = backend.forward([(encoded, np.arange(len(TEXTS)))])
    assert notice == ""
    np.testing.assert_allclose(logits, reference(adapter, labels), atol=1e-4)
    plain, _, _ = load_checked(InferEntry(model=str(base)))
    if labels == 2:
        assert np.abs(plain.forward([(encoded, np.arange(len(TEXTS)))]) - logits).max() > 0.01
    plain.close()
    engine = Engine(backend)
    assert engine.submit(pa.array(TEXTS, pa.large_string())).result(60).values.shape == (len(TEXTS), labels)
    engine.close()
    assert identify(entry)["weights"] != identify(InferEntry(model=str(base)))["weights"]


@needs_peft
def test_hash_covers_adapter_and_base(tmp_path: Path) -> None:
    """Another adapter of the same base, and the same adapter with another scale, are other weights."""
    base = make_model(tmp_path / "base")
    first, second = (make_adapter(tmp_path / f"adapter{seed}", base, 2, seed) for seed in (1, 2))
    hashes = {find_model(str(folder)).weights_hash() for folder in (base, first, second)}
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 2}))
    hashes.add(find_model(str(second)).weights_hash())
    shutil.copy(make_model(tmp_path / "other", seed=7) / "model.safetensors", base)
    hashes.add(find_model(str(first)).weights_hash())
    assert len(hashes) == 5


@needs_peft
def test_names_of_labels_and_tokenizer_beside_the_adapter(tmp_path: Path) -> None:
    """A config.json beside the adapter names the labels; a tokenizer there is the one that counts."""
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, 3)
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y", "2": "z"}}))
    shutil.copy(base / "tokenizer.json", adapter)
    shutil.copy(base / "tokenizer_config.json", adapter)
    assert describe(InferEntry(model=str(adapter)))[0].names == ("x", "y", "z")
    files = find_model(str(adapter))
    assert files.tokenizer == adapter
    before = files.tokenizer_hash()
    (base / "tokenizer.json").write_text("{}")
    assert find_model(str(adapter)).tokenizer_hash() == before
    backend, *_ = load_checked(InferEntry(model=str(adapter)))
    backend.close()


@needs_peft
def test_head_that_neither_has_is_refused(tmp_path: Path) -> None:
    """An adapter that brings no head, for a model that has none, would label at random."""
    from safetensors.torch import load_file, save_file

    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, 2)
    for file, head in (
        (base / "model.safetensors", "classifier"),
        (adapter / "adapter_model.safetensors", "base_model.model.classifier"),
    ):
        weights = load_file(file)
        save_file({k: v for k, v in weights.items() if not k.startswith(head)}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"weights lack classifier\.bias"):
        load_checked(InferEntry(model=str(adapter)))


def write_adapter(folder: Path, **config: Any) -> str:
    folder.mkdir()
    settings = {"base_model_name_or_path": "tagstream/spam", "peft_type": "LORA", "task_type": "SEQ_CLS", **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_without_peft_the_message_says_how_to_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lines of Python, and the extra to install; never the labels of the base model."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "peft" else find_spec(name, *a))
    name = write_adapter(tmp_path / "adapter")
    shutil.copy(make_model(tmp_path / "base") / "model.safetensors", name)
    with pytest.raises(ModelError) as caught:
        find_model(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: an adapter of tagstream/spam, not a model of its own")
    assert "pip install 'tagstream[peft]'" in message
    assert f'AutoPeftModelForSequenceClassification.from_pretrained("{name}")' in message
    assert 'model.merge_and_unload().save_pretrained("MERGED")' in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "PROMPT_TUNING"}, "an adapter of the kind PROMPT_TUNING; only LoRA"),
        ({"task_type": "CAUSAL_LM"}, "an adapter for CAUSAL_LM, not for sequence classification"),
        ({"base_model_name_or_path": None}, "does not name the adapter's model"),
        ({}, "an adapter without adapter_model.safetensors"),
    ],
)
def test_adapters_that_can_not_be_used(tmp_path: Path, config: dict, message: str) -> None:
    """Each by name and reason."""
    pytest.importorskip("peft")
    with pytest.raises(ModelError, match=message):
        find_model(write_adapter(tmp_path / "adapter", **config))


@needs_peft
def test_model_of_the_adapter_is_missing(tmp_path: Path) -> None:
    """The message names both."""
    base = make_model(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, 2)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=f"^{adapter}: an adapter whose model is missing: {base}: not a folder"):
        find_model(str(adapter))
