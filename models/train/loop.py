"""Training and scoring on the model's device, in batches of similar lengths, in bfloat16 over float32 weights."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from transformers import BertForSequenceClassification

from models.train.rounding import rounded

REPORT = 100  # steps between two lines

Scores = npt.NDArray[np.float32]  # rows, labels
States = npt.NDArray[np.float16]  # rows, hidden size: output of the pooler, in (-1, 1)


@dataclass
class Lessons:
    """Texts, each with the distribution over labels that the model should learn.

    A label is masked out of a row if the row can't say anything about the label: a review never says neutral.
    """

    texts: list[str] = field(default_factory=list)
    targets: list[list[float]] = field(default_factory=list)
    masks: list[list[float]] = field(default_factory=list)  # 1: label counts, 0: label is left out of the softmax
    states: States | None = None  # pooled states of a teacher, which the model should learn to imitate

    def add(self, text: str, target: Sequence[float], mask: Sequence[float] | None = None) -> None:
        self.texts.append(text)
        self.targets.append(list(target))
        self.masks.append(list(mask) if mask else [1.0] * len(target))

    def some(self, share: float, rng: random.Random) -> Lessons:
        """A random share of the lessons, in order. 1 means all of them."""
        kept = sorted(rng.sample(range(len(self.texts)), round(share * len(self.texts))))
        return Lessons([self.texts[i] for i in kept], [self.targets[i] for i in kept], [self.masks[i] for i in kept])


@dataclass(frozen=True)
class Settings:
    learning_rate: float = 1e-4
    tokens: int = 3072  # a batch, padding included
    rows: int = 96
    warmup: float = 0.06
    weight_decay: float = 0.01
    rounded: float = 0.2  # share of the steps, the last ones, that run with simulated int8 arithmetic
    kept_as: torch.dtype = torch.float16  # type of the matrices in the folder that ships; simulated in those steps too
    seed: int = 7


def encode(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids with [CLS] and [SEP]. A longer text is cut to `max_length`, and keeps its [SEP]."""
    ids = [one.ids for one in tokenizer.encode_batch_fast(list(texts))]
    return [one if len(one) <= max_length else one[: max_length - 1] + one[-1:] for one in ids]


def train(
    model: BertForSequenceClassification,
    encoded: Sequence[Sequence[int]],
    lessons: Lessons,
    settings: Settings,
    epochs: float,
) -> None:
    """Train for `epochs` over the lessons with a linear schedule. Prints a line every REPORT steps."""
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    device = model.device
    targets, masks = torch.tensor(lessons.targets, device=device), torch.tensor(lessons.masks, device=device)
    plan: list[list[int]] = []
    for epoch in range(math.ceil(epochs)):
        batches = _batches(encoded, settings, rng)
        plan += batches[: round(len(batches) * min(1.0, epochs - epoch))]
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        fused=True,
    )
    warm = max(1, round(len(plan) * settings.warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, max(0.0, (len(plan) - step) / max(1, len(plan) - warm)))
    )
    model.train()
    started, total = time.monotonic(), torch.zeros((), device=device)
    for step, batch in enumerate(plan, 1):
        ids, attention = _tensors(encoded, batch, device)
        _choose_attention(model, ids)
        late = step > len(plan) * (1 - settings.rounded)
        with torch.autocast(device.type, torch.bfloat16), rounded(model, settings.kept_as, enabled=late):
            pooled = model.bert(input_ids=ids, attention_mask=attention).pooler_output
            logits = model.classifier(model.dropout(pooled))
        rows = torch.tensor(batch).to(device)
        loss = _loss(logits.float(), targets[rows], masks[rows])
        if lessons.states is not None:
            wanted = torch.from_numpy(lessons.states[batch]).to(device, torch.float32)
            loss = loss + functional.mse_loss(pooled.float(), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        total += loss.detach()
        if step % REPORT == 0 or step == len(plan):
            mean, spent = total / ((step - 1) % REPORT + 1), time.monotonic() - started
            print(f"step {step}/{len(plan)}  loss {mean:.4f}  {spent:.0f} s", flush=True)
            total.zero_()


def score(
    model: BertForSequenceClassification, encoded: Sequence[Sequence[int]], *, tokens: int = 8192, exact: bool = False
) -> Scores:
    """Logits of every row, in the rows' order. `exact`: compute in float32."""
    return score_with_states(model, encoded, tokens=tokens, exact=exact)[0]


def score_with_states(
    model: BertForSequenceClassification, encoded: Sequence[Sequence[int]], *, tokens: int = 8192, exact: bool = False
) -> tuple[Scores, States]:
    """Logits and pooled states of every row."""
    model.eval()
    logits = np.zeros((len(encoded), model.config.num_labels), dtype=np.float32)
    states = np.zeros((len(encoded), model.config.hidden_size), dtype=np.float16)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=not exact):
        for batch in _cut(order, encoded, tokens, 256):
            ids, attention = _tensors(encoded, batch, model.device)
            _choose_attention(model, ids)
            pooled = model.bert(input_ids=ids, attention_mask=attention).pooler_output
            states[batch] = pooled.half().cpu().numpy()
            logits[batch] = model.classifier(pooled).float().cpu().numpy()
    return logits, states


def _loss(logits: torch.Tensor, targets: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross entropy with soft targets over the labels that each row's mask allows."""
    logs = functional.log_softmax(logits.masked_fill(masks == 0, -30.0), dim=-1)
    return -(targets * logs * masks).sum(dim=-1).mean()


def _choose_attention(model: BertForSequenceClassification, ids: torch.Tensor) -> None:
    """Choose the faster attention on a CPU: the plain one is a third faster for short rows, the fused one for long."""
    if model.device.type == "cpu":
        model.set_attn_implementation("eager" if ids.shape[1] <= 192 else "sdpa")


def _tensors(
    encoded: Sequence[Sequence[int]], batch: Sequence[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    width = max(len(encoded[i]) for i in batch)
    ids = np.zeros((len(batch), width), dtype=np.int64)
    for row, i in enumerate(batch):
        ids[row, : len(encoded[i])] = encoded[i]
    attention = None if ids.all() else torch.from_numpy((ids != 0).astype(np.int64)).to(device)
    return torch.from_numpy(ids).to(device), attention


def _batches(encoded: Sequence[Sequence[int]], settings: Settings, rng: random.Random) -> list[list[int]]:
    """The batches of one epoch. Rows are shuffled, then sorted by length within stretches.

    So a batch is random, but its rows have similar lengths.
    """
    order = list(range(len(encoded)))
    rng.shuffle(order)
    batches: list[list[int]] = []
    for start in range(0, len(order), 4096):
        stretch = sorted(order[start : start + 4096], key=lambda i: len(encoded[i]))
        batches += _cut(stretch, encoded, settings.tokens, settings.rows)
    rng.shuffle(batches)
    return batches


def _cut(order: Sequence[int], encoded: Sequence[Sequence[int]], tokens: int, rows: int) -> list[list[int]]:
    batches: list[list[int]] = []
    batch: list[int] = []
    for i in order:
        if batch and (len(encoded[i]) * (len(batch) + 1) > tokens or len(batch) >= rows):
            batches.append(batch)
            batch = []
        batch.append(i)
    return [*batches, batch] if batch else batches
