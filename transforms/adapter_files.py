"""Reads the folder of a LoRA adapter: which model it changes, and which labels its head has. Loads no weights.

peft saves an adapter as `adapter_config.json` and `adapter_model.safetensors`. The weights of the model itself are not
in that folder; the configuration names where they are.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagstream.schemas.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Stands before the model's own names in an adapter's weights."""
_HEADS = ("classifier.weight", "score.weight", "classifier.out_proj.weight", "logits_proj.weight")
"""The last layer of a classification head, as transformers' models call it."""


@dataclass(frozen=True)
class Adapter:
    """`base`: folder, Hugging Face id or bundled name of the model that the adapter changes, and its `revision`.

    `config`: what the adapter's own config.json says, if it has one. `labels`: rows of the head that it brings along;
    None if the model keeps its own head.
    """

    base: str
    revision: str | None
    config: dict[str, Any]
    labels: int | None

    def applied(self, base: dict[str, Any]) -> dict[str, Any]:
        """The config of the merged classifier. `base`: the config of the model that is changed."""
        config = {**base, **self.config}
        names = config.get("id2label") or {str(number): f"LABEL_{number}" for number in range(2)}
        if self.labels is not None:
            config["architectures"] = ["AutoModelForSequenceClassification"]
            if len(names) != self.labels:  # the labels' names are in no file
                names = {str(number): f"LABEL_{number}" for number in range(self.labels)}
        return {**config, "id2label": names, "label2id": {name: int(number) for number, name in names.items()}}


def read_adapter(name: str, path: Path) -> Adapter | None:
    """The adapter in a folder; None if it holds none. Raises ModelError for one that can't be used here."""
    if not (path / CONFIG).is_file():
        return None
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        own = path / "config.json"
        model_config = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
        base, kind, task = config["base_model_name_or_path"], config["peft_type"], config.get("task_type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{name}: {path / CONFIG} can't be read: {error!r}") from None
    if kind != "LORA":
        raise ModelError(f"{name}: an adapter of the kind {kind}; only LoRA adapters can be merged into their model")
    if task not in (None, "SEQ_CLS"):
        raise ModelError(f"{name}: an adapter for {task}, not for sequence classification (SEQ_CLS)")
    if not base:
        raise ModelError(f"{name}: {path / CONFIG} does not name the adapter's model (base_model_name_or_path)")
    if importlib.util.find_spec("peft") is None:
        raise ModelError(
            f"{name}: an adapter of {base}, not a model of its own; install peft (pip install 'tagstream[peft]'), or "
            f"merge it first:\n"
            f'  model = peft.AutoPeftModelForSequenceClassification.from_pretrained("{name}")\n'
            f'  model.merge_and_unload().save_pretrained("MERGED")  # and save its tokenizer to the same folder'
        )
    shapes = _shapes(name, path / WEIGHTS)
    heads = [shape[0] for key, shape in shapes.items() if key.endswith(_HEADS)]
    return Adapter(str(base), config.get("revision"), model_config, heads[0] if heads else None)


def _shapes(name: str, path: Path) -> dict[str, list[int]]:
    """The shape of each tensor of a safetensors file, by name. Reads the file's header only."""
    if not path.is_file():
        pickled = " (a pickle, adapter_model.bin, is never loaded)" if path.with_suffix(".bin").exists() else ""
        raise ModelError(f"{name}: an adapter without {WEIGHTS}{pickled}; save it again with peft")
    try:
        with path.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return {key: value["shape"] for key, value in header.items() if key != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise ModelError(f"{name}: {path} can't be read: {error!r}") from None
