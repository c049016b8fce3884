"""Loads a model with transformers, and merges an adapter into it. Needs no tokenizer and runs no pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from tagstream.schemas.errors import ModelError
from tagstream.transforms.adapter_files import PREFIX, WEIGHTS
from tagstream.transforms.model_files import ModelFiles
from tagstream.transforms.tokenization.padding import Padding

_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_model(
    files: ModelFiles,
    device: str,
    precision: str,
    padding: Padding | None = None,
    auto_class: str = "AutoModelForSequenceClassification",
) -> Any:
    """The model on its device, ready for inference. Raises ModelError.

    `auto_class`: the class of transformers that loads it.
    `padding`: how its micro-batches will be padded; None if there will be single rows only.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    if files.adapter is not None:
        settings |= {"config": transformers.AutoConfig.for_model(**files.config), "ignore_mismatched_sizes": True}
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            files.path, dtype=_TYPES[precision], use_safetensors=True, output_loading_info=True, **settings
        )
        missing = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        if files.adapter is not None:
            missing -= _brought(files.adapter / WEIGHTS)
            model = model if missing else _merge(model, files.adapter)
    except Exception as error:
        raise ModelError(f"{files.name}: the model in {files.path} can't be loaded: {error}") from error
    if missing:
        raise ModelError(
            f"{files.name}: the weights lack {min(missing)} and {len(missing) - 1} more, which would be random. "
            "Choose a model with a trained head for this task"
        )
    text = model.config.get_text_config()
    if hasattr(text, "use_cache"):
        text.use_cache = False  # keys and values are of use to text generation only
    if padding is not None and padding.chosen:  # heads of decoders read it at every pass
        text.pad_token_id = padding.pad_id
    return model.eval().to(device)


def _brought(file: Path) -> set[str]:
    """Names of the model's own weights that an adapter holds whole: those of its head."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return {key.removeprefix(PREFIX) for key in opened.keys()}  # noqa: SIM118  no dictionary


def _merge(model: Any, adapter: Path) -> Any:
    """The model with the adapter's changes added to its weights."""
    import peft

    wrapped = peft.PeftModel.from_pretrained(model, adapter, local_files_only=True)
    return wrapped.merge_and_unload(safe_merge=True)
