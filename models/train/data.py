"""Rows to learn from: the data folder's Parquet files, split so that near-duplicates are always in the same part.

A row belongs to the part `held` (never trained on; the figures come from it), `tune` (for temperature and choice of
settings) or `train`. A hash of the text's normal form alone decides the part. So a copy with other case or other
numbers is in the same part, even if it comes from another file.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HELD, TUNE, TRAIN = "held", "tune", "train"
TUNE_PERCENT = 5
SHINGLE = 6  # words; phrases of SST-2 that share this many in a row come from one sentence


@dataclass(frozen=True)
class Source:
    """One file of the data folder. `held_percent`: share of its rows that is held out."""

    name: str
    file: str
    held_percent: int = 10


SOURCES = {
    source.name: source
    for source in (
        Source("sms", "sms_spam-train.parquet", 25),  # a quarter: the demo's rows come from it
        Source("enron1", "enron1-train.parquet", 15),
        Source("sst2", "sst2-train.parquet"),
        Source("imdb", "imdb-train.parquet", 8),
        Source("semeval", "semeval2017a-train.parquet"),
        Source("tweeteval", "tweeteval_sentiment-dev.parquet", 50),
        Source("agnews", "agnews-train.parquet", 20),
        Source("goemotions", "goemotions-train.parquet"),
        Source("goemotions-dev", "goemotions-dev.parquet"),
        Source("emotion", "emotion-train.parquet"),
        Source("emotion-dev", "emotion-dev.parquet"),
        Source("hotels-zh", "chnsenticorp_htl-train.parquet"),
        Source("shopping-zh", "online_shopping_zh-train.parquet"),
        Source("titles-zh", "thucnews_titles-dev.parquet"),
        Source("umsab", "umsab_multilingual-train.parquet"),
        Source("umsab-dev", "umsab_multilingual-dev.parquet"),
    )
}


@dataclass(frozen=True)
class Row:
    id: str
    text: str
    label: str
    source: str
    part: str


def normal_form(text: str) -> str:
    """The text without differences in case, punctuation, spacing and digits. Near-duplicates have the same form."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", " ", re.sub(r"\d+", "0", folded)).strip()


def part_of(key: str, held_percent: int) -> str:
    """`held`, `tune` or `train`, by the hash of a normal form.

    The hash does not depend on the file, and a file with a larger `held_percent` holds out a larger range from 0 on.
    So if the file with the smaller share holds a text out, every file holds it out.
    """
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 100
    if bucket < held_percent:
        return HELD
    return TUNE if bucket >= 100 - TUNE_PERCENT else TRAIN


@cache
def load(folder: Path, name: str) -> tuple[Row, ...]:
    source = SOURCES[name]
    table = pq.read_table(folder / source.file, columns=["id", "text", "label"])
    ids, texts, labels = (table[column].to_pylist() for column in ("id", "text", "label"))
    keys = _sentences(texts) if name == "sst2" else [normal_form(text) for text in texts]
    parts = [part_of(key, source.held_percent) for key in keys]
    if name == "sst2":  # one- and two-word phrases occur in every sentence: they teach words and are measured nowhere
        parts = [part if len(text.split()) > 2 else TRAIN for part, text in zip(parts, texts, strict=True)]
    return tuple(
        Row(id=one, text=text, label=label, source=name, part=part)
        for one, text, label, part in zip(ids, texts, labels, parts, strict=True)
    )


def rows(folder: Path, name: str, part: str) -> list[Row]:
    return [row for row in load(folder, name) if row.part == part]


def whole_sentences(folder: Path) -> frozenset[str]:
    """Ids of the SST-2 rows that are the longest phrase of their sentence, which is usually the whole sentence."""
    found = load(folder, "sst2")
    keys = _sentences([row.text for row in found])
    return frozenset(row.id for row, key in zip(found, keys, strict=True) if normal_form(row.text) == key)


def near_copies(folder: Path, name: str, others: Iterable[str] = ()) -> frozenset[str]:
    """Ids of held-out rows whose text is mostly copied from training rows of this source or of `others`.

    Routine mails, campaigns and retweets are such copies, although their normal forms differ. The results give figures
    with and without them. Texts are compared by runs of eight words, without links and @names.
    """
    seen = {run for source in (name, *others) for row in rows(folder, source, TRAIN) for run in _runs(row.text)}
    return frozenset(
        row.id
        for row in rows(folder, name, HELD)
        if (own := _runs(row.text)) and sum(run in seen for run in own) > len(own) / 2
    )


def _runs(text: str) -> list[int]:
    words = normal_form(re.sub(r"https?\S*|www\.\S+|@\w+", " ", text)).split()
    return [hash(tuple(words[i : i + 8])) for i in range(len(words) - 7)]


def _sentences(texts: list[str]) -> list[str]:
    """For every SST-2 phrase, a key that is the same for all phrases of one sentence.

    The file holds about ten overlapping phrases of each sentence. Two phrases are of the same sentence if they share
    six words in a row, or if a short one (three to five words) lies inside a longer one. The key is the longest phrase.
    """
    words = [text.split() for text in texts]
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[tuple[str, ...], int] = {}
    for i in sorted(range(len(texts)), key=lambda i: -len(words[i])):
        phrase, n = words[i], len(words[i])
        if n < 3:
            continue
        size = min(n, SHINGLE)
        for start in range(n - size + 1):
            parent[root(i)] = root(seen.setdefault(tuple(phrase[start : start + size]), i))
        for size in range(3, min(n, SHINGLE)):
            for start in range(n - size + 1):
                seen.setdefault(tuple(phrase[start : start + size]), i)
    longest: dict[int, int] = {}
    for i in range(len(texts)):
        best = longest.setdefault(root(i), i)
        if (len(words[i]), texts[i]) > (len(words[best]), texts[best]):
            longest[root(i)] = i
    return [normal_form(texts[longest[root(i)]]) for i in range(len(texts))]
