"""What a task makes of one entry and its model: what the model is given, what it returns, and the columns of that.

The engine packs sequences and runs them. Whatever depends on the task it asks the head:

1. `encode`: texts become sequences of tokens, one or more for each text.
2. `module`: what PyTorch runs to turn a micro-batch into outputs, one vector for each sequence or each token.
3. `merge`: the outputs of all sequences of a text become its answer.
4. `columns`: the answers become columns. Entries that share an engine share the answers, and differ in the columns.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tagstream.schemas.errors import SpecError

if TYPE_CHECKING:
    from tagstream.schemas.infer_spec import InferEntry
    from tagstream.transforms.tokenization.encoded import Encoded
    from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

Array = np.ndarray
Values = Any
"""The answers to some texts, one for each: a NumPy array [texts, values], or an Arrow array."""
Output = Literal["vector", "tokens", "text"]
"""What a forward pass gives: a vector for each sequence, one for each token, or a new text for each sequence."""


class Head(ABC):
    """See the module. Immutable, so that several threads may use it.

    `entry`, `model`: the entry, and the model's name. `width`: values of one vector of the model's output.
    """

    entry: InferEntry
    model: str
    output: ClassVar[Output] = "vector"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    """The class of transformers that loads the model."""
    truncation: ClassVar[str] = "longest_first"
    """Which text of a pair is cut: longest_first, only_first or only_second."""

    pads_left: ClassVar[bool] = False
    """Whether padding stands before the tokens, because the model goes on after them."""

    @property
    @abstractmethod
    def width(self) -> int:
        """See the class."""

    @property
    def vector_width(self) -> int | None:
        """How many float32 values each answer is, if `merge` gives a NumPy array; None if it gives an Arrow array."""
        return self.width if self.output == "vector" else None

    @property
    def long_text(self) -> str:
        """truncate, window or dead_letter."""
        return self.entry.long_text or "truncate"

    def tokenizer(self, files: Any) -> TextTokenizer:
        """The model's tokenizer, as this task uses it. `files`: the `model_files.ModelFiles`. Raises ModelError."""
        from tagstream.transforms.tokenization.tokenizer import TextTokenizer

        return TextTokenizer(
            files,
            self.entry.max_length,
            self.long_text,
            self.truncation,
            pads_left=self.pads_left,
            reserve=self.reserve,
            src_lang=self.entry.src_lang,
        )

    def encode(self, tokenizer: TextTokenizer, texts: pa.LargeStringArray) -> EncodedTokens:
        """The sequences of texts, which are valid UTF-8 and not null."""
        return tokenizer.encode(texts)

    @property
    def reserve(self) -> int:
        """Tokens of the model's window that a sequence must leave free."""
        return 0

    def decode(self, tokenizer: TextTokenizer, ids: Array) -> Array:
        """Object [rows]: the outputs that the tokens of a row are, if `output` is text. `ids`: int [rows, tokens]."""
        raise NotImplementedError

    def module(self, model: Any, tokenizer: TextTokenizer) -> Any:
        """What a PyTorch backend runs for a loaded model.

        A `torch.nn.Module` with the inputs input_ids, attention_mask and token_type_ids, the last two None where they
        are not needed. It returns a tensor: [rows, width]; [rows, tokens, width] if `output` is tokens; the new tokens'
        ids, [rows, new tokens], if it is text.
        """
        from tagstream.transforms.tasks.outputs import Logits

        return Logits(model)

    @abstractmethod
    def merge(self, encoded: Encoded, outputs: Array) -> Values:
        """The answers to the texts of `encoded`, one for each. The answer of a text without a sequence is arbitrary.

        `outputs`: float32 [sequences, width]; with `output` tokens [tokens of all sequences, width]; with text what
        `decode` gave.
        """

    @property
    @abstractmethod
    def fields(self) -> list[pa.Field]:
        """The columns that this entry writes, in order."""

    @abstractmethod
    def answers(self, values: Values) -> list[pa.Array]:
        """One array for each of `fields` that comes before the provenance."""

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides the answers beside the model, the length and the columns: JSON values for the fingerprint."""

    @property
    def export_name(self) -> str:
        """Tells exports of one model for different heads apart. Empty for the model's logits."""
        return ""

    @property
    def shared(self) -> str:
        """Entries whose models are the same share an engine if this is the same too."""
        return ""

    @property
    def certified(self) -> str:
        """What else a certificate of the entry is for, beside the settings that it names one by one."""
        return json.dumps(self.identity, sort_keys=True)

    def agree(self, values: Values, reference: Values) -> Array:
        """Bool [texts]: whether each answer counts as the same as the reference's, for certificates."""
        raise SpecError(f"{self.entry.as_}: there is no measure yet of how well answers of this task agree")

    def drift(self, values: Values, reference: Values) -> Array:
        """Float [texts]: how far each answer is from the reference's."""
        raise SpecError(f"{self.entry.as_}: there is no measure yet of how well answers of this task agree")

    @property
    def copies_text(self) -> bool:
        """Whether the columns may hold words of the text."""
        return False

    def tally(self, column: pa.Array) -> Counter[str]:
        """What the report counts of the column that has the entry's name. Nothing by default."""
        return Counter()

    def columns(self, values: Values, tokens: Array, truncated: Array) -> list[pa.Array]:
        """One array for each of `fields`.

        `values`: what `merge` gave. `tokens`: int32 [rows]. `truncated`: bool [rows].
        """
        return [*self.answers(values), *provenance_columns(self.entry, self.model, tokens, truncated)]


def provenance_fields(entry: InferEntry) -> list[pa.Field]:
    """The columns that say how an answer came about, as the entry asks for."""
    kinds = {"tokens": pa.int32(), "truncated": pa.bool_(), "model": pa.dictionary(pa.int32(), pa.string())}
    return [pa.field(f"{entry.as_}_{what}", kinds[what]) for what in entry.provenance]


def provenance_columns(entry: InferEntry, model: str, tokens: Array, truncated: Array) -> list[pa.Array]:
    """One array for each of `provenance_fields`."""
    found = []
    for what in entry.provenance:
        if what == "model":
            indices = pa.array(np.zeros(len(tokens), np.int32))
            found.append(pa.DictionaryArray.from_arrays(indices, pa.array([model])))
        else:
            found.append(pa.array(tokens if what == "tokens" else truncated))
    return found


def put_before(prompt: str, texts: pa.LargeStringArray) -> pa.LargeStringArray:
    """Each text with the prompt before it."""
    if not prompt:
        return texts
    before, nothing = (pa.scalar(text, pa.large_string()) for text in (prompt, ""))
    return pc.binary_join_element_wise(before, texts, nothing)


def mean_of_windows(encoded: Encoded, outputs: Array) -> Array:
    """Float [texts, width]: the mean of the vectors of each text's sequences."""
    texts = len(encoded.tokens)
    if np.array_equal(encoded.text, np.arange(texts)):  # every text has one sequence
        return outputs
    sums = np.zeros((texts, outputs.shape[1]), np.float64)
    np.add.at(sums, encoded.text, outputs)
    counts = np.bincount(encoded.text, minlength=texts)
    return sums / np.maximum(counts, 1)[:, None]


def count_texts(column: pa.Array) -> Counter[str]:
    """How often each text is there; null counts as `None`. Empty for a column of another type."""
    if not pa.types.is_string(column.type):
        return Counter()
    counts = pc.value_counts(column)
    return Counter({str(count["values"].as_py()): count["counts"].as_py() for count in counts})
