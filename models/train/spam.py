"""The spam classifier. It learns from messages and mail, hard negatives from other sources, and disguised spam."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from models.train import augment, encoder
from models.train.data import SOURCES, TRAIN, Row
from models.train.loop import Lessons
from models.train.shrink import Shape
from models.train.task import Task, at_most, lesson_rows, unseen

if TYPE_CHECKING:
    from pathlib import Path

LABELLED = ("sms", "enron1")
PASSES = {"sms": 4, "enron1": 4}
EVASIVE = {"sms": 3, "enron1": 2}  # how many disguised copies of every spam row are added
# How many rows of each source are added as ham. None of these files holds spam.
HAM_ROWS = {
    "agnews": 2500,
    "goemotions": 2500,
    "sst2": 1200,
    "imdb": 800,
    "semeval": 5000,
    "tweeteval": 300,
    "emotion": 900,
    "hotels-zh": 100,
    "shopping-zh": 300,
    "titles-zh": 200,
    "umsab": 1200,
}
NOT_SPAM = tuple(name for name in SOURCES if name not in LABELLED)
SURE_SPAM, SURE_HAM = (0.03, 0.97), (0.99, 0.01)


def lessons(folder: Path, part: str, seed: int, without: frozenset[str]) -> Lessons:
    rng = random.Random(seed)
    found = Lessons()
    banned = unseen(folder, (*LABELLED, *HAM_ROWS)) if part == TRAIN else frozenset()
    for name in LABELLED:
        if name in without:
            continue
        for row in lesson_rows(folder, name, part, banned):
            target = SURE_SPAM if row.label == "spam" else SURE_HAM
            if part != TRAIN:
                found.add(row.text, target)
                continue
            for number in range(PASSES[name]):
                found.add(row.text[:6000] if number % 2 == 0 else _varied(row, rng), target)
            if row.label == "spam":
                for _ in range(EVASIVE[name]):
                    found.add(augment.evade(_varied(row, rng)[:1200], rng), target)
    for name, count in HAM_ROWS.items():
        own = list(lesson_rows(folder, name, part, banned))
        for row in at_most(rng, count if part == TRAIN else count // 10, own):
            found.add(_disguised_ham(row.text, rng) if part == TRAIN else row.text[:4000], SURE_HAM)
    return found


def _varied(row: Row, rng: random.Random) -> str:
    """The row in another form: as from another mail program, in other case, or the middle of a long mail."""
    text = row.text
    if row.source == "enron1":
        if len(text) > 1500 and rng.random() < 0.35:  # windows of long mail are judged too
            start = rng.randrange(len(text) - 1000)
            text = text[text.find(" ", start) + 1 :]
        text = augment.plain_mail(text, rng)
    if row.label == "ham" and rng.random() < 0.06:  # odd letters alone must not make a text spam
        return augment.evade(text[:1200], rng)
    luck = rng.random()
    return (text.upper() if luck < 0.15 else text.lower() if luck < 0.4 else text)[:6000]


def _disguised_ham(text: str, rng: random.Random) -> str:
    luck = rng.random()
    if luck < 0.1:
        return text[:2000].upper()
    if luck < 0.13:
        return augment.evade(text[:600], rng)
    return text[:4000]


TASK = Task(
    name="spam",
    labels=("ham", "spam"),
    encoder=encoder.minilm,
    shape=Shape(layers=(0, 2, 5), intermediate=768, vocabulary=8800, positions=512),
    max_length=256,
    learning_rate=2e-4,
    epochs=1.8,
    lessons=lessons,
    sources=LABELLED,
)
