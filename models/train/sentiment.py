"""The sentiment classifier. Reviews are negative or positive; tweets may be neutral too."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING

import torch

from models.train import encoder
from models.train.data import TRAIN
from models.train.loop import Lessons
from models.train.shrink import Shape
from models.train.task import Task, at_most, lesson_rows, unseen
from models.train.teacher import Teaching

if TYPE_CHECKING:
    from pathlib import Path

NEGATIVE, NEUTRAL, POSITIVE = range(3)
POLES = (1.0, 0.0, 1.0)  # mask for a row that can only be negative or positive
LABELLED = ("sst2", "imdb", "semeval", "tweeteval")
REVIEWS = 14_000  # windows, one for each review, because long texts are expensive
WINDOW_WORDS = 110
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
# Text for the teacher to score: windows of the other reviews, sentences of all, comments, phrases with other words.
MORE_REVIEWS, SENTENCES, COMMENTS, REMIXED = 3_000, 60_000, 10_000, 150_000
MOODS = {
    NEGATIVE: [
        "anger",
        "annoyance",
        "disappointment",
        "disapproval",
        "disgust",
        "embarrassment",
        "grief",
        "remorse",
        "sadness",
        "fear",
    ],
    NEUTRAL: ["neutral"],
    POSITIVE: [
        "admiration",
        "amusement",
        "excitement",
        "gratitude",
        "joy",
        "love",
        "optimism",
        "pride",
        "relief",
        "caring",
        "approval",
    ],
}
MOOD_OF = {mood: pole for pole, moods in MOODS.items() for mood in moods}
MOOD_ROWS = 12_000
HEADLINES = 1_500  # news tells what happened, without the readers' feelings


def lessons(folder: Path, part: str, seed: int, without: frozenset[str]) -> Lessons:
    rng = random.Random(seed)
    found = Lessons()
    banned = _banned(folder) if part == TRAIN else frozenset()
    for name in LABELLED:
        if name in without:
            continue
        if name == "imdb":
            _reviews(found, folder, part, rng, banned)
            continue
        for row in lesson_rows(folder, name, part, banned):
            short = name == "sst2" and len(row.text.split()) < 8
            found.add(row.text, _sure(TASK.index(row)), POLES if short else None)
    if part == TRAIN:
        _moods(found, folder, rng, banned)
        _headlines(found, folder, rng, banned)
    return found


def unlabelled(folder: Path, seed: int, without: frozenset[str]) -> list[str]:
    """Texts of the training part for the teacher to score: short and long ones, about films and other topics."""
    rng = random.Random(seed)
    banned = _banned(folder)
    found = at_most(rng, COMMENTS, [row.text for row in lesson_rows(folder, "goemotions", TRAIN, banned)])
    if "imdb" not in without:
        own = [row.text.replace("<br />", " ") for row in lesson_rows(folder, "imdb", TRAIN, banned)]
        found += [_window(text, rng) for text in at_most(rng, MORE_REVIEWS, own)]
        sentences = [one for text in own for one in SENTENCE_END.split(text) if 4 <= len(one.split()) <= 40]
        found += at_most(rng, SENTENCES, sentences)
    if "sst2" not in without:
        phrases = [row.text.split() for row in lesson_rows(folder, "sst2", TRAIN, banned)]
        found += [_remixed(rng.choice(phrases), phrases, rng) for _ in range(REMIXED)]
    return found


def _remixed(words: list[str], phrases: list[list[str]], rng: random.Random) -> str:
    """A phrase with some words replaced, or its beginning with the end of another phrase. The teacher will label it."""
    if rng.random() < 0.3:
        other = rng.choice(phrases)
        words = words[: rng.randint(1, len(words))] + other[rng.randrange(len(other)) :]
    luck = [(word, rng.random()) for word in words]
    return " ".join(
        rng.choice(rng.choice(phrases)) if number < 0.15 else word for word, number in luck if number < 0.92
    )


def _banned(folder: Path) -> frozenset[str]:
    return unseen(folder, (*LABELLED, "goemotions", "agnews"))


def _sure(pole: int, sureness: float = 1.0) -> list[float]:
    rest = (1 - sureness) / 2
    return [sureness if pole == one else rest for one in range(3)]


def _reviews(found: Lessons, folder: Path, part: str, rng: random.Random, banned: frozenset[str]) -> None:
    """Add reviews: one window of each for training, whole reviews otherwise."""
    own = list(lesson_rows(folder, "imdb", part, banned))
    if part == TRAIN:
        own = at_most(rng, REVIEWS, own)
    for row in own:
        found.add(_window(row.text, rng) if part == TRAIN else row.text, _sure(TASK.index(row)))


def _window(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    starts = [*range(0, max(1, len(words) - WINDOW_WORDS), WINDOW_WORDS), max(0, len(words) - WINDOW_WORDS)]
    start = rng.choice(starts)
    return " ".join(words[start : start + WINDOW_WORDS])


def _moods(found: Lessons, folder: Path, rng: random.Random, banned: frozenset[str]) -> None:
    """Add comments whose emotions are all negative or all positive, as less certain labels."""
    clear = []
    for row in lesson_rows(folder, "goemotions", TRAIN, banned):
        poles = {MOOD_OF.get(mood, -1) for mood in row.label.replace("|", ",").split(",")}
        if len(poles) == 1 and -1 not in poles:
            clear.append((row.text, poles.pop()))
    for text, pole in at_most(rng, MOOD_ROWS, clear):
        found.add(text, _sure(pole, 0.8))


def _headlines(found: Lessons, folder: Path, rng: random.Random, banned: frozenset[str]) -> None:
    """Add news as less certain examples of neutral, because news is mostly neutral, but not always."""
    for row in at_most(rng, HEADLINES, list(lesson_rows(folder, "agnews", TRAIN, banned))):
        found.add(row.text, _sure(NEUTRAL, 0.8))


TASK = Task(
    name="sentiment",
    labels=("negative", "neutral", "positive"),
    encoder=encoder.e5,
    shape=Shape((0, 1, 2, 3), intermediate=512, vocabulary=26_000, positions=256, kept_as=torch.float8_e4m3fn),
    max_length=224,
    learning_rate=3e-4,
    epochs=1.8,
    lessons=lessons,
    sources=LABELLED,
    sample=60_000,
    teaching=Teaching(unlabelled, epochs=1.0, trust=0.8),
)
