"""New texts by a model that reads a text and writes another: translation, summarization, text2text-generation.

Beams and lengths are those of the model's generation config, as for transformers' `generate`. Nothing is sampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.head import put_before
from tagstream.transforms.tasks.model import Model
from tagstream.transforms.tasks.text_generation import TextHead, generates
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

ARCHITECTURE = "ForConditionalGeneration"
"""See `tasks.contracts.TaskModule`."""
KIND = "sequence-to-sequence model"
"""See `tasks.contracts.TaskModule`."""
SETTINGS = {"text", "prompt", "max_new_tokens", "stop", "src_lang", "tgt_lang"}
"""See `tasks.contracts.TaskModule`."""


@dataclass(frozen=True)
class Seq2SeqHead(TextHead):
    """A text for each text."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedTokens:
        """The text, with the prompt before it."""
        return tokenizer.encode(put_before(self.before, texts))


def takes(model: Model, *, named: bool) -> bool:  # noqa: ARG001  of the protocol
    """Whether the model has an encoder and a decoder that writes."""
    names = model.architectures or []
    return any(name.endswith((ARCHITECTURE, "MTModel")) for name in names)


def head(entry: InferEntry, model: Model) -> Seq2SeqHead:
    """See `tasks.contracts.TaskModule`."""
    generates(entry)
    if entry.long_text == "window":
        raise SpecError(f"{entry.as_}: long_text: texts that are written from windows can't be joined; use truncate")
    return Seq2SeqHead(entry, model.name, model.ends)
