"""Labels in words, which no model was trained on: by a model of inference between sentences (NLI), or by vectors.

With an NLI model each text is paired with a sentence for each label, and the label counts whose sentence follows from
the text; scores are those of transformers' pipeline. With an encoder of sentences the vectors of labels and texts are
compared. Both give the same answer to the same text at all times; no text is generated.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks import feature_extraction
from tagstream.transforms.tasks.feature_extraction import VectorHead
from tagstream.transforms.tasks.head import Head, mean_of_windows
from tagstream.transforms.tasks.model import Model
from tagstream.transforms.tasks.several import EncodedSeveral, encode_several, refuse_long
from tagstream.transforms.tasks.text_classification import LabelHead, activate
from tagstream.transforms.tokenization.encoded import Encoded
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

Array = np.ndarray

ARCHITECTURE = "ForSequenceClassification"
"""See `tasks.contracts.TaskModule`."""
KIND = "model of NLI (with a label entailment) or sentence encoder"
"""See `tasks.contracts.TaskModule`."""
SETTINGS = {
    "text", "labels", "template", "multi_label", "thresholds", "abstain", "scores", "pooling", "prompt", "prompt_name",
}  # fmt: skip
"""See `tasks.contracts.TaskModule`."""
TEMPLATE = "This example is {}."
"""The default of transformers' pipeline."""
SCALE = 20.0
"""What cosines are multiplied by before softmax: the scale with which sentence-transformers trains by default."""


@dataclass(frozen=True)
class ZeroShotHead(LabelHead):
    """`names`: the labels. `sentences`: what each is to the model."""

    sentences: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """Labels, and their sentences."""
        return {**super().identity, "sentences": list(self.sentences)}

    @property
    def shared(self) -> str:
        """See `Head`."""
        return json.dumps([self.sentences, self.several])

    @property
    def certified(self) -> str:
        """The identity: a certificate does not name the sentences of the labels."""
        return json.dumps(self.identity, sort_keys=True)


@dataclass(frozen=True)
class EntailmentHead(ZeroShotHead):
    """By an NLI model. `logits`: how many it has. `entailment`, `contradiction`: which ones they are."""

    truncation: ClassVar[str] = "only_first"
    logits: int = 0
    entailment: int = 0
    contradiction: int = 0

    @property
    def width(self) -> int:
        """See `Head`."""
        return self.logits

    @property
    def vector_width(self) -> int:
        """A score for each label."""
        return len(self.names)

    def tokenizer(self, files: Any) -> TextTokenizer:
        """See `Head`. Raises ModelError for a label that leaves no room for a text."""
        found = super().tokenizer(files)
        refuse_long(self.entry.as_, "label", dict(zip(self.names, self.sentences, strict=True)), found)
        return found

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedTokens:
        """A sequence for each label: the text, then the label's sentence."""
        each = len(self.sentences)
        held = [text for text in texts.to_pylist() for _ in self.sentences]
        return encode_several(tokenizer, held, list(self.sentences) * len(texts), each)

    def merge(self, encoded: Encoded, outputs: Array) -> Array:
        """Scores, float32 [texts, labels], of the mean logits of a text's windows."""
        several, labels = cast("EncodedSeveral", encoded), len(self.names)
        pairs = len(several.tokens) * labels
        asked = replace(several, text=several.asked, tokens=np.zeros(pairs, np.int32))
        logits = mean_of_windows(asked, outputs).reshape(-1, labels, self.logits)
        entailment = logits[:, :, self.entailment]
        if self.several:
            return activate(entailment - logits[:, :, self.contradiction], "sigmoid")
        return activate(entailment, "softmax")


@dataclass(frozen=True)
class NearestHead(ZeroShotHead):
    """By vectors: the label whose vector is nearest. `vectors`: what makes them."""

    auto_class: ClassVar[str] = "AutoModel"
    vectors: VectorHead = None  # type: ignore[assignment]

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedTokens:
        """See `Head`."""
        return self.vectors.encode(tokenizer, texts)

    def module(self, model: Any, tokenizer: TextTokenizer) -> Any:
        """The model, and the vectors of the labels."""
        from tagstream.transforms.tasks.outputs import Similarities

        encoded = tokenizer.encode(pa.array(self.sentences, pa.large_string()))
        rows = [tokenizer.inputs([(encoded, np.array([row]))]) for row in range(len(self.sentences))]
        return Similarities(self.vectors.module(model, tokenizer), rows, SCALE)

    @property
    def export_name(self) -> str:
        """See `Head`."""
        digest = hashlib.sha256(json.dumps([*self.sentences, self.vectors.shared]).encode()).hexdigest()[:12]
        return f"nearest-{digest}"

    @property
    def identity(self) -> dict[str, Any]:
        """Labels, their sentences, and what makes vectors."""
        return {**super().identity, "vectors": self.vectors.identity}

    @property
    def shared(self) -> str:
        """See `Head`."""
        return json.dumps([super().shared, self.vectors.shared])


def takes(model: Model, *, named: bool) -> bool:
    """An entry must name this task, because models of two other tasks are used for it."""
    classifier = any(name.endswith(ARCHITECTURE) for name in model.architectures or ())
    return named and (classifier or feature_extraction.takes(model, named=False))


def head(entry: InferEntry, model: Model) -> Head:
    """See `tasks.contracts.TaskModule`."""
    labels = entry.labels
    if len(labels) < 2 - entry.multi_label:
        raise SpecError(
            f"{entry.as_}: labels: give two or more, for example labels: [complaint, praise], or each with a "
            "description: {complaint: a customer who is angry, praise: a customer who is glad}"
        )
    template = TEMPLATE if entry.template is None else entry.template
    if template.count("{}") != 1:
        raise SpecError(f"{entry.as_}: template: must have one {{}}, the place of the label; for example {TEMPLATE!r}")
    sentences = tuple(template.replace("{}", words) for words in labels.values())
    plain = entry.model_copy(update={"labels": {}})
    activation = "sigmoid" if entry.multi_label else "softmax"
    base = LabelHead.of(plain, list(labels), activation, model.name, multi_label=True)
    common: dict[str, Any] = {**vars(base), "entry": entry, "sentences": sentences}
    if not any(name.endswith(ARCHITECTURE) for name in model.architectures or ()):
        return _by_vectors(entry, model, common)
    for name in ("pooling", "prompt", "prompt_name"):
        if getattr(entry, name) is not None:
            raise SpecError(f"{entry.as_}: {name}: has no effect with a model of NLI; remove it")
    found = [number for number, name in enumerate(model.labels) if name.lower().startswith("entail")]
    if len(found) != 1:
        raise SpecError(
            f"{entry.as_}: {model.name} has no label entailment ({', '.join(model.labels)}): zero-shot-classification "
            "needs a model of natural language inference (NLI) or a sentence encoder"
        )
    contradiction = len(model.labels) - 1 if found[0] == 0 else 0
    return EntailmentHead(**common, logits=len(model.labels), entailment=found[0], contradiction=contradiction)


def _by_vectors(entry: InferEntry, model: Model, common: dict[str, Any]) -> NearestHead:
    if entry.multi_label:
        raise SpecError(f"{entry.as_}: multi_label: needs a model of NLI; vectors only say which label is nearest")
    if model.sentence is not None and not model.sentence.modules:
        raise SpecError(f"{entry.as_}: {model.name}: its modules.json lists no pooling")
    return NearestHead(**common, vectors=feature_extraction.head(entry, model))
