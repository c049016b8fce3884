"""Figures of a finished folder, through the plain transformers loader in float32, on rows kept out of training."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from tokenizers import Tokenizer
from transformers import AutoModelForSequenceClassification

from models.train import augment
from models.train.data import HELD, Row, rows
from models.train.loop import Scores, encode
from models.train.sentiment import POLES
from models.train.spam import NOT_SPAM

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from models.train.task import Task

EVASION_SEED = 11


@dataclass(frozen=True)
class Figures:
    """One line of the results; a figure that means nothing for a set is None."""

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
    """The folder as any user would load it; long text is cut into windows whose probabilities are averaged."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.window = int(self.model.config.max_position_embeddings)

    def probabilities(self, texts: Sequence[str], pool: str = "truncate") -> Scores:
        encoded = encode(self.tokenizer, texts, 10**9 if pool == "window" else self.window)
        pieces, owners = _windows(encoded, self.window)
        out = np.zeros((len(pieces), self.model.config.num_labels), dtype=np.float32)
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                batch = order[start : start + 32]
                width = max(len(pieces[i]) for i in batch)
                ids = torch.zeros((len(batch), width), dtype=torch.long)
                for row, i in enumerate(batch):
                    ids[row, : len(pieces[i])] = torch.tensor(pieces[i])
                logits = self.model(input_ids=ids, attention_mask=(ids != 0).long()).logits
                out[batch] = logits.softmax(dim=-1).numpy()
        total = np.zeros((len(texts), out.shape[1]), dtype=np.float32)
        np.add.at(total, owners, out)
        return np.divide(total, np.bincount(owners, minlength=len(texts))[:, None], dtype=np.float32)


def _windows(encoded: Sequence[Sequence[int]], size: int) -> tuple[list[list[int]], np.ndarray]:
    """Windows of `size` tokens, [CLS] and [SEP] in each, neighbours sharing an eighth; and the row of every window."""
    pieces: list[list[int]] = []
    owners: list[int] = []
    for row, ids in enumerate(encoded):
        first, last, body = ids[0], ids[-1], list(ids[1:-1])
        room = size - 2
        step = room - room // 8
        for start in range(0, max(1, len(body) - room // 8), step):
            pieces.append([first, *body[start : start + room], last])
            owners.append(row)
    return pieces, np.array(owners)


def calibration_error(probabilities: Scores, labels: Sequence[int], bins: int = 15) -> float:
    """Expected calibration error of the winning label, equal-width bins."""
    best, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == np.array(labels)
    bucket = np.minimum((best * bins).astype(int), bins - 1)
    gaps = [abs(right[bucket == b].mean() - best[bucket == b].mean()) * (bucket == b).mean() for b in set(bucket)]
    return float(sum(gaps))


def labelled(classifier: Classifier, task: Task, name: str, held: Sequence[Row], pool: str = "truncate") -> Figures:
    labels = [task.index(row) for row in held]
    found = classifier.probabilities([row.text for row in held], pool)
    guess = found.argmax(axis=1)
    present = sorted(set(labels))
    return Figures(
        set=name,
        rows=len(held),
        accuracy=float(accuracy_score(labels, guess)),
        macro_f1=float(f1_score(labels, guess, labels=present, average="macro")),
        f1=tuple(float(f) for f in f1_score(labels, guess, labels=range(len(task.labels)), average=None)),
        ece=calibration_error(found, labels),
    )


def poles(classifier: Classifier, task: Task, name: str, held: Sequence[Row], pool: str = "truncate") -> Figures:
    """Negative against positive with neutral left out of the softmax."""
    labels = [task.index(row) for row in held]
    found = classifier.probabilities([row.text for row in held], pool) * np.array(POLES, dtype=np.float32)
    found /= found.sum(axis=1, keepdims=True)
    guess = found.argmax(axis=1)
    return Figures(
        set=f"{name}, neutral off",
        rows=len(held),
        accuracy=float(accuracy_score(labels, guess)),
        macro_f1=float(f1_score(labels, guess, average="macro")),
        ece=calibration_error(found, labels),
    )


def spam_figures(classifier: Classifier, task: Task, data: Path) -> list[Figures]:
    found: list[Figures] = []
    for name in task.sources:
        held = rows(data, name, HELD)
        found.append(labelled(classifier, task, name, held))
        spam = [row.text for row in held if row.label == "spam"]
        rng = random.Random(EVASION_SEED)
        for trick, apply in {"as it is": lambda text, _rng: text, **augment.EVASIONS}.items():
            hit = classifier.probabilities([apply(text, rng) for text in spam]).argmax(axis=1)
            found.append(Figures(set=f"{name} spam, {trick}", rows=len(spam), recall=float(hit.mean())))
    wrong = total = 0
    for name in NOT_SPAM:
        held = rows(data, name, HELD)
        hit = classifier.probabilities([row.text for row in held]).argmax(axis=1)
        wrong, total = wrong + int(hit.sum()), total + len(held)
        found.append(Figures(set=f"{name} (no spam)", rows=len(held), false_positives=float(hit.mean())))
    found.append(Figures(set="all files without spam", rows=total, false_positives=wrong / total))
    return found


def sentiment_figures(classifier: Classifier, task: Task, data: Path) -> list[Figures]:
    found: list[Figures] = []
    sentences = [row for row in rows(data, "sst2", HELD) if len(row.text.split()) >= 8]
    found.append(poles(classifier, task, "sst2 (8 words and more)", sentences))
    reviews = rows(data, "imdb", HELD)
    found += [poles(classifier, task, f"imdb, {pool}", reviews, pool) for pool in ("truncate", "window")]
    found += [labelled(classifier, task, name, rows(data, name, HELD)) for name in ("semeval", "tweeteval")]
    headlines = rows(data, "agnews", HELD)
    neutral = classifier.probabilities([row.text for row in headlines]).argmax(axis=1) == 1
    found.append(Figures(set="agnews, called neutral", rows=len(headlines), recall=float(neutral.mean())))
    return found


def measure(folder: Path, task: Task, data: Path) -> list[Figures]:
    classifier = Classifier(folder)
    return (spam_figures if task.name == "spam" else sentiment_figures)(classifier, task, data)
