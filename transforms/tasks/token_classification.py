"""Named entities and other spans of a text, by a token classifier. Equal to transformers' pipeline of that name.

Tokens become spans as that pipeline makes them (`TokenClassificationPipeline.aggregate`, transformers 5), for all texts
of a block at once. Spans count the characters (code points) of the text as it came, whatever the tokenizer's normaliser
makes of it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.head import Head, Output, count_texts, provenance_fields
from tagstream.transforms.tasks.model import Model
from tagstream.transforms.tasks.text_classification import activate
from tagstream.transforms.tokenization.encoded import Encoded, runs
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

Array = np.ndarray

ARCHITECTURE = "ForTokenClassification"
"""See `tasks.contracts.TaskModule`."""
KIND = "token classifier"
"""See `tasks.contracts.TaskModule`."""
SETTINGS = {"text", "labels", "thresholds", "aggregation_strategy", "redact"}
"""See `tasks.contracts.TaskModule`."""
OUTSIDE = "O"
"""Label of tokens that belong to no span."""
_SPAN = pa.struct(
    [
        pa.field("label", pa.int32()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("score", pa.float32()),
    ]
)
"""A span of an answer. `label`: its index among `SpanHead.tags`."""
_ANSWER = pa.struct([pa.field("spans", pa.list_(_SPAN)), pa.field("text", pa.large_string())])


@dataclass
class EncodedWords(EncodedTokens):
    """`begins`: bool [tokens], whether a token begins a word. `overlap`: tokens that windows of a text share."""

    begins: Array = None  # type: ignore[assignment]
    overlap: int = 0


@dataclass(frozen=True)
class SpanHead(Head):
    """The spans of each text. `labels`: names of the logits."""

    entry: InferEntry
    model: str
    labels: tuple[str, ...]
    auto_class: ClassVar[str] = "AutoModelForTokenClassification"
    output: ClassVar[Output] = "tokens"

    @property
    def width(self) -> int:
        """See `Head`."""
        return len(self.labels)

    @property
    def long_text(self) -> str:
        """Windows where a text is redacted: what the model has not read can't be left as it is."""
        return self.entry.long_text or ("window" if self.entry.redact else "truncate")

    @property
    def copies_text(self) -> bool:
        """Spans hold their words, unless they are redacted."""
        return self.entry.redact is None

    @property
    def strategy(self) -> str:
        """How tokens become spans."""
        return self.entry.aggregation_strategy or "simple"

    @property
    def tags(self) -> list[str]:
        """Labels of spans: those of the model or, of grouped tokens, without B- and I- before them."""
        if self.strategy == "none":
            return list(self.labels)
        return list(dict.fromkeys(label.split("-", 1)[-1] for label in self.labels))

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedWords:
        """See `Head`."""
        encoded = tokenizer.encode(texts, places=True)
        return EncodedWords(**vars(encoded), begins=_begins(tokenizer, encoded), overlap=tokenizer.overlap)

    def merge(self, encoded: Encoded, outputs: Array) -> pa.Array:
        """Spans and the text of each text: an array of `_ANSWER`."""
        words = cast("EncodedWords", encoded)
        assert words.places is not None
        mine = _of_the_text(words)
        text = np.repeat(words.text, words.lengths)[mine]
        start, stop = words.places.start[mine], words.places.stop[mine]
        scores = activate(outputs[mine], "softmax")
        if self.strategy in ("first", "average", "max"):
            first, last = runs(words.begins[mine], text)
            text, start, stop = text[first], start[first], stop[last]
            scores = _of_words(scores, first, last, self.strategy)
        best = scores.argmax(axis=1) if len(scores) else np.empty(0, np.int64)
        top = scores[np.arange(len(best)), best]
        if self.strategy != "none":
            kinds = [_kind(label) for label in self.labels]
            names = list(dict.fromkeys(name for _, name in kinds))
            tag = np.array([names.index(name) for _, name in kinds])[best]
            begins = np.array([prefix == "B" for prefix, _ in kinds])[best]
            begins[1:] |= tag[1:] != tag[:-1]
            first, last = runs(begins, text)
            counts = last - first + 1
            top = np.add.reduceat(top, first) / counts if len(first) else top
            text, start, stop, best = text[first], start[first], stop[last], best[first]
        tags = self.tags
        index = np.array(
            [tags.index(label if self.strategy == "none" else label.split("-", 1)[-1]) for label in self.labels]
        )
        label = index[best]
        keep = label != (tags.index(OUTSIDE) if OUTSIDE in tags else -1)
        counts = np.bincount(text[keep], minlength=len(words.tokens))
        spans = pa.StructArray.from_arrays(
            [
                pa.array(label[keep], pa.int32()),
                pa.array(start[keep], pa.int32()),
                pa.array(stop[keep], pa.int32()),
                pa.array(top[keep], pa.float32()),
            ],
            fields=list(_SPAN),
        )
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        lists = pa.ListArray.from_arrays(offsets, spans)
        return pa.StructArray.from_arrays(
            [lists, pa.array(words.places.texts, pa.large_string())], fields=list(_ANSWER)
        )

    @property
    def fields(self) -> list[pa.Field]:
        """The spans, the redacted text if asked for, and the provenance."""
        name = self.entry.as_
        span = [pa.field("label", pa.string()), *(_SPAN.field(n) for n in ("start", "end", "score"))]
        if self.entry.redact is None:
            return [
                pa.field(name, pa.list_(pa.struct([*span, pa.field("text", pa.string())]))),
                *provenance_fields(self.entry),
            ]
        spans = pa.field(name, pa.list_(pa.struct(span)))
        return [spans, pa.field(f"{name}_text", pa.large_string()), *provenance_fields(self.entry)]

    def answers(self, values: pa.Array) -> list[pa.Array]:
        """Spans whose score is at least the threshold of their label. `values`: what `merge` gives."""
        lists, texts = values.flatten()
        spans = lists.flatten()
        fields = dict(zip(("label", "start", "end", "score"), spans.flatten(), strict=True))
        owner = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
        named = [self.entry.labels.get(tag, tag) for tag in self.tags]
        label, score = fields["label"].to_numpy(), fields["score"].to_numpy()
        least = np.array([self.entry.thresholds.get(name, 0.0) for name in named], np.float32)
        keep = score >= least[label]
        label, score, owner = label[keep], score[keep], owner[keep]
        start, stop = (fields[name].to_numpy()[keep] for name in ("start", "end"))
        arrays = [pa.array(named, pa.string()).take(pa.array(label)), pa.array(start), pa.array(stop), pa.array(score)]
        found = zip(owner.tolist(), start.tolist(), stop.tolist(), strict=True)
        others = []
        if self.entry.redact is None:
            held = texts.to_pylist()
            arrays.append(pa.array([held[row][a:b] for row, a, b in found], pa.string()))
        else:
            others.append(self._redacted(texts.to_pylist(), list(found), [named[at] for at in label.tolist()]))
        offsets = pa.array(np.searchsorted(owner, np.arange(len(lists) + 1)), pa.int32())
        kind = self.fields[0].type
        return [
            pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(arrays, fields=list(kind.value_type))),
            *others,
        ]

    def _redacted(self, texts: list[str], spans: list[tuple[int, int, int]], labels: list[str]) -> pa.Array:
        """The texts with spans replaced. Spaces at the ends of a span stay."""
        redact = self.entry.redact
        assert redact is not None
        parts: dict[int, list[str]] = {}
        ends: dict[int, int] = {}
        for (row, start, stop), label in zip(spans, labels, strict=True):
            if label in redact.keep:
                continue
            text, at = texts[row], ends.get(row, 0)
            span = text[start:stop]
            first = max(at, start + len(span) - len(span.lstrip()))
            end = stop - len(span) + len(span.rstrip())
            if first >= end:
                continue
            parts.setdefault(row, []).extend([text[at:first], redact.with_.replace("{label}", label)])
            ends[row] = end
        return pa.array(
            ["".join(parts[row]) + text[ends[row] :] if row in parts else text for row, text in enumerate(texts)],
            pa.large_string(),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Labels, how tokens become spans, and what is redacted."""
        redact = self.entry.redact
        return {
            "names": list(self.labels),
            "aggregation_strategy": self.strategy,
            **({"redact": redact.model_dump(mode="json", by_alias=True)} if redact else {}),
        }

    @property
    def shared(self) -> str:
        """See `Head`."""
        return json.dumps([self.strategy])

    def agree(self, values: pa.Array, reference: pa.Array) -> Array:
        """Bool [texts]: whether the spans are the same, with the same labels."""
        pairs = zip(_plain(values), _plain(reference), strict=True)
        return np.array([[s[:3] for s in ours] == [s[:3] for s in theirs] for ours, theirs in pairs], bool)

    def drift(self, values: pa.Array, reference: pa.Array) -> Array:
        """The largest difference between scores of a text's spans; 1 where the spans differ."""
        found = []
        for ours, theirs in zip(_plain(values), _plain(reference), strict=True):
            same = [s[:3] for s in ours] == [s[:3] for s in theirs]
            pairs = zip(ours, theirs, strict=False)
            found.append(max((abs(a[3] - b[3]) for a, b in pairs), default=0.0) if same else 1.0)
        return np.array(found)

    def tally(self, column: pa.Array) -> Counter[str]:
        """How many spans of each label there are."""
        return count_texts(pc.struct_field(column.flatten(), "label"))


def _plain(values: pa.Array) -> list[list[tuple[int, int, int, float]]]:
    """The spans of each text as tuples; none for a text without an answer."""
    lists = values.flatten()[0].to_pylist()
    return [[(s["label"], s["start"], s["end"], s["score"]) for s in spans or ()] for spans in lists]


def _kind(label: str) -> tuple[str, str]:
    """Prefix and name as `TokenClassificationPipeline.get_tag` gives them."""
    return (label[0], label[2:]) if label.startswith(("B-", "I-")) else ("I", label)


def _of_words(scores: Array, first: Array, last: Array, strategy: str) -> Array:
    """One vector of scores for each word, [words, labels], of those of its tokens."""
    if not len(first) or strategy == "first":
        return np.asarray(scores[first])
    if strategy == "average":
        return np.asarray(np.add.reduceat(scores, first) / (last - first + 1)[:, None], np.float32)
    top = scores.max(axis=1)
    word = np.repeat(np.arange(len(first)), last - first + 1)
    winners = np.flatnonzero(top == np.maximum.reduceat(top, first)[word])
    return np.asarray(scores[winners[np.unique(word[winners], return_index=True)[1]]])


def _of_the_text(words: EncodedWords) -> Array:
    """Bool [tokens]: tokens of the text, each once. Of tokens that two windows share, each window gives one half."""
    assert words.places is not None
    mine = np.asarray(words.places.part == 0)
    follows = np.append([False], words.text[1:] == words.text[:-1]) if len(words.text) else np.empty(0, bool)
    if not words.overlap or not follows.any():
        return mine
    bounds = words.starts + words.lengths
    half = words.overlap // 2
    for sequence in np.flatnonzero(follows):
        begin, end = bounds[sequence - 1], bounds[sequence]
        mine[begin + np.flatnonzero(mine[begin:end])[: words.overlap - half]] = False
        before = bounds[sequence - 2] if sequence > 1 else 0
        real = np.flatnonzero(words.places.part[before:begin] == 0)
        mine[before + real[len(real) - half :]] = False
    return mine


def _begins(tokenizer: TextTokenizer, encoded: EncodedTokens) -> Array:
    """Bool [tokens]: whether a token begins a word, by the rules of `TokenClassificationPipeline`."""
    places = encoded.places
    assert places is not None
    if getattr(tokenizer.rust.model, "continuing_subword_prefix", None):
        inside = tokenizer.piece_lengths[encoded.ids] != places.stop - places.start
    else:  # a piece does not say whether it begins a word: a word begins after a space, or with one
        letters = np.frombuffer("".join(places.texts).encode("utf-32-le"), np.uint32)
        spaces = np.append(letters == ord(" "), [False])
        lengths = np.fromiter(map(len, places.texts), np.int64, len(places.texts))
        at = np.repeat((np.cumsum(lengths) - lengths)[encoded.text], encoded.lengths) + places.start
        ends = np.repeat(lengths[encoded.text], encoded.lengths)
        inside = (places.start > 0) & ~spaces[at - 1] & ~(spaces[at] & (places.start < ends))
    if tokenizer.unknown_id is not None:
        inside &= encoded.ids != tokenizer.unknown_id
    return np.asarray(~inside)


def head(entry: InferEntry, model: Model) -> SpanHead:
    """See `tasks.contracts.TaskModule`."""
    if entry.redact is not None and entry.aggregation_strategy == "none":
        raise SpecError(f"{entry.as_}: redact: needs whole spans; choose another aggregation_strategy than none")
    if entry.redact is not None and entry.long_text == "truncate":
        raise SpecError(
            f"{entry.as_}: redact: long_text: truncate would leave the end of a long text as it is; write window or "
            "dead_letter"
        )
    found = SpanHead(entry, model.name, tuple(model.labels))
    tags = [tag for tag in found.tags if tag != OUTSIDE]
    if unknown := sorted(set(entry.labels) - set(tags)):
        raise SpecError(f"{entry.as_}: labels: the model has no {unknown[0]!r}; it has {', '.join(tags)}")
    named = [entry.labels.get(tag, tag) for tag in tags]
    kept = entry.redact.keep if entry.redact else ()
    for what, names in (("thresholds", entry.thresholds), ("redact.keep", kept)):
        if unknown := sorted(set(names) - set(named)):
            raise SpecError(f"{entry.as_}: {what}: no label {unknown[0]!r}; there are {', '.join(named)}")
    return found
