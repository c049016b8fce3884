"""Finds a model's files and checks that they are safe and suitable, without loading any weights.

Owns names, folders, configs and hashes. Does not use PyTorch, so that `plan` stays fast.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tagstream.models import PREFIX, bundled
from tagstream.schemas.errors import ModelError
from tagstream.transforms.adapter_files import CONFIG as ADAPTER_CONFIG
from tagstream.transforms.adapter_files import read_adapter
from tagstream.transforms.model_download import PICKLES, cached, download, missing_weights
from tagstream.transforms.sentence_files import SentenceFiles, read_sentence_files

_NOISE = {"transformers_version", "_name_or_path", "dtype", "torch_dtype"}
"""Settings of a config that decide nothing here."""
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "spm.model")


@dataclass(frozen=True)
class ModelFiles:
    """A checked model folder. `name`: the model's name in the specification. `config`: the content of config.json.

    `adapter`: the folder of a LoRA adapter that is merged into the model; `config` is then that of the merged model.
    `notice`: what the user should know of the choice of the folder, if anything. `sentence`: what a folder of
    sentence-transformers says beside the model, whose folder `path` then is; None for another folder.
    """

    name: str
    path: Path
    config: dict[str, Any]
    adapter: Path | None = None
    notice: str = ""
    sentence: SentenceFiles | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder that holds the tokenizer."""
        return self.adapter if self.adapter and _has_tokenizer(self.adapter) else self.path

    def setting(self, name: str) -> Any:
        """A setting of the config's part for text: as config.json says, or else as the model's class has it."""
        if name in self.config and "text_config" not in self.config:
            return self.config[name]
        from transformers import AutoConfig  # imports PyTorch where it is installed, which takes seconds

        try:
            return getattr(AutoConfig.for_model(**self.config).get_text_config(), name, None)
        except Exception:  # noqa: BLE001  whatever is wrong is said when the model is loaded
            return self.config.get(name)

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
        if problem == "regression":
            return "identity"
        return "sigmoid" if problem == "multi_label_classification" or len(self.labels) == 1 else "softmax"

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text, as transformers' `generate` takes them."""
        generation = _json(self.path / "generation_config.json")
        said = generation.get("eos_token_id", self.config.get("eos_token_id"))
        return tuple(said) if isinstance(said, list) else () if said is None else (int(said),)

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer's folder says how a conversation looks."""
        file = self.tokenizer / "chat_template.jinja"
        return file.is_file() or "chat_template" in _json(self.tokenizer / "tokenizer_config.json")

    def weights_hash(self) -> str:
        """SHA-256 over the safetensors files, those of an adapter and its configuration included."""
        others = [found for found in self.sentence.files if found.parent != self.path] if self.sentence else []
        weights = _hash_files(self.path, ("*.safetensors",), others)
        if self.adapter is None:
            return weights
        adapter = _hash_files(self.adapter, ("*.safetensors", ADAPTER_CONFIG))
        return hashlib.sha256(f"{weights} {adapter}".encode()).hexdigest()[:16]

    def tokenizer_hash(self) -> str:
        """SHA-256 over the tokenizer's files."""
        return _hash_files(self.tokenizer, ("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "*.model"))

    def settings_hash(self) -> str:
        """SHA-256 over what decides answers beside weights and tokenizer: config, generation config, chat template."""
        config = {key: self.config[key] for key in sorted(self.config) if key not in _NOISE}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        for file in sorted([self.path / "generation_config.json", *self.tokenizer.glob("chat_template*")]):
            if file.is_file():
                digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()[:16]

    def cache_folder(self) -> Path:
        """Folder for files made from this model, below $TAGSTREAM_CACHE or ~/.cache/tagstream, named by its hashes."""
        root = Path(os.environ.get("TAGSTREAM_CACHE") or "~/.cache/tagstream").expanduser()
        return root / f"{self.weights_hash()}-{self.tokenizer_hash()}"


def find_model(name: str, revision: str | None = None) -> ModelFiles:
    """The checked files of a model. `name`: a bundled name, a local folder or a Hugging Face id.

    Only a Hugging Face id that is not in the local cache is downloaded. Looked up at each call, because a process that
    lasts (a notebook) changes its folder and writes models anew. Raises ModelError.
    """
    path, notice = _find_folder(name, revision)
    if adapter := read_adapter(name, path):
        try:
            base = find_model(adapter.base, adapter.revision)
        except ModelError as error:
            raise ModelError(f"{name}: an adapter whose model is missing: {error}") from None
        if base.adapter:
            raise ModelError(f"{name}: an adapter of {adapter.base}, which is an adapter itself; merge that one first")
        config = adapter.applied(base.config)
        _check_code(name, config)
        _check_labels(name, config.get("id2label"))
        return ModelFiles(name, base.path, config, path, notice)
    sentence = read_sentence_files(name, path)
    if sentence is not None:
        path = sentence.model
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
    return ModelFiles(name, path, config, notice=notice, sentence=sentence)


def _find_folder(name: str, revision: str | None) -> tuple[Path, str]:
    """The model's folder, and what the user should know of the choice."""
    local = Path(name).expanduser()
    if name.startswith(PREFIX):
        found = bundled()
        if local.is_dir():
            raise ModelError(
                f"{name}: the name of a bundled model, and there is a folder {local.resolve()}; write ./{name} for the "
                "folder, or rename it to use the bundled one"
            )
        if name not in found:
            raise ModelError(
                f"{name}: no such bundled model. The bundled models are {', '.join(found)} (`tagstream models`)"
            )
        if revision:
            raise ModelError(f"{name}: revision is for a Hugging Face id; a bundled model has none")
        return found[name], ""
    if local.is_dir():
        if revision:
            raise ModelError(
                f"{name}: revision is for a Hugging Face id, but {local.resolve()} is a folder here; leave revision "
                "out to use the folder, or rename the folder"
            )
        return local, _like_an_id(name, local)
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or local.exists():
        raise ModelError(f"{name}: not a folder; give a model folder, a Hugging Face id or a bundled name")
    return download(name, revision), ""


def _like_an_id(name: str, local: Path) -> str:
    """What to say of a folder whose name may be a Hugging Face id as well. Raises ModelError if it is one."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        return ""
    if cached(name, None):
        raise ModelError(
            f"{name}: a folder here ({local.resolve()}) and a model in the local Hugging Face cache; write ./{name} "
            "for the folder, or rename it to use the one from Hugging Face"
        )
    return f"{name}: the folder {local.resolve()}, not a model of that name on Hugging Face; ./{name} says so"


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
    if missing := missing_weights(path):
        raise ModelError(f"{name}: the weights in {path} are incomplete: {missing[0]} is missing; copy the folder anew")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in PICKLES for p in path.glob(pattern))
        raise ModelError(
            f"{name}: no safetensors weights in {path}"
            + (f"; {pickled[0]} is a pickle, which is never loaded" if pickled else "")
            + ". Convert the model once with transformers: load it, and call save_pretrained(FOLDER)"
        )
    if not _has_tokenizer(path):
        raise ModelError(
            f"{name}: no tokenizer in {path} (looked for {', '.join(_TOKENIZER_FILES[:3])}, …). "
            "Save it beside the model: AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER)"
        )


def _json(file: Path) -> dict[str, Any]:
    """The content of a file that need not be there; what is wrong with it is said when the model is loaded."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _has_tokenizer(path: Path) -> bool:
    return any((path / file).is_file() for file in _TOKENIZER_FILES)


def _hash_files(path: Path, patterns: tuple[str, ...], others: Sequence[Path] = ()) -> str:
    files = [*sorted({found for pattern in patterns for found in path.glob(pattern) if found.is_file()}), *others]
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
