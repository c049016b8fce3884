"""What a sentence-transformers folder says beside the model: how token vectors become one vector for each text.

Such a folder has a `modules.json`, which lists its modules in order, each with a folder of its own. The first is the
model of transformers. Source: `sentence_transformers.SentenceTransformer.save`, versions 2 to 6.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tagstream.schemas.errors import ModelError

FILE = "modules.json"
_KNOWN = ("Pooling", "Dense", "LayerNorm", "Normalize")
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Settings of older versions, in the order in which the vectors of several modes are joined."""


@dataclass(frozen=True)
class SentenceModule:
    """One module after the model. `kind`: its class. `config`: its settings. `weights`: its file, if it has any."""

    kind: str
    config: dict[str, Any]
    weights: Path | None = None


@dataclass(frozen=True)
class SentenceFiles:
    """See the module. `model`: the folder of the model of transformers.

    `prompts`: by name, what is put before a text. `max_length`: tokens; None if the tokenizer says it. `lower`: texts
    are made lower case first.
    """

    model: Path
    modules: tuple[SentenceModule, ...]
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    lower: bool = False

    @property
    def files(self) -> list[Path]:
        """The files that decide the vectors, beside those of the model."""
        return [module.weights for module in self.modules if module.weights]


def read_sentence_files(name: str, path: Path) -> SentenceFiles | None:
    """What `path` says; None if it is no such folder. `name`: the model's, for messages. Raises ModelError."""
    if not (path / FILE).is_file():
        return None
    listed = _read(name, path / FILE)
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise ModelError(f"{name}: {path / FILE} lists no modules")
    first, *others = (_of(name, path, one) for one in listed)
    if first[0] not in ("Transformer", "BertModel"):
        raise ModelError(f"{name}: its first module is a {first[0]}, not a model of transformers; choose another model")
    modules = tuple(_module(name, kind, folder) for kind, folder in others if kind != "Dropout")  # only for training
    settings = {}
    for file in sorted(first[1].glob("sentence_*_config.json")):
        settings = _read(name, file)
    shown = _read(name, file) if (file := path / "config_sentence_transformers.json").is_file() else {}
    return SentenceFiles(
        first[1],
        modules,
        {str(key): str(text) for key, text in (shown.get("prompts") or {}).items() if text is not None},
        shown.get("default_prompt_name"),
        settings.get("max_seq_length"),
        bool(settings.get("do_lower_case")),
    )


def _of(name: str, path: Path, one: dict[str, Any]) -> tuple[str, Path]:
    folder = (path / str(one.get("path") or "")).resolve()
    if not folder.is_relative_to(path.resolve()):
        raise ModelError(f"{name}: {path / FILE} names {folder}, which is outside of the model's folder")
    return str(one.get("type", "")).rpartition(".")[2], folder


def _module(name: str, kind: str, folder: Path) -> SentenceModule:
    if kind not in _KNOWN:
        raise ModelError(f"{name}: has a module {kind}, which is not known here; known are {', '.join(_KNOWN)}")
    config = _read(name, folder / "config.json") if (folder / "config.json").is_file() else {}
    if kind == "Pooling":
        modes = config.get("pooling_mode") or [mode for key, mode in _LEGACY.items() if config.get(key)] or "mean"
        modes = [modes] if isinstance(modes, str) else list(modes)
        config = {"modes": modes, "prompt": bool(config.get("include_prompt", True))}
    weights = folder / "model.safetensors"
    if kind in ("Dense", "LayerNorm") and not weights.is_file():
        raise ModelError(
            f"{name}: the module in {folder} has no model.safetensors; save the model anew with safetensors weights"
        )
    return SentenceModule(kind, config, weights if kind in ("Dense", "LayerNorm") else None)


def _read(name: str, file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{name}: {file} is not readable JSON: {error}") from None
