"""Finds a model's files and checks that they are safe and suitable, without loading any weights.

Owns names, folders, configs and hashes. Does not use PyTorch, so that `plan` stays fast.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tagstream.models import PREFIX, bundled
from tagstream.schemas.errors import ModelError

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "tokenizer*", "vocab*", "merges*"]
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model")


@dataclass(frozen=True)
class ModelFiles:
    """A checked model folder. `name`: the model's name in the specification. `config`: the content of config.json."""

    name: str
    path: Path
    config: dict[str, Any]

    @property
    def architectures(self) -> list[str]:
        """Names of transformers' classes that the weights are of; the tasks say which they take."""
        return [str(name) for name in self.config.get("architectures") or ()]

    @property
    def labels(self) -> list[str]:
        """Label names by index: `id2label` of the config, or else LABEL_0, LABEL_1, …"""
        id2label = self.config.get("id2label")
        if id2label:
            return [str(id2label[key]) for key in sorted(id2label, key=int)]
        return [f"LABEL_{number}" for number in range(int(self.config.get("num_labels", 2)))]

    @property
    def activation(self) -> str:
        """softmax, sigmoid or identity, as transformers' text-classification pipeline chooses it."""
        problem = self.config.get("problem_type")
        if problem == "regression" or (problem is None and len(self.labels) == 1):
            return "identity"
        return "sigmoid" if problem == "multi_label_classification" else "softmax"

    def weights_hash(self) -> str:
        """SHA-256 over the safetensors files."""
        return _hash_files(self.path, ("*.safetensors",))

    def tokenizer_hash(self) -> str:
        """SHA-256 over the tokenizer's files."""
        return _hash_files(self.path, ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "*.model"))

    def cache_folder(self) -> Path:
        """Folder for files made from this model, below $TAGSTREAM_CACHE or ~/.cache/tagstream, named by its hashes."""
        root = Path(os.environ.get("TAGSTREAM_CACHE") or "~/.cache/tagstream").expanduser()
        return root / f"{self.weights_hash()}-{self.tokenizer_hash()}"


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """The checked files of a model. `name`: a bundled name, a local folder or a Hugging Face id.

    Only a Hugging Face id that is not in the local cache is downloaded. Raises ModelError.
    """
    return _find_model(name, revision)


@cache
def _find_model(name: str, revision: str | None) -> ModelFiles:
    path = _find_folder(name, revision)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise ModelError(f"{name}: {path} has no config.json; give the folder that save_pretrained wrote")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")  # noqa: TRY004  reported like any other damaged file
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {config_file} is not readable JSON: {error}") from None
    _check_code(name, config)
    _check_labels(name, config.get("id2label"))
    _check_files(name, path)
    return ModelFiles(name, path, config)


def _find_folder(name: str, revision: str | None) -> Path:
    if name.startswith(PREFIX):
        found = bundled()
        if name not in found:
            raise ModelError(
                f"{name}: no such bundled model. The bundled models are {', '.join(found)} (`tagstream models`)"
            )
        return found[name]
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or local.exists():
        raise ModelError(f"{name}: not a folder; give a model folder, a Hugging Face id or a bundled name")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=True))
    except HFValidationError:
        raise ModelError(f"{name}: neither a folder nor a Hugging Face id (owner/name)") from None
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, etag_timeout=10))
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name}: no such folder here and no such model on Hugging Face. Check the spelling; "
            "a private model needs HF_TOKEN in the environment; `tagstream models` lists the bundled models"
        ) from None
    except Exception as error:
        raise ModelError(
            f"{name}: no such folder here, not in the local Hugging Face cache, and the download failed "
            f"({type(error).__name__}). Download it where there is a network and give its folder"
        ) from error


def _check_code(name: str, config: dict[str, Any]) -> None:
    if "auto_map" in config:
        raise ModelError(
            f"{name}: needs code from its own repository (auto_map), which is never run. Choose a built-in architecture"
        )


def _check_labels(name: str, id2label: Any) -> None:
    numbers = [str(number) for number in range(len(id2label or ()))]
    if id2label and (
        not isinstance(id2label, dict)
        or sorted(id2label, key=str) != sorted(numbers)
        or len(set(map(str, id2label.values()))) < len(numbers)
    ):
        raise ModelError(f"{name}: id2label in its config must map 0, 1, … to different names. Correct config.json")


def _check_files(name: str, path: Path) -> None:
    if not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(pattern))
        raise ModelError(
            f"{name}: no safetensors weights in {path}"
            + (f"; {pickled[0]} is a pickle, which is never loaded" if pickled else "")
            + ". Convert the model once: AutoModelForSequenceClassification.from_pretrained(…).save_pretrained(FOLDER)"
        )
    if not any((path / file).is_file() for file in _TOKENIZER_FILES):
        raise ModelError(
            f"{name}: no tokenizer in {path} (looked for {', '.join(_TOKENIZER_FILES[:3])}, …). "
            "Save it beside the model: AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)"
        )


def _hash_files(path: Path, patterns: tuple[str, ...]) -> str:
    files = sorted({found for pattern in patterns for found in path.glob(pattern) if found.is_file()})
    stats = [(file, file.stat()) for file in files]
    return _digest(tuple((file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file, stat in stats))


@cache
def _digest(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    """SHA-256 of the files. Cached by their sizes and times, because weights may be gigabytes."""
    digest = hashlib.sha256()
    for file, *_ in files:
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
