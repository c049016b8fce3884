"""Writes a trained student to the folder that ships: temperature folded into the head, small weights, tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from models.train.tokenizer import save

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer
    from transformers import BertForSequenceClassification

    from models.train.loop import Lessons, Scores


def fit_temperature(logits: Scores, lessons: Lessons) -> float:
    """The divisor of the logits that makes the labels of the tune rows most likely.

    Found on a grid, which is exact enough and can't diverge.
    """
    scores = torch.tensor(logits).masked_fill(torch.tensor(lessons.masks) == 0, -1e4)
    labels = torch.tensor(lessons.targets).argmax(dim=-1)
    grid = np.geomspace(0.3, 4.0, 200)
    losses = [float(torch.nn.functional.cross_entropy(scores / t, labels)) for t in grid]
    return float(grid[int(np.argmin(losses))])


def stored(model: BertForSequenceClassification, kept_as: torch.dtype) -> dict[str, torch.Tensor]:
    """The weights that the folder stores: matrices in the type `kept_as`, the head and all vectors in float16.

    The model's own weights are rounded to them, so that its measured figures hold for the folder.
    """
    weights = {}
    for name, weight in model.state_dict().items():
        small = weight.ndim == 2 and not name.startswith("classifier.")
        weights[name] = weight.to(kept_as if small else torch.float16)
        weight.copy_(weights[name])
    return weights


def export(
    model: BertForSequenceClassification,
    tokenizer: Tokenizer,
    temperature: float,
    folder: Path,
    max_length: int,
    kept_as: torch.dtype,
) -> None:
    """Write a plain Hugging Face folder. The head includes the temperature, so every loader gets calibrated scores.

    The config says float32, so that a plain loader computes in float32, whatever type the matrices are stored in.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        model.classifier.weight.div_(temperature)
        model.classifier.bias.div_(temperature)
    model.config.calibration = {"temperature": round(temperature, 4), "folded_into": "classifier"}
    model.save_pretrained(folder)
    save_file(stored(model, kept_as), folder / "model.safetensors", metadata={"format": "pt"})
    save(tokenizer, folder, max_length)
    for path in folder.iterdir():
        path.chmod(0o644)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
