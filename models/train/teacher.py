"""The teacher: the whole pretrained encoder. It is trained first, and the small student learns from its scores.

Scores say more than labels: how sure the teacher is, and which other labels are likely. The teacher also scores texts
that nobody has labelled, so the student learns from them too. The teacher keeps the pretrained vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import BertForSequenceClassification

from models.train import loop
from models.train.loop import Lessons

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Teaching:
    """How a task's teacher is trained, and how the student learns from it."""

    unlabelled: Callable[[Path, int, frozenset[str]], list[str]]  # data, seed, sources left out
    epochs: float
    learning_rate: float = 1e-4
    trust: float = 0.5  # weight of the teacher's scores for a row that also has a label


def find_or_teach(
    whole: BertForSequenceClassification,
    teaching: Teaching,
    encoded: Sequence[Sequence[int]],
    lessons: Lessons,
    folder: Path | None,
) -> BertForSequenceClassification:
    """The whole pretrained encoder, trained on the lessons or found in `folder`. `encoded`: the lessons' tokens."""
    if folder and (folder / "config.json").exists():
        return BertForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(whole.device)
    print("the teacher", flush=True)
    settings = loop.Settings(learning_rate=teaching.learning_rate, rounded=0.0)
    loop.train(whole, encoded, lessons, settings, teaching.epochs)
    if folder:
        whole.save_pretrained(folder)
    return whole


def soften(
    teacher: BertForSequenceClassification,
    encoded: Sequence[Sequence[int]],
    lessons: Lessons,
    unlabelled: Sequence[str],
    trust: float,
) -> Lessons:
    """The student's lessons: first the labelled rows, then the unlabelled texts.

    The target of a labelled row is a weighted mean of its label and the teacher's scores. The target of an unlabelled
    text is the teacher's scores. `encoded`: the teacher's tokens of both, in the same order.
    """
    scores, states = loop.score_with_states(teacher, encoded)
    logits = torch.tensor(scores)
    labelled = len(lessons.texts)
    masks = torch.tensor(lessons.masks)
    targets = torch.tensor(lessons.targets)
    own = logits[:labelled].masked_fill(masks == 0, -torch.inf).softmax(dim=-1)
    mixed = (1 - trust) * targets + trust * own
    free = logits[labelled:].softmax(dim=-1)
    return Lessons(
        texts=[*lessons.texts, *unlabelled],
        targets=[*mixed.tolist(), *free.tolist()],
        masks=[*lessons.masks, *torch.ones_like(free).tolist()],
        states=states,
    )
