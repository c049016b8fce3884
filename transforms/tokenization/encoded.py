"""Sequences of token ids: the tokenizer's result, which packing and backends use."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tagstream.schemas.errors import DeadCode

Array = np.ndarray


@dataclass
class Encoded:
    """Sequences of some texts. A subclass adds the fields that its backend needs, such as the ids.

    `lengths`: int32 [sequences], the tokens of each. `text`: int32 [sequences], ascending, the index of each sequence's
    text; a long text that was split into windows has several sequences. `tokens`: int32 [texts], before any cut.
    `truncated`: bool [texts]. `errors`: code and message by index, for each text without a sequence.
    """

    lengths: Array
    text: Array
    tokens: Array
    truncated: Array
    errors: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)


def runs(begins: Array, owner: Array) -> tuple[Array, Array]:
    """The first and the last token of each run of tokens.

    A run begins where `begins` says it, bool [tokens], and where another owner begins. `owner`: int [tokens], the text
    or the sequence of each.
    """
    if not len(owner):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    start = begins.copy()
    start[0] = True
    start[1:] |= owner[1:] != owner[:-1]
    first = np.flatnonzero(start)
    return first, np.append(first[1:], len(owner)) - 1
