"""What each classifier is taught: labels, shape, rows of every source, and the sets that it is measured on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.train import augment
from models.train.data import HELD, SOURCES, TRAIN, Row, normal_form, rows
from models.train.loop import Lessons
from models.train.shrink import Shape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HAM, SPAM = 0, 1
NEGATIVE, NEUTRAL, POSITIVE = 0, 1, 2
POLES = (1.0, 0.0, 1.0)  # the row knows of negative and positive only
# Rows a source gives as ham; none of these files holds spam.
HAM_ROWS = {
    "agnews": 2500,
    "goemotions": 2000,
    "sst2": 1500,
    "imdb": 900,
    "semeval": 4000,
    "emotion": 800,
    "hotels-zh": 300,
    "shopping-zh": 600,
    "titles-zh": 300,
    "umsab": 1200,
}


@dataclass(frozen=True)
class Task:
    name: str
    labels: tuple[str, ...]
    shape: Shape
    max_length: int  # tokens of a training row
    epochs: float
    learning_rate: float
    lessons: Callable[[Path, str, int], Lessons]
    held: dict[str, tuple[str, ...]]  # measured set -> sources

    def index(self, row: Row) -> int:
        return self.labels.index(row.label)


def kept_out(folder: Path, names: tuple[str, ...]) -> frozenset[str]:
    """Normal forms of everything held out: shares differ by file, so a copy elsewhere must go by its text."""
    return frozenset(normal_form(row.text) for name in names for row in rows(folder, name, HELD))


def spam_lessons(folder: Path, part: str, seed: int) -> Lessons:
    rng = random.Random(seed)
    lessons = Lessons()
    banned = kept_out(folder, ("sms", "enron1", *HAM_ROWS)) if part == TRAIN else frozenset()
    for name in ("sms", "enron1"):
        for row in rows(folder, name, part):
            if normal_form(row.text) in banned:
                continue
            target = [0.05, 0.95] if row.label == "spam" else [0.98, 0.02]
            lessons.add(row.text, target)
            if part != TRAIN:
                continue
            if name == "enron1":
                lessons.add(augment.plain_mail(row.text, rng), target)
            elif row.label == "spam":
                lessons.add(row.text.upper() if rng.random() < 0.3 else row.text.lower(), target)
            if row.label == "spam":
                text = augment.plain_mail(row.text, rng) if name == "enron1" else row.text
                lessons.add(augment.evade(text[:1000], rng), target)
            elif rng.random() < 0.1:  # odd letters alone are no spam
                lessons.add(augment.evade(row.text[:600], rng), target)
    for name, count in HAM_ROWS.items():
        own = rows(folder, name, part)
        for row in rng.sample(own, min(len(own), count if part == TRAIN else count // 10)):
            if normal_form(row.text) in banned:
                continue
            text = row.text.upper() if part == TRAIN and rng.random() < 0.1 else row.text
            lessons.add(text[:3000], [0.99, 0.01])
    return lessons


def sentiment_lessons(folder: Path, part: str, seed: int) -> Lessons:
    rng = random.Random(seed)
    lessons = Lessons()
    sources = ("sst2", "imdb", "semeval", "tweeteval")
    banned = kept_out(folder, sources) if part == TRAIN else frozenset()
    for name in sources:
        own = rows(folder, name, part)
        limit = {"imdb": IMDB_ROWS if part == TRAIN else 400}.get(name, len(own))
        for row in rng.sample(own, min(len(own), limit)):
            if name != "sst2" and normal_form(row.text) in banned:
                continue
            target = [0.0, 0.0, 0.0]
            target[SENTIMENT.index(row)] = 1.0
            short = name == "sst2" and len(row.text.split()) < 8
            lessons.add(row.text[:3000], target, POLES if short else None)
    return lessons


IMDB_ROWS = 8000
SPAM_TASK = Task(
    name="spam",
    labels=("ham", "spam"),
    shape=Shape(layers=(0, 2, 5), intermediate=768, vocabulary=8800, positions=512),
    max_length=256,
    epochs=2,
    learning_rate=2e-4,
    lessons=spam_lessons,
    held={"sms": ("sms",), "enron1": ("enron1",)},
)
SENTIMENT = Task(
    name="sentiment",
    labels=("negative", "neutral", "positive"),
    shape=Shape(layers=(0, 2, 5), intermediate=1152, vocabulary=6700, positions=256),
    max_length=192,
    epochs=1,
    learning_rate=2e-4,
    lessons=sentiment_lessons,
    held={"sst2": ("sst2",), "imdb": ("imdb",), "semeval": ("semeval",), "tweeteval": ("tweeteval",)},
)
TASKS = {task.name: task for task in (SPAM_TASK, SENTIMENT)}
NOT_SPAM = tuple(name for name in SOURCES if name not in {"sms", "enron1"})
