"""Vectors of texts, by an encoder or by a sentence-transformers folder, equal to what that library's `encode` gives.

A folder of sentence-transformers says itself how token vectors become one vector: pooling, dense layers, normalisation,
prompts. For a plain encoder the entry may say it; the default is the mean over tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.head import Head, mean_of_windows, provenance_fields, put_before
from tagstream.transforms.tasks.model import Model
from tagstream.transforms.tokenization.encoded import Encoded
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

Array = np.ndarray

ARCHITECTURE = "Model"
"""See `tasks.contracts.TaskModule`."""
KIND = "text encoder"
"""See `tasks.contracts.TaskModule`."""
SETTINGS = {"text", "pooling", "normalize", "prompt", "prompt_name", "truncate_dim", "vector_dtype"}
"""See `tasks.contracts.TaskModule`."""
COSINE = 0.999
"""Vectors whose cosine is at least this count as the same, for certificates."""
_OTHERS = ("LMHeadModel", "DoubleHeadsModel", "MTModel")
"""Ends of classes that are called a model and have a head."""


Step = tuple[str, dict[str, Any], Path | None]


@dataclass(frozen=True)
class VectorHead(Head):
    """One vector for each text. `steps`: the modules after the model, each its kind, settings and file of weights."""

    entry: InferEntry
    model: str
    steps: tuple[Step, ...]
    size: int
    """Values of a vector before `truncate_dim`."""
    before: str
    """The prompt, which is put before each text."""
    sentence: Any
    auto_class: ClassVar[str] = "AutoModel"

    @property
    def width(self) -> int:
        """See `Head`."""
        return self.size

    @property
    def vector_width(self) -> int:
        """See `Head`."""
        return min(self.size, self.entry.truncate_dim or self.size)

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedTokens:
        """A sequence for each text, with the prompt before it, or one for each window."""
        return tokenizer.encode(put_before(self.before, texts))

    def module(self, model: Any, tokenizer: TextTokenizer) -> Any:
        """The model and the modules after it."""
        from tagstream.transforms.tasks.outputs import SentenceVectors

        return SentenceVectors(model, self.steps)

    def merge(self, encoded: Encoded, outputs: Array) -> Array:
        """Vectors, float32 [texts, dimensions]: the mean over a text's windows, normalised again if it was before."""
        means = mean_of_windows(encoded, outputs)
        vectors = np.asarray(means, np.float32)
        if self.steps[-1][0] == "Normalize" and means is not outputs:
            vectors = _unit(vectors)
        vectors = vectors[:, : self.vector_width]
        return _unit(vectors) if self.entry.normalize else vectors

    @property
    def fields(self) -> list[pa.Field]:
        """The vector, a list of fixed size, and the provenance."""
        kind = pa.list_(pa.field("item", self._dtype), self.vector_width)
        return [pa.field(self.entry.as_, kind), *provenance_fields(self.entry)]

    @property
    def _dtype(self) -> pa.DataType:
        return pa.float16() if self.entry.vector_dtype == "float16" else pa.float32()

    def answers(self, values: Array) -> list[pa.Array]:
        """The vectors. `values`: float32 [rows, dimensions]."""
        flat = np.ascontiguousarray(values, np.float16 if self.entry.vector_dtype == "float16" else np.float32)
        return [pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), type=self.fields[0].type)]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides a vector beside the weights."""
        return {**self._engine, "vector_dtype": self.entry.vector_dtype}

    @property
    def _engine(self) -> dict[str, Any]:
        sentence = {"max_length": self.sentence.max_length, "lower": self.sentence.lower} if self.sentence else {}
        return {
            "modules": [[kind, settings] for kind, settings, _ in self.steps],
            "prompt": self.before,
            "truncate_dim": self.entry.truncate_dim,
            "normalize": self.entry.normalize,
            **({"sentence": sentence} if sentence else {}),
        }

    @property
    def shared(self) -> str:
        """See `Head`."""
        return json.dumps(self._engine, sort_keys=True)

    @property
    def export_name(self) -> str:
        """See `Head`."""
        parts = [kind + "".join(settings.get("modes", ())) for kind, settings, _ in self.steps]
        return "-".join(["vectors", *parts]).lower()

    def agree(self, values: Array, reference: Array) -> Array:
        """Bool [texts]: whether the cosine of each vector with the reference's is at least `COSINE`."""
        return np.asarray((_unit(values) * _unit(reference)).sum(axis=1) >= COSINE)

    def drift(self, values: Array, reference: Array) -> Array:
        """1 - cosine."""
        return np.asarray(1 - (_unit(values) * _unit(reference)).sum(axis=1))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def takes(model: Model, *, named: bool) -> bool:
    """Whether it is an encoder. Any model of one stack is, if the entry names this task."""
    if model.sentence is not None:
        return True
    names = model.architectures or []
    if model.config.get("is_encoder_decoder"):
        return False
    return named or any(name.endswith(ARCHITECTURE) and not name.endswith(_OTHERS) for name in names)


def head(entry: InferEntry, model: Model) -> VectorHead:
    """See `tasks.contracts.TaskModule`."""
    sentence = model.sentence
    if sentence is not None and sentence.modules:
        if entry.pooling is not None:
            raise SpecError(f"{entry.as_}: pooling: the model's folder says how it pools (modules.json); remove it")
        steps: tuple[Step, ...] = tuple((module.kind, module.config, module.weights) for module in sentence.modules)
    else:
        steps = (("Pooling", {"modes": [entry.pooling or "mean"], "prompt": True}, None),)
    said = (model.config.get(name) for name in ("hidden_size", "dim", "d_model"))  # `setting` may import PyTorch
    size = _size(int(next(filter(None, said), None) or model.setting("hidden_size") or 0), steps)
    if entry.truncate_dim is not None and entry.truncate_dim > size:
        raise SpecError(f"{entry.as_}: truncate_dim: the model's vectors have {size} values only")
    before = _prompt(entry, model)
    if before and not all(settings["prompt"] for kind, settings, _ in steps if kind == "Pooling"):
        raise SpecError(f"{entry.as_}: prompt: this model leaves the prompt out of the mean, which is not done here")
    return VectorHead(entry, model.name, steps, size, before, sentence)


def _size(hidden: int, steps: tuple[Step, ...]) -> int:
    for kind, settings, _ in steps:
        if kind == "Pooling":
            hidden *= len(settings["modes"])
        elif kind == "Dense":
            hidden = int(settings["out_features"])
    return hidden


def _prompt(entry: InferEntry, model: Model) -> str:
    """What is put before each text, as sentence-transformers decides it."""
    if entry.prompt is not None and entry.prompt_name is not None:
        raise SpecError(f"{entry.as_}: prompt and prompt_name are both given; give one")
    if entry.prompt is not None:
        return entry.prompt
    prompts = model.sentence.prompts if model.sentence is not None else {}
    name = entry.prompt_name or (model.sentence.default_prompt if model.sentence is not None else None)
    if name is None:
        return ""
    if name not in prompts:
        there = ", ".join(prompts) or "none"
        raise SpecError(f"{entry.as_}: prompt_name: the model has no prompt {name!r}; there are: {there}")
    return str(prompts[name])
