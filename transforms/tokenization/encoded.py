"""Sequences of token ids, as the tokenizer hands them to packing and to a backend."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tagstream.schemas.errors import DeadCode

Array = np.ndarray


@dataclass
class Encoded:
    """Sequences of some texts. Subclasses add what their backend needs.

    lengths: int32 [sequences], tokens of each; text: int32 [sequences], ascending, the text each belongs to (several
    when a long text was split into windows); tokens: int32 [texts], before any cut; truncated: bool [texts];
    errors: texts that have no sequences, and why.
    """

    lengths: Array
    text: Array
    tokens: Array
    truncated: Array
    errors: dict[int, tuple[DeadCode, str]] = field(default_factory=dict)
