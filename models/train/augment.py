"""Changes training rows the way senders do to dodge filters, and in plainer ways."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from models.train.tokenizer import LOOKALIKES

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad"
LEET = {"a": "4@", "e": "3", "i": "1!", "o": "0", "s": "5$", "t": "7", "l": "1", "b": "8"}


def homoglyphs(text: str, rng: random.Random, share: float = 0.4) -> str:
    return "".join(
        rng.choice(LOOKALIKES[char.lower()]) if char.lower() in LOOKALIKES and rng.random() < share else char
        for char in text
    )


def invisible(text: str, rng: random.Random, share: float = 0.3) -> str:
    return "".join(char + rng.choice(INVISIBLE) if char.isalpha() and rng.random() < share else char for char in text)


def spaced(text: str, rng: random.Random, share: float = 0.4) -> str:
    """Put a separator between the letters of some words that have at least four letters."""
    separator = rng.choice([" ", ".", "-", "_", "*"])
    return " ".join(
        separator.join(word) if len(word) > 3 and word.isalpha() and rng.random() < share else word
        for word in text.split(" ")
    )


def leet(text: str, rng: random.Random, share: float = 0.4) -> str:
    return "".join(
        rng.choice(LEET[char.lower()]) if char.lower() in LEET and rng.random() < share else char for char in text
    )


def wide(text: str, rng: random.Random, share: float = 0.6) -> str:
    """Write some words in full-width characters."""
    return " ".join(
        "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in word)
        if rng.random() < share
        else word
        for word in text.split(" ")
    )


EVASIONS: dict[str, Callable[[str, random.Random], str]] = {
    "homoglyphs": homoglyphs,
    "invisible": invisible,
    "spaced": spaced,
    "leet": leet,
    "wide": wide,
}


def evade(text: str, rng: random.Random) -> str:
    """Apply one trick, sometimes two."""
    for name in rng.sample(list(EVASIONS), rng.choice([1, 1, 2])):
        text = EVASIONS[name](text, rng)
    return text


def plain_mail(text: str, rng: random.Random) -> str:
    """Make a text from Enron look more like other mail.

    Enron's texts are lower-cased, have spaces around every punctuation mark and start with 'Subject:'.
    """
    if rng.random() < 0.5:
        text = re.sub(r"^Subject: ?", "", text)
    if rng.random() < 0.5:
        text = re.sub(r" ([.,:;!?)%'/-])", r"\1", text)
        text = re.sub(r"([($'/-]) ", r"\1", text)
    return text
