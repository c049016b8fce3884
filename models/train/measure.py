"""Measures a finished folder on held-out rows, through the plain transformers loader, in float32."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import accuracy_score, f1_score
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from models.train import augment
from models.train.data import HELD, Row, load, near_copies, rows, whole_sentences
from models.train.loop import Scores, encode, score
from models.train.sentiment import NEGATIVE, NEUTRAL, POLES, POSITIVE
from models.train.spam import NOT_SPAM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from models.train.task import Task

EVASION_SEED = 11
EMOTIONS = {"joy": POSITIVE, "love": POSITIVE, "sadness": NEGATIVE, "anger": NEGATIVE, "fear": NEGATIVE}
"""The emotions of the set `emotion` as labels. The sentiment classifier never saw the set. Surprise is neither."""


@dataclass(frozen=True)
class Figures:
    """One line of the results. A figure that makes no sense for the set is None."""

    set: str
    rows: int
    accuracy: float | None = None
    macro_f1: float | None = None
    f1: tuple[float, ...] | None = None  # per label, in the model's order
    ece: float | None = None
    false_positives: float | None = None
    recall: float | None = None

    def plain(self) -> dict[str, object]:
        return {name: value for name, value in asdict(self).items() if value is not None}


class Classifier:
    """The folder loaded as any user would load it. `fast`: compute in bfloat16 instead of float32."""

    def __init__(self, folder: Path, *, fast: bool = False) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.window = int(self.model.config.max_position_embeddings)
        self.fast = fast

    def probabilities(self, texts: Sequence[str]) -> Scores:
        """Probabilities of each text's first window. Longer texts are cut."""
        return _softmax(self._logits(encode(self.tokenizer, texts, self.window)))

    def pooled(self, texts: Sequence[str]) -> Scores:
        """Probabilities of whole texts, from overlapping windows.

        The windows' logits are averaged. An average of probabilities would be too unsure.
        """
        pieces, owners = windows(encode(self.tokenizer, texts, 10**9), self.window)
        total = np.zeros((len(texts), self.model.config.num_labels), dtype=np.float32)
        np.add.at(total, owners, self._logits(pieces))
        return _softmax(np.divide(total, np.bincount(owners, minlength=len(texts))[:, None], dtype=np.float32))

    def _logits(self, encoded: Sequence[Sequence[int]]) -> Scores:
        return score(self.model, encoded, exact=not self.fast)


def _softmax(logits: Scores) -> Scores:
    return np.asarray(torch.tensor(logits).softmax(dim=-1).numpy(), dtype=np.float32)


def windows(encoded: Sequence[Sequence[int]], size: int) -> tuple[list[list[int]], npt.NDArray[np.int64]]:
    """Windows of `size` tokens, each with [CLS] and [SEP], and the row of every window. Neighbours share an eighth."""
    pieces: list[list[int]] = []
    owners: list[int] = []
    for row, ids in enumerate(encoded):
        first, last, body = ids[0], ids[-1], list(ids[1:-1])
        room = size - 2
        for start in range(0, max(1, len(body) - room // 8), room - room // 8):
            pieces.append([first, *body[start : start + room], last])
            owners.append(row)
    return pieces, np.array(owners, dtype=np.int64)


def calibration_error(probabilities: Scores, labels: Sequence[int], bins: int = 15) -> float:
    """Expected calibration error of the best label, with bins of equal width."""
    best, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == np.array(labels)
    bucket = np.minimum((best * bins).astype(int), bins - 1)
    gaps = [abs(right[bucket == b].mean() - best[bucket == b].mean()) * (bucket == b).mean() for b in set(bucket)]
    return float(sum(gaps))


def labelled(task: Task, name: str, held: Sequence[Row], found: Scores) -> Figures:
    labels = [task.index(row) for row in held]
    guess = found.argmax(axis=1)
    return Figures(
        set=name,
        rows=len(held),
        accuracy=float(accuracy_score(labels, guess)),
        macro_f1=float(f1_score(labels, guess, labels=sorted(set(labels)), average="macro")),
        f1=tuple(
            float(f) for f in f1_score(labels, guess, labels=range(len(task.labels)), average=None, zero_division=0.0)
        ),
        ece=calibration_error(found, labels),
    )


def poles(task: Task, name: str, held: Sequence[Row], found: Scores) -> Figures:
    """Figures for negative against positive, with neutral left out of the softmax."""
    labels = [task.index(row) for row in held]
    found = found * np.array(POLES, dtype=np.float32)
    found /= found.sum(axis=1, keepdims=True)
    guess = found.argmax(axis=1)
    return Figures(
        set=f"{name}, neutral off",
        rows=len(held),
        accuracy=float(accuracy_score(labels, guess)),
        macro_f1=float(f1_score(labels, guess, average="macro")),
        ece=calibration_error(found, labels),
    )


def unseen_emotions(classifier: Classifier, task: Task, data: Path) -> Figures:
    """Figures for a source that training never saw: emotions, read as negative or positive. Uses all its rows."""
    known = [row for row in load(data, "emotion") if row.label in EMOTIONS]
    held = [replace(row, label=task.labels[EMOTIONS[row.label]]) for row in known]
    return poles(task, "emotion, a source never seen", held, classifier.probabilities([row.text for row in held]))


def of_source(classifier: Classifier, task: Task, data: Path, name: str) -> list[Figures]:
    """The figures of one labelled source on its held-out rows."""
    held = rows(data, name, HELD)
    if name == "sst2":
        held = [row for row in held if len(row.text.split()) >= 8]
        found, sentences = classifier.probabilities([row.text for row in held]), whole_sentences(data)
        longest = [i for i, row in enumerate(held) if row.id in sentences]
        return [
            poles(task, "sst2 (8 words and more)", held, found),
            poles(task, "sst2, whole sentences", [held[i] for i in longest], found[longest]),
        ]
    texts = [row.text for row in held]
    if name == "imdb":
        cut, whole = classifier.probabilities(texts), classifier.pooled(texts)
        return [
            poles(task, "imdb, cut to one window", held, cut),
            poles(task, "imdb, windows pooled", held, whole),
            labelled(task, "imdb, windows pooled, three-way", held, whole),
        ]
    found = classifier.probabilities(texts)
    figures = [labelled(task, name, held, found)]
    if name == "enron1":
        figures.append(labelled(task, "enron1, windows pooled", held, classifier.pooled(texts)))
    copies = near_copies(data, name, set(task.sources) - {name, "sst2", "imdb"})
    fresh = [i for i, row in enumerate(held) if row.id not in copies]
    figures.append(labelled(task, f"{name}, no near-copies", [held[i] for i in fresh], found[fresh]))
    return figures


def evasion(classifier: Classifier, data: Path, name: str) -> list[Figures]:
    """Recall on held-out spam before and after each trick."""
    spam = [row.text for row in rows(data, name, HELD) if row.label == "spam"]
    found = []
    for trick, apply in {"as it is": lambda text, _rng: text, **augment.EVASIONS}.items():
        rng = random.Random(EVASION_SEED)
        hit = classifier.probabilities([apply(text, rng) for text in spam]).argmax(axis=1)
        found.append(Figures(set=f"{name} spam, {trick}", rows=len(spam), recall=float(hit.mean())))
    return found


def false_positives(classifier: Classifier, data: Path) -> list[Figures]:
    found: list[Figures] = []
    wrong = total = 0
    for name in NOT_SPAM:
        held = rows(data, name, HELD)
        hit = classifier.probabilities([row.text for row in held]).argmax(axis=1)
        wrong, total = wrong + int(hit.sum()), total + len(held)
        found.append(Figures(set=f"{name} (no spam)", rows=len(held), false_positives=float(hit.mean())))
    return [*found, Figures(set="all files without spam", rows=total, false_positives=wrong / total)]


def neutral_headlines(classifier: Classifier, data: Path) -> Figures:
    held = rows(data, "agnews", HELD)
    neutral = classifier.probabilities([row.text for row in held]).argmax(axis=1) == NEUTRAL
    return Figures(set="agnews, called neutral", rows=len(held), recall=float(neutral.mean()))


def measure(folder: Path, task: Task, data: Path, *, fast: bool = False) -> Iterator[Figures]:
    """Every figure of a task, one after the other."""
    classifier = Classifier(folder, fast=fast)
    for name in task.sources:
        yield from of_source(classifier, task, data, name)
    if task.name == "spam":
        for name in task.sources:
            yield from evasion(classifier, data, name)
        yield from false_positives(classifier, data)
    else:
        yield unseen_emotions(classifier, task, data)
        yield neutral_headlines(classifier, data)
