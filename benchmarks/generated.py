"""Generates texts, a tokenizer and a model, without any download. The same seed gives the same result.

    python -m benchmarks.generated rows FILE ROWS             about 100 characters each, for the overhead
    python -m benchmarks.generated texts FILE ROWS            lognormal lengths, for models
    python -m benchmarks.generated fixed FILE ROWS TOKENS     of one length, for models
    python -m benchmarks.generated sample FILE ROWS FOLDER    rows of the Parquet files of a folder, column `text`
    python -m benchmarks.generated model FOLDER [LAYERS [WIDTH]]   a BERT of MiniLM's size, 6 layers of 384 unless told

Words are syllables put together and drawn by Zipf's law; the WordPiece vocabulary holds the frequent ones whole and the
syllables of the others, so that a text has more tokens than words, as real text has.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SEED = 20
MEDIAN_TOKENS, MEAN_TOKENS, MOST_TOKENS = 30, 46, 512
VOCABULARY = 30_522
LABELS = ("negative", "neutral", "positive")
_SYLLABLES = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "en", "ar", "ist", "ol", "um")]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_GROUP = 65_536


@cache
def _words() -> tuple[list[str], np.ndarray, list[str]]:
    """All words, the number of tokens of each, and the vocabulary.

    A tenth of the words that are drawn are not in the vocabulary as a whole, and are split into pieces.
    """
    rng = np.random.default_rng(SEED)
    pieces = [*_SPECIAL, *"abcdefghijklmnopqrstuvwxyz", *("##" + s for s in _SYLLABLES), *_SYLLABLES]
    taken = set(_SYLLABLES)
    words: list[str] = []
    while len(words) < 2 * VOCABULARY:
        parts = rng.integers(0, len(_SYLLABLES), rng.integers(2, 5))
        word = "".join(_SYLLABLES[i] for i in parts)
        if word not in taken:
            taken.add(word)
            words.append(word)
    whole = VOCABULARY - len(pieces)
    vocabulary = pieces + words[:whole]
    encoded = _tokenizer(vocabulary).encode_batch(words, add_special_tokens=False)
    return words, np.array([len(e) for e in encoded], np.int32), vocabulary


def _draw(rng: np.random.Generator, count: int) -> np.ndarray:
    """Word numbers by Zipf's law with exponent 1, from a log-uniform draw."""
    return (np.exp(rng.random(count) * np.log(2 * VOCABULARY)) - 1).astype(np.int64)


def texts(rows: int, seed: int = SEED) -> list[str]:
    """Texts whose tokens, special ones included, are lognormal: median 30, mean 46, at most 512.

    Lengths are the law's quantiles in random order, so that a small sample has the same mix as a large one.
    """
    rng = np.random.default_rng(seed)
    law = NormalDist(np.log(MEDIAN_TOKENS), np.sqrt(2 * np.log(MEAN_TOKENS / MEDIAN_TOKENS)))
    lengths = rng.permutation(np.exp([law.inv_cdf((i + 0.5) / rows) for i in range(rows)]))
    return _of_lengths(np.clip(np.rint(lengths), 4, MOST_TOKENS - 3) - 2, rng)


def fixed(rows: int, length: int) -> list[str]:
    """Texts of `length` tokens, special ones included, or one or two more."""
    return _of_lengths(np.full(rows, max(1, min(length, MOST_TOKENS - 3) - 2)), np.random.default_rng(SEED))


def _of_lengths(wanted: np.ndarray, rng: np.random.Generator) -> list[str]:
    """One text for each of `wanted`: its number of tokens, special ones not counted."""
    words, tokens, _ = _words()
    drawn = _draw(rng, int(wanted.sum()) + MOST_TOKENS)
    ends = np.cumsum(tokens[drawn])
    made, at, done = [], 0, 0
    for want in wanted.astype(np.int64):  # a float would have all ends turned into floats
        stop = int(np.searchsorted(ends, done + want)) + 1  # a word too long by a token or two at most
        made.append(" ".join(words[i] for i in drawn[at:stop]))
        at, done = stop, int(ends[stop - 1])
    return made


def write_texts(path: Path, made: list[str]) -> None:
    pq.write_table(pa.table({"id": pa.array(range(len(made)), pa.int64()), "text": made}), path)


def write_rows(path: Path, rows: int, characters: int = 100) -> None:
    """Write a Parquet file with ids and texts of about `characters` characters, one row group at a time."""
    words, _, _ = _words()
    rng = np.random.default_rng(SEED)
    pool = pa.array(words)
    mean = characters / 9  # of words in a text: a drawn word has 8 characters on average, and a space
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for start in range(0, rows, _GROUP):
            count = min(_GROUP, rows - start)
            lengths = rng.integers(round(mean * 0.6), round(mean * 1.4) + 1, count)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            flat = pool.take(pa.array(_draw(rng, int(offsets[-1]))))
            joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), flat), " ")
            ids = pa.array(np.arange(start, start + count, dtype=np.int64))
            writer.write_table(pa.table({"id": ids, "text": joined}))


def sample(folder: Path, rows: int) -> list[str]:
    """Texts of all Parquet files below a folder that have a column `text`, drawn at random with a fixed seed."""
    found: list[str] = []
    for path in sorted(folder.rglob("*.parquet")):
        if "text" in pq.read_schema(path).names:
            found += [t for t in pq.read_table(path, columns=["text"])["text"].to_pylist() if t and t.strip()]
    if not found:
        raise SystemExit(f"{folder}: no Parquet file with texts in a column named text")
    picked = np.random.default_rng(SEED).permutation(len(found))[:rows]
    return [found[i] for i in picked]


def write_model(folder: Path, layers: int = 6, width: int = 384) -> None:
    """Write a BERT with random weights, and its tokenizer. As in MiniLM: 12 heads, feed-forward layers of 4 x `width`.

    The head is scaled so that the logits of a sample have mean 0 and deviation 1. Labels are then spread over all
    classes, with margins like a trained model's, so that the agreement of labels is a meaningful figure.
    """
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    _, _, vocabulary = _words()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(vocabulary)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "BertTokenizerFast",
        "model_max_length": MOST_TOKENS,
        "do_lower_case": True,
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=4 * width,
        initializer_range=0.05,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config).eval()
    sample = tokenizer.encode_batch(texts(128, SEED + 1))
    with torch.inference_mode():
        logits = torch.cat([model(input_ids=torch.tensor([e.ids])).logits for e in sample])
        head = model.classifier
        scale = 1 / logits.std(0)
        head.bias.copy_((head.bias - logits.mean(0)) * scale)
        head.weight.mul_(scale[:, None])
    model.save_pretrained(folder)


def main(what: str, path: str, rows: str = "6", more: str = "") -> None:
    if what == "model":
        write_model(Path(path), int(rows), int(more or 384))
    elif what == "rows":
        write_rows(Path(path), int(rows))
    elif what == "texts":
        write_texts(Path(path), texts(int(rows)))
    elif what == "fixed":
        write_texts(Path(path), fixed(int(rows), int(more)))
    elif what == "sample":
        write_texts(Path(path), sample(Path(more), int(rows)))


def _tokenizer(vocabulary: list[str]):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    numbers = {piece: i for i, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", numbers["[CLS]"]), ("[SEP]", numbers["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer


if __name__ == "__main__":
    main(*sys.argv[1:])
