"""For tasks that ask several things of one text, each with sequences of its own: questions, candidate labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tagstream.schemas.errors import DeadCode
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

Array = np.ndarray


@dataclass
class EncodedSeveral(EncodedTokens):
    """`asked`: int32 [sequences], ascending: the text, times how many things are asked of each, plus the thing."""

    asked: Array = None  # type: ignore[assignment]


def encode_several(
    tokenizer: TextTokenizer, firsts: Sequence[str], seconds: Sequence[str], each: int, *, places: bool = False
) -> EncodedSeveral:
    """Sequences of pairs, of which every `each` in a row belong to one text.

    A text has an error if one of its pairs has; the longest pair says how many tokens it has.
    """
    encoded = tokenizer.encode_pairs(firsts, seconds, places=places)
    fields = {**vars(encoded), "asked": encoded.text}
    errors: dict[int, tuple[DeadCode, str]] = {}
    for pair, error in encoded.errors.items():
        errors.setdefault(pair // each, error)
    found = EncodedSeveral(**fields)
    found.text = (encoded.text // each).astype(np.int32)
    found.tokens = encoded.tokens.reshape(-1, each).max(axis=1, initial=0)
    found.truncated = np.asarray(encoded.truncated.reshape(-1, each).any(axis=1))
    found.errors = errors
    return found
