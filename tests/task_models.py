"""A small random model for each task, and the entry of a job that runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tagstream import load
from tagstream.model import Model
from tests.models import make_model

NLI = ("contradiction", "neutral", "entailment")
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] | trim }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = {"llama": {"max_position_embeddings": 128}, "gpt2": {"n_positions": 128}}
SEQ2SEQ = {
    "t5": {"initializer_factor": 3.0, "decoder_start_token_id": 1},
    "bart": {"decoder_start_token_id": 0, "forced_eos_token_id": None, "seed": 1},
}


def chat_model(folder: Path, architecture: str = "llama", *, template: str | None = TEMPLATE) -> Path:
    """A language model that knows a chat template."""
    from transformers import PreTrainedTokenizerFast

    settings = {"eos_token_id": 3, "pad_token_id": 1, **CHAT[architecture]}
    made = make_model(folder, architecture, head="AutoModelForCausalLM", **settings)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(made)
    tokenizer.chat_template, tokenizer.model_max_length = template, 128
    tokenizer.save_pretrained(made)
    return made


def seq2seq_model(folder: Path, architecture: str = "t5") -> Path:
    """A model that reads a text and writes another."""
    bytewise = {"pad": "<|pad|>", "end": True}
    return make_model(folder, architecture, head="AutoModelForSeq2SeqLM", bytewise=bytewise, **SEQ2SEQ[architecture])


def entry_of(task: str, folder: Path) -> dict[str, Any]:
    """An entry whose model is made in `folder`; its columns begin with the task's name."""
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "text-classification": (lambda: make_model(folder), {"scores": "all"}),
        "zero-shot-classification": (lambda: make_model(folder, labels=NLI), {"labels": ["a", "b"], "task": task}),
        "token-classification": (
            lambda: make_model(folder, head="AutoModelForTokenClassification", labels=("O", "B-PER", "I-PER", "B-LOC")),
            {},
        ),
        "question-answering": (
            lambda: make_model(folder, head="AutoModelForQuestionAnswering"),
            {"question": "who is free?"},
        ),
        "feature-extraction": (lambda: make_model(folder, head="AutoModel"), {}),
        "text-generation": (lambda: chat_model(folder), {"max_new_tokens": 4}),
        "text2text-generation": (lambda: seq2seq_model(folder), {"max_new_tokens": 4}),
    }
    make, settings = made[task]
    return {"model": str(make()), "as": task.replace("-", "_"), **settings}


TASKS = (
    "text-classification", "zero-shot-classification", "token-classification", "question-answering",
    "feature-extraction", "text-generation", "text2text-generation",
)  # fmt: skip


def loaded(entry: dict[str, Any]) -> Model:
    """The model of an entry, as in a job."""
    return load(**{("as_" if name == "as" else name): value for name, value in entry.items()})


def assert_same(value: Any, wanted: Any, atol: float = 0.0) -> None:
    """The same nested value. Numbers are compared as float32; `atol`: by how much they may differ."""
    if isinstance(wanted, list):
        assert len(value) == len(wanted)
        for one, other in zip(value, wanted, strict=True):
            assert_same(one, other, atol)
    elif isinstance(wanted, dict):
        assert value.keys() == wanted.keys()
        for name in wanted:
            assert_same(value[name], wanted[name], atol)
    elif isinstance(wanted, float):
        np.testing.assert_allclose(np.float32(value), np.float32(wanted), rtol=0, atol=atol)
    else:
        assert value == wanted
