"""The sentiment classifier: reviews know two poles, tweets three."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from models.train.data import TRAIN
from models.train.linear import out_of_fold
from models.train.loop import Lessons
from models.train.shrink import Shape
from models.train.task import Task, lesson_rows, unseen

if TYPE_CHECKING:
    from pathlib import Path

NEGATIVE, NEUTRAL, POSITIVE = range(3)
POLES = (1.0, 0.0, 1.0)  # the row knows of negative and positive only
PASSES = {"sst2": 2, "semeval": 2, "tweeteval": 2}
LABELLED = ("sst2", "imdb", "semeval", "tweeteval")
REVIEWS = 12_000  # windows, one of a review: long text is dear
WINDOW_WORDS = 110
TRUST = 0.5  # how much of a review window's target is the review's label; the rest is the linear teacher's score
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


def lessons(folder: Path, part: str, seed: int, without: frozenset[str]) -> Lessons:
    rng = random.Random(seed)
    found = Lessons()
    banned = unseen(folder, (*LABELLED, "goemotions")) if part == TRAIN else frozenset()
    for name in LABELLED:
        if name in without:
            continue
        if name == "imdb":
            _reviews(found, folder, part, rng, banned)
            continue
        for row in lesson_rows(folder, name, part, banned):
            short = name == "sst2" and len(row.text.split()) < 8
            target = _sure(TASK.index(row))
            for _ in range(PASSES[name] if part == TRAIN else 1):
                found.add(row.text, target, POLES if short else None)
    if part == TRAIN:
        _moods(found, folder, rng, banned)
    return found


def _sure(pole: int, sureness: float = 1.0) -> list[float]:
    rest = (1 - sureness) / 2
    return [sureness if pole == one else rest for one in range(3)]


def _reviews(found: Lessons, folder: Path, part: str, rng: random.Random, banned: frozenset[str]) -> None:
    """Windows of reviews; in training, targets are softened by a linear model that never saw the review."""
    own = list(lesson_rows(folder, "imdb", part, banned))
    if part != TRAIN:
        for row in own:
            found.add(row.text, _sure(TASK.index(row)))
        return
    labels = [int(row.label == "positive") for row in own]
    windows = [_window(row.text, rng) for row in own]
    scores = out_of_fold([row.text for row in own], labels, windows)
    for i in rng.sample(range(len(own)), min(len(own), REVIEWS)):
        positive = TRUST * labels[i] + (1 - TRUST) * float(scores[i, 1])
        agreed = abs(positive - labels[i]) < 0.3
        found.add(windows[i], [1 - positive, 0.0, positive], None if agreed else POLES)


def _window(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    starts = [*range(0, max(1, len(words) - WINDOW_WORDS), WINDOW_WORDS), max(0, len(words) - WINDOW_WORDS)]
    start = rng.choice(starts)
    return " ".join(words[start : start + WINDOW_WORDS])


def _moods(found: Lessons, folder: Path, rng: random.Random, banned: frozenset[str]) -> None:
    """Comments whose emotions all lie on one side, as a weaker voice."""
    clear = []
    for row in lesson_rows(folder, "goemotions", TRAIN, banned):
        poles = {MOOD_OF.get(mood, -1) for mood in row.label.replace("|", ",").split(",")}
        if len(poles) == 1 and -1 not in poles:
            clear.append((row.text, poles.pop()))
    for text, pole in rng.sample(clear, min(len(clear), MOOD_ROWS)):
        found.add(text, _sure(pole, 0.8))


TASK = Task(
    name="sentiment",
    labels=("negative", "neutral", "positive"),
    shape=Shape(layers=(0, 1, 3, 5), intermediate=768, vocabulary=6000, positions=256),
    max_length=224,
    learning_rate=2e-4,
    lessons=lessons,
    sources=LABELLED,
)
