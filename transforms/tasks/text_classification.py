"""Turns logits into label columns: activation, choice of labels, thresholds. Uses only NumPy and Arrow.

The formulas are those of transformers' text-classification pipeline: softmax over the labels if a row has one label,
a sigmoid for each label if a row may have several or the model has only one, identity for regression. An entry may say
another one (`function_to_apply`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.head import Head, count_texts, mean_of_windows, provenance_fields
from tagstream.transforms.tasks.model import Model
from tagstream.transforms.tasks.parts import split_parts
from tagstream.transforms.tokenization.encoded import Encoded
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

Array = np.ndarray

ARCHITECTURE = "ForSequenceClassification"
"""See `tasks.contracts.TaskModule`."""
KIND = "sequence classifier"
"""See `tasks.contracts.TaskModule`."""
SETTINGS = {"text", "labels", "thresholds", "abstain", "scores", "function_to_apply"}
"""See `tasks.contracts.TaskModule`."""
PAIRS = True
"""See `tasks.contracts.TaskModule`."""
ACTIVATIONS = {"softmax": "softmax", "sigmoid": "sigmoid", "none": "identity"}
"""What an entry's `function_to_apply` means."""


@dataclass(frozen=True)
class LabelHead(Head):
    """The meaning of one entry's logits, and the columns that they become.

    `names`: the labels, one for each logit. `activation`: softmax, sigmoid or identity. `model`: the model's name.
    `several`: whether a row has a list of labels.
    """

    entry: InferEntry
    names: tuple[str, ...]
    activation: str
    model: str
    several: bool

    @classmethod
    def of(cls, entry: InferEntry, names: list[str], activation: str, model: str, *, multi_label: bool = False) -> Self:
        """A head with the label names that the specification maps the model's to.

        `activation`: the model's; the entry may say another. `multi_label`: whether the model says that a row may have
        several labels. Raises SpecError for a label that the model does not have, for two labels with the same name,
        and for settings without effect.
        """
        activation = ACTIVATIONS.get(entry.function_to_apply or "", activation)
        _refuse_without_effect(entry, activation, names)
        renamed = entry.labels
        unknown = sorted(set(renamed) - set(names))
        if unknown:
            raise SpecError(f"{entry.as_}: labels: the model has no {unknown[0]!r}; it has {', '.join(names)}")
        mapped = tuple(renamed.get(name, name) for name in names)
        unknown = sorted(set(entry.thresholds) - set(mapped))
        if unknown:
            raise SpecError(f"{entry.as_}: thresholds: no label {unknown[0]!r}; there are {', '.join(mapped)}")
        if len(set(mapped)) < len(mapped):
            raise SpecError(f"{entry.as_}: labels: two labels of the model would have the same name")
        several = activation == "sigmoid" and (multi_label or len(mapped) > 1)
        return cls(entry, mapped, activation, model, several)

    @property
    def width(self) -> int:
        """One logit for each label."""
        return len(self.names)

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedTokens:
        """A sequence for each text or pair of texts, or one for each window."""
        return tokenizer.encode(texts) if self.entry.pair is None else tokenizer.encode_pairs(*split_parts(texts))

    @property
    def shared(self) -> str:
        """Pairs make other sequences than single texts."""
        return "pair" if self.entry.pair else ""

    def merge(self, encoded: Encoded, outputs: Array) -> Array:
        """Scores, float32 [texts, labels]: the mean logits of a text's windows, after the activation."""
        return activate(mean_of_windows(encoded, outputs), self.activation)

    @property
    def identity(self) -> dict[str, Any]:
        """Names of the labels, and what makes scores of logits."""
        pair = {} if self.entry.pair is None else {"pair": list(self.entry.pair)}
        return {"names": list(self.names), "activation": self.activation, **pair}

    @property
    def certified(self) -> str:
        """Nothing: a certificate names the settings of this task one by one."""
        return ""

    def agree(self, values: Array, reference: Array) -> Array:
        """Bool [rows]: whether each row has the same label as in `reference`.

        With softmax, the best label must be the same, where a best label below its threshold counts as no label; with
        sigmoid, the set of labels. For regression, values must differ by at most 1 % of the reference's standard
        deviation.
        """
        usual = 0.5 if self.activation == "sigmoid" else 0.0
        least = np.array([self.entry.thresholds.get(label, usual) for label in self.names], np.float32)
        if self.activation == "softmax":
            labels = [
                np.where(s.max(axis=1) < least[s.argmax(axis=1)], -1, s.argmax(axis=1)) for s in (values, reference)
            ]
            return np.asarray(labels[0] == labels[1])
        if self.activation == "sigmoid":
            return np.asarray(((values >= least) == (reference >= least)).all(axis=1))
        return np.asarray((np.abs(values - reference) <= 0.01 * reference.std(axis=0)).all(axis=1))

    def drift(self, values: Array, reference: Array) -> Array:
        """The largest difference between scores of a row."""
        return np.asarray(np.abs(values - reference).max(axis=1))

    def tally(self, column: pa.Array) -> Counter[str]:
        """How often each label was given; nothing for values of a regression."""
        return count_texts(column.flatten() if pa.types.is_list(column.type) else column)

    @property
    def fields(self) -> list[pa.Field]:
        """The columns that this entry writes, in order."""
        name, spec = self.entry.as_, self.entry
        scores = pa.struct([pa.field(label, pa.float32()) for label in self.names])
        if self.activation == "identity":
            label = [pa.field(name, pa.float32() if len(self.names) == 1 else scores)]
        elif self.several:
            label = [pa.field(name, pa.list_(pa.string()))]
            if spec.scores != "none":
                label.append(pa.field(f"{name}_score", pa.list_(pa.float32())))
        else:
            label = [pa.field(name, pa.string())]
            if spec.scores != "none":
                label.append(pa.field(f"{name}_score", pa.float32()))
        if spec.scores == "all":
            label.append(pa.field(f"{name}_scores", scores))
        return label + provenance_fields(spec)

    def answers(self, values: Array) -> list[pa.Array]:
        """Label, score and scores, as the entry asks for. `values`: float32 [rows, labels], after the activation."""
        scores, spec = values, self.entry
        every = pa.StructArray.from_arrays(
            [pa.array(scores[:, i]) for i in range(len(self.names))],
            fields=[pa.field(label, pa.float32()) for label in self.names],
        )
        if self.activation == "identity":
            arrays = [pa.array(scores[:, 0]) if len(self.names) == 1 else every]
        elif self.several:
            arrays = self._several(scores)
        else:
            arrays = self._one(scores)
        return [*arrays, every] if spec.scores == "all" else arrays

    def _one(self, scores: Array) -> list[pa.Array]:
        best = scores.argmax(axis=1).astype(np.int32)
        top = scores[np.arange(len(scores)), best]
        names: list[str | None] = list(self.names)
        if self.entry.thresholds:
            least = np.array([self.entry.thresholds.get(label, 0.0) for label in self.names], np.float32)
            names.append(self.entry.abstain)
            best = np.where(top < least[best], len(self.names), best).astype(np.int32)
        label = pa.array(names, pa.string()).take(pa.array(best))
        return [label] if self.entry.scores == "none" else [label, pa.array(top)]

    def _several(self, scores: Array) -> list[pa.Array]:
        least = np.array([self.entry.thresholds.get(label, 0.5) for label in self.names], np.float32)
        chosen = scores >= least
        values = np.broadcast_to(np.arange(len(self.names)), scores.shape)
        names: list[str | None] = list(self.names)
        taken, taken_scores = values[chosen], scores[chosen]
        counts = chosen.sum(axis=1)
        if self.entry.abstain is not None:
            nothing = np.flatnonzero(counts == 0)
            at = np.concatenate([[0], np.cumsum(counts)])[nothing]
            names.append(self.entry.abstain)
            taken = np.insert(taken, at, len(self.names))
            taken_scores = np.insert(taken_scores, at, scores[nothing].max(axis=1, initial=0.0))
            counts = np.maximum(counts, 1)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        label = pa.ListArray.from_arrays(offsets, pa.array(names, pa.string()).take(pa.array(taken)))
        if self.entry.scores == "none":
            return [label]
        return [label, pa.ListArray.from_arrays(offsets, pa.array(taken_scores.astype(np.float32)))]


def _refuse_without_effect(entry: InferEntry, activation: str, names: list[str]) -> None:
    """Raises SpecError for a setting that would change nothing."""
    if entry.function_to_apply == "softmax" and len(names) == 1:
        raise SpecError(f"{entry.as_}: function_to_apply: softmax of a single value is always 1; write sigmoid or none")
    if activation != "identity":
        return
    given = {"thresholds": entry.thresholds, "scores: all": entry.scores == "all", "abstain": entry.abstain is not None}
    for what in (name for name, is_given in given.items() if is_given):
        raise SpecError(
            f"{entry.as_}: {what}: has no effect, because the model's values are written as they are (regression, or "
            "function_to_apply: none); remove it"
        )


def activate(logits: Array, activation: str) -> Array:
    """Scores, float32 of the same shape: softmax along labels, sigmoid, or the logits themselves."""
    logits = np.asarray(logits, np.float32)
    if activation == "softmax":
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)
    if activation == "sigmoid":
        with np.errstate(over="ignore"):  # exp may overflow to inf, and 1 / (1 + inf) is 0 as it should be
            return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)
    return logits


def head(entry: InferEntry, model: Model) -> LabelHead:
    """See `tasks.contracts.TaskModule`."""
    multi_label = model.config.get("problem_type") == "multi_label_classification"
    return LabelHead.of(entry, model.labels, model.activation, model.name, multi_label=multi_label)
