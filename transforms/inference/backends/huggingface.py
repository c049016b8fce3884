"""Describes a Hugging Face model by its config alone, without PyTorch and without loading weights."""

from __future__ import annotations

from typing import Any

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.model_files import ModelFiles, find_model
from tagstream.transforms.tasks.head import Head
from tagstream.transforms.tasks.registry import identity_of, open_head


def files_of(entry: InferEntry) -> ModelFiles:
    """The checked model folder of an entry."""
    if entry.model is None:
        raise ModelError(f"{entry.as_}: model is missing")
    return find_model(entry.model, entry.revision)


def describe(entry: InferEntry) -> tuple[Head, dict[str, Any]]:
    """The head, and the part of the model's identity that does not depend on weights or precision."""
    files = files_of(entry)
    task = identity_of(entry, files)
    settings = {"settings": files.settings_hash()} if task else {}  # older outputs of text-classification have none
    return open_head(entry, files), {
        "model": files.name,
        "architecture": files.config.get("model_type"),
        **task,
        **settings,
    }


def weights_of(entry: InferEntry) -> dict[str, str]:
    """Hashes of weights and tokenizer, for the fingerprint. The first call reads the weights."""
    files = files_of(entry)
    return {"weights": files.weights_hash(), "tokenizer": files.tokenizer_hash()}
