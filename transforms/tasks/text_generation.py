"""New texts by a language model: the prompt of each row through the chat template of the model, and on from there.

Greedy: the same text gets the same answer. The loop is transformers' own `generate`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import ModelError, SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.head import Head, Output, provenance_fields, put_before
from tagstream.transforms.tasks.model import Model
from tagstream.transforms.tokenization.encoded import Encoded
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer, language_id

Array = np.ndarray

ARCHITECTURE = "ForCausalLM"
"""See `tasks.contracts.TaskModule`."""
KIND = "language model"
"""See `tasks.contracts.TaskModule`."""
SETTINGS = {"text", "prompt", "system", "max_new_tokens", "stop"}
"""See `tasks.contracts.TaskModule`."""
_TEXT = pa.struct([pa.field("text", pa.large_string()), pa.field("finish", pa.string())])


@dataclass(frozen=True)
class TextHead(Head):
    """A new text for each text. `ends`: ids of the tokens that end a text."""

    entry: InferEntry
    model: str
    ends: tuple[int, ...]
    output: ClassVar[Output] = "text"

    @property
    def copies_text(self) -> bool:
        """See `Head`."""
        return True

    @property
    def width(self) -> int:
        """An answer has no vector."""
        return 0

    @property
    def before(self) -> str:
        """What stands before each text: a prompt that has no places to fill."""
        return "" if self.entry.places else self.entry.prompt or ""

    def module(self, model: Any, tokenizer: TextTokenizer) -> Any:
        """See `Head`."""
        from tagstream.transforms.tasks.outputs import NewTokens

        language = self.entry.tgt_lang
        first = None if language is None else language_id(self.model, tokenizer.own, language, "tgt_lang")
        entry = self.entry
        return NewTokens(model, tokenizer.own, most=entry.max_new_tokens, stop=entry.stop, first=first)

    def decode(self, tokenizer: TextTokenizer, ids: Array) -> Array:
        """Object [rows] of (text, finish). `ids`: int [rows, new tokens]. finish: stop, or length if it was cut off."""
        ended = np.isin(ids, self.ends)
        first = ended.argmax(axis=1) if ids.shape[1] else np.zeros(len(ids), int)
        lengths = np.where(ended.any(axis=1), first, ids.shape[1])
        rows = [row[: int(length)].tolist() for row, length in zip(ids, lengths, strict=True)]
        found = np.empty(len(ids), object)
        for at, text in enumerate(tokenizer.rust.decode_batch(rows, skip_special_tokens=True)):
            cut = min((place for word in self.entry.stop if (place := text.find(word)) >= 0), default=-1)
            whole = cut >= 0 or bool(ended[at].any()) or len(rows[at]) < self.entry.max_new_tokens
            found[at] = (text[:cut] if cut >= 0 else text, "stop" if whole else "length")
        return found

    def merge(self, encoded: Encoded, outputs: Array) -> pa.Array:
        """Text and finish of each text."""
        found: list[tuple[str | None, str | None]] = [(None, None)] * len(encoded.tokens)
        for at, answer in zip(encoded.text.tolist(), outputs, strict=True):
            found[at] = answer or (None, None)  # None: the forward pass has failed
        texts, finishes = [text for text, _ in found], [finish for _, finish in found]
        return pa.StructArray.from_arrays(
            [pa.array(texts, pa.large_string()), pa.array(finishes, pa.string())], fields=list(_TEXT)
        )

    @property
    def fields(self) -> list[pa.Field]:
        """The text, whether it ended or was cut off, and the provenance."""
        name = self.entry.as_
        texts = [pa.field(name, pa.large_string()), pa.field(f"{name}_finish", pa.string())]
        return [*texts, *provenance_fields(self.entry)]

    def answers(self, values: pa.Array) -> list[pa.Array]:
        """Text and finish. `values`: what `merge` gives."""
        return list(values.flatten())

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides a text."""
        names = ("text", "prompt", "system", "max_new_tokens", "stop", "src_lang", "tgt_lang")
        return self.entry.model_dump(mode="json", include=set(names))

    @property
    def shared(self) -> str:
        """See `Head`."""
        return json.dumps({**self.identity, "text": None, "prompt": self.before}, sort_keys=True)

    def agree(self, values: pa.Array, reference: pa.Array) -> Array:
        """Bool [texts]: whether the texts are equal."""
        pairs = zip(values.to_pylist(), reference.to_pylist(), strict=True)
        return np.array([ours == theirs for ours, theirs in pairs], bool)

    def drift(self, values: pa.Array, reference: pa.Array) -> Array:
        """0 where the texts are equal, else 1."""
        return np.asarray(~self.agree(values, reference), float)


@dataclass(frozen=True)
class ChatHead(TextHead):
    """Answers of a chat model."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    pads_left: ClassVar[bool] = True

    @property
    def long_text(self) -> str:
        """A prompt is never cut: its end says what to do."""
        return "dead_letter"

    @property
    def reserve(self) -> int:
        """Room for the answer."""
        return self.entry.max_new_tokens

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedTokens:
        """The chat template, filled with the prompt and the text."""
        told = [] if self.entry.system is None else [{"role": "system", "content": self.entry.system}]
        asked = put_before(self.before, texts).to_pylist()
        chats = [[*told, {"role": "user", "content": text}] for text in asked]
        filled = tokenizer.own.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        return tokenizer.encode(pa.array(filled, pa.large_string()), special=False)


def takes(model: Model, *, named: bool) -> bool:  # noqa: ARG001  of the protocol
    """Whether it is a language model."""
    return any(name.endswith((ARCHITECTURE, "LMHeadModel")) for name in model.architectures or ())


def head(entry: InferEntry, model: Model) -> ChatHead:
    """See `tasks.contracts.TaskModule`."""
    generates(entry)
    if entry.long_text in ("truncate", "window"):
        raise SpecError(
            f"{entry.as_}: long_text: a prompt is never cut, because its end says what to do; a row that is too long "
            "is a dead letter. Remove long_text"
        )
    if not model.has_chat_template:
        raise ModelError(
            f"{model.name}: has no chat template; choose a model that was trained to follow instructions (its name "
            "often ends in Instruct or chat)"
        )
    return ChatHead(entry, model.name, model.ends)


def generates(entry: InferEntry) -> None:
    """Raises SpecError for a backend that can't generate."""
    if not entry.backend.generates:
        raise SpecError(f"{entry.as_}: backend {entry.backend.type} can't generate text; use backend: pytorch")
