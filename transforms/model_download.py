"""Finds a model in the local Hugging Face cache, or downloads it, and tells a whole model from a part of one.

A download that was interrupted leaves a folder in the cache that looks like a model but lacks files, and other programs
put single files there. Neither is taken for the model.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from tagstream.schemas.errors import ModelError

FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "tokenizer*", "vocab*", "merges*"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5})\.safetensors")


def cached(name: str, revision: str | None) -> Path | None:
    """The model's folder in the local cache, whole or not; None if it is not there. Raises ModelError for no id."""
    return _snapshot(name, revision, local_files_only=True)


def download(name: str, revision: str | None) -> Path:
    """The model's folder in the local cache. Only what is missing there is downloaded. Raises ModelError."""
    from huggingface_hub.errors import RepositoryNotFoundError

    found = cached(name, revision)
    if found is not None:
        return _completed(name, revision, found)
    try:
        return _snapshot(name, revision, etag_timeout=10) or Path()
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name}: no such folder here and no such model on Hugging Face. Check the spelling; "
            "a private model needs HF_TOKEN in the environment; `tagstream models` lists the bundled models"
        ) from None
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name}: no such folder here, not in the local Hugging Face cache, and the download failed "
            f"({type(error).__name__}). Download it where there is a network and give its folder"
        ) from error


def _completed(name: str, revision: str | None, found: Path) -> Path:
    """The folder in the cache, after what it lacks has been downloaded. Raises ModelError."""
    lacks = _lacks(found)
    if not lacks or any(file for pattern in PICKLES for file in found.glob(pattern)):
        return found  # whole; or in a format that is never loaded, and the check of its files says so
    try:
        from huggingface_hub import HfApi

        HfApi().model_info(name, revision=revision, timeout=10)  # without a network snapshot_download returns `found`
        return _snapshot(name, revision, etag_timeout=10) or found
    except Exception as error:
        raise ModelError(
            f"{name}: the download to {found} is incomplete, without {lacks}, and it can't be finished now "
            f"({type(error).__name__}). Where there is a network: hf download {name}"
        ) from error


def missing_weights(path: Path) -> list[str]:
    """Names of the weight files that a folder lacks, as its index and the numbers in its files' names tell."""
    there = {file.name for file in path.glob("*.safetensors") if file.is_file()}
    wanted: set[str] = {file.name for file in path.glob("*.safetensors")}  # a link may lead nowhere
    if "model.safetensors" not in there and (path / _INDEX).is_file():
        try:
            wanted |= set(json.loads((path / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            wanted.add(_INDEX)
    for found in filter(None, map(_SHARD.fullmatch, sorted(there))):
        stem, count = found.groups()
        wanted |= {f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)}
    return sorted(wanted - there)


def _lacks(path: Path) -> str:
    """What a model's folder in the cache lacks, in words; empty if it may be whole."""
    if missing := missing_weights(path):
        return f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
    if not any(path.glob("*.safetensors")):
        return "the weights (*.safetensors)"
    configs = ("config.json", "adapter_config.json")
    return "" if any((path / config).is_file() for config in configs) else configs[0]


def _snapshot(name: str, revision: str | None, **options: Any) -> Path | None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=FILES, **options))
    except HFValidationError:
        raise ModelError(f"{name}: neither a folder nor a Hugging Face id (owner/name)") from None
    except LocalEntryNotFoundError:
        if options.get("local_files_only"):
            return None
        raise
