"""For tasks that ask several things of one text, each with sequences of its own: questions, candidate labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tagstream.schemas.errors import DeadCode, ModelError
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

Array = np.ndarray
ROOM = 8
"""Tokens that are left for the other text, and for those that the tokenizer adds."""


@dataclass
class EncodedSeveral(EncodedTokens):
    """`asked`: int32 [sequences], ascending. Thing number t of n that are asked of text number i has i * n + t."""

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


def too_long(texts: Sequence[str], tokenizer: TextTokenizer) -> dict[int, int]:
    """Of texts that are never cut, those that leave too little room for the other text: row and tokens.

    The other text must have more tokens than two of its windows share.
    """
    most = tokenizer.max_length - tokenizer.overlap - ROOM
    lengths = [len(one) for one in tokenizer.whole.encode_batch_fast(list(texts), add_special_tokens=False)]
    return {row: length for row, length in enumerate(lengths) if length > most}


def refuse_long(name: str, what: str, texts: dict[str, str], tokenizer: TextTokenizer) -> None:
    """Raises ModelError for the first of `texts`, by their names, that leaves no room for another text."""
    for row, tokens in too_long(list(texts.values()), tokenizer).items():
        raise ModelError(
            f"{name}: the {what} {list(texts)[row][:60]!r} has {tokens} tokens, which leaves no room for a text: the "
            f"model takes {tokenizer.max_length}"
        )
