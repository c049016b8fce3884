"""The bundled models are plain Hugging Face folders, small, and hold against the usual ways round a filter."""

# ruff: noqa: RUF001 - look-alike letters are what is tested
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from models.train.augment import EVASIONS
from tagstream.models import bundled

MESSAGES = Path(__file__).parents[1] / "examples" / "sms.parquet"
LABELS = {"tagstream/spam": ["ham", "spam"], "tagstream/sentiment": ["negative", "neutral", "positive"]}
ODD = ["", "Ok lar...", "ｆｒｅｅ 𝐅𝐑𝐄𝐄 fr\u200bee f r e e", "сlаim nоw", "❤ 👎", "好", "a" * 300, "\x00\ud7ff\n\t"]


class InferEntry:
    def __init__(self, folder):
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def __call__(self, texts):
        found = []
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                batch = self.tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
                found.append(self.model(**batch).logits.softmax(-1).numpy())
        return np.concatenate(found)


@pytest.fixture(scope="module")
def spam_filter():
    return InferEntry(bundled()["tagstream/spam"])


@pytest.fixture(scope="module")
def messages():
    table = pq.read_table(MESSAGES)
    return table["text"].to_pylist(), table["label"].to_pylist()


@pytest.mark.parametrize("name", sorted(LABELS))
def test_folder_is_small_and_has_a_card(name):
    folder = bundled()[name]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 15_000_000
    assert "What it must not be used for" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(LABELS))
def test_plain_loaders_give_the_labels_and_the_same_tokens_as_the_bare_tokenizer(name):
    folder = bundled()[name]
    entry = InferEntry(folder)
    assert [entry.model.config.id2label[i] for i in range(len(LABELS[name]))] == LABELS[name]
    bare = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ODD:
        assert entry.tokenizer(text)["input_ids"] == bare.encode(text).ids
        assert max(bare.encode(text).ids) < entry.model.config.vocab_size
    assert np.isfinite(entry(ODD)).all()


@pytest.mark.parametrize(
    "disguised",
    [
        "сlаіm уоur frее рrіzе",
        "cl\u200baim yo\u200dur fr\u00adee pri\u2060ze",
        "c.l.a.i.m y0ur fr3e p r i z e",
        "ＣＬＡＩＭ your 𝐟𝐫𝐞𝐞 prize",
    ],
)
def test_normaliser_undoes_evasion(spam_filter, disguised):
    assert spam_filter.tokenizer.tokenize(disguised) == spam_filter.tokenizer.tokenize("claim your free prize")


def test_demo_messages_are_labelled_well(spam_filter, messages):
    texts, labels = messages
    said = spam_filter(texts).argmax(axis=1) == 1
    true = np.array([label == "spam" for label in labels])
    precision, recall = (said & true).sum() / said.sum(), (said & true).sum() / true.sum()
    assert 2 * precision * recall / (precision + recall) >= 0.9


@pytest.mark.parametrize("trick", sorted(EVASIONS))
def test_evasion_costs_at_most_five_points_of_recall(spam_filter, messages, trick):
    """On spam that training never saw."""
    spam = [text for text, label in zip(*messages, strict=True) if label == "spam"]
    rng = random.Random(11)
    plain = (spam_filter(spam).argmax(axis=1) == 1).mean()
    evaded = (spam_filter([EVASIONS[trick](text, rng) for text in spam]).argmax(axis=1) == 1).mean()
    assert evaded >= plain - 0.05
