"""The recipe's description of a classifier, and helpers for collecting its lessons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from models.train.data import HELD, Row, normal_form, rows

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from models.train.loop import Lessons
    from models.train.shrink import Shape
    from models.train.teacher import Teaching

T = TypeVar("T")


@dataclass(frozen=True)
class Task:
    name: str
    labels: tuple[str, ...]
    encoder: Callable[[], Path]  # folder of the pretrained encoder
    shape: Shape
    max_length: int  # tokens of a training row
    learning_rate: float
    epochs: float
    lessons: Callable[[Path, str, int, frozenset[str]], Lessons]  # data, part, seed, sources left out
    sources: tuple[str, ...]  # labelled sources; each is measured
    sample: int = 30_000  # how many texts are used to choose the vocabulary
    teaching: Teaching | None = None  # without it the student learns from labels alone

    def index(self, row: Row) -> int:
        return self.labels.index(row.label)


def at_most(rng: random.Random, count: int, found: list[T]) -> list[T]:
    """A random sample of `count`, or all in random order if there are no more."""
    return rng.sample(found, min(len(found), count))


def unseen(folder: Path, names: tuple[str, ...]) -> frozenset[str]:
    """Normal forms of all held-out rows.

    Files hold out different shares, so a held-out text may be a training row of another file. Its normal form tells.
    """
    return frozenset(normal_form(row.text) for name in names for row in rows(folder, name, HELD))


def lesson_rows(folder: Path, name: str, part: str, banned: frozenset[str]) -> Iterator[Row]:
    """The rows of a part, without copies of texts that another file holds out."""
    for row in rows(folder, name, part):
        if name == "sst2" or normal_form(row.text) not in banned:
            yield row
