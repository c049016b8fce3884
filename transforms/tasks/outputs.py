"""What PyTorch runs for a task: a loaded model of transformers, and what is made of its output on the device.

Each module has the same inputs, int64 [rows, tokens] each: input_ids; attention_mask, None if nothing is padded;
token_type_ids, None for a model that needs none. Each returns one tensor.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tagstream.schemas.errors import ModelError


class Outputs(torch.nn.Module):  # type: ignore[misc]
    """See the module. `model`: what runs first, a model of transformers or another of these modules."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.takes = set(inspect.signature(model.forward).parameters)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What `pick` takes from the model's output."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: tensor for name, tensor in given.items() if tensor is not None and name in self.takes}
        return self.pick(self.model(**inputs), input_ids, attention_mask)

    def pick(self, output: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The tensor that the task needs. `output`: of the model."""
        raise NotImplementedError


class Logits(Outputs):
    """The model's logits: [rows, labels] of a sequence classifier, [rows, tokens, labels] of a token classifier."""

    def pick(self, output: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """See the class."""
        logits: torch.Tensor = output.logits
        return logits


class StartsAndEnds(Outputs):
    """Logits of a question-answering model, [rows, tokens, 2]: that an answer starts at a token, and that it ends."""

    def pick(self, output: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """See the class."""
        return torch.stack([output.start_logits, output.end_logits], dim=-1)


class SentenceVectors(Outputs):
    """One vector for each row: the model, and the modules of sentence-transformers after it."""

    def __init__(self, model: Any, steps: Iterable[tuple[str, dict[str, Any], Path | None]]) -> None:
        """`steps`: of each module the kind, its settings, and the file of its weights, if it has any."""
        super().__init__(model)
        dtype = next(model.parameters()).dtype
        self.steps = torch.nn.ModuleList([_step(kind, settings, file).to(dtype) for kind, settings, file in steps])

    def pick(self, output: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Float [rows, dimensions]."""
        found: torch.Tensor = output.last_hidden_state
        mask = torch.ones_like(ids) if mask is None else mask
        for step in self.steps:
            found = step(found, mask) if isinstance(step, Pooling) else step(found)
        return found


class Similarities(Outputs):
    """How near each row is to some texts: their cosines times `scale`, [rows, texts]."""

    def __init__(self, vectors: SentenceVectors, texts: list[dict[str, Any]], scale: float) -> None:
        """`texts`: the model's inputs for each, int64 [1, tokens]."""
        super().__init__(vectors.eval())
        self.scale = scale
        with torch.inference_mode():
            device = next(vectors.parameters()).device
            found = [
                vectors(**{name: torch.from_numpy(array).to(device) for name, array in one.items()}) for one in texts
            ]
        self.register_buffer("texts", torch.nn.functional.normalize(torch.cat(found), dim=-1).clone())

    def pick(self, output: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """See the class."""
        return torch.nn.functional.normalize(output, dim=-1) @ self.texts.T * self.scale


class NewTokens(torch.nn.Module):  # type: ignore[misc]
    """The ids of the tokens that the model writes, int64 [rows, new tokens], by the `generate` of transformers."""

    def __init__(self, model: Any, tokenizer: Any, *, most: int, stop: tuple[str, ...], first: int | None) -> None:
        """`tokenizer`: of transformers. `most`: new tokens. `first`: the token that the model must begin with."""
        super().__init__()
        self.model = model
        settings = copy.deepcopy(model.generation_config)
        settings.update(do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=most, use_cache=True)
        settings.max_length = None
        if first is not None:
            settings.forced_bos_token_id = first
        if settings.pad_token_id is None:
            ends = settings.eos_token_id
            settings.pad_token_id = (ends[0] if isinstance(ends, list) else ends) or 0
        self.settings = settings
        self.stopping = {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
        self.writes_on = not model.config.is_encoder_decoder
        """The output repeats the input, and goes on."""

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See the class."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        found = self.model.generate(
            input_ids=input_ids, attention_mask=mask, generation_config=self.settings, **self.stopping
        )
        return found[:, input_ids.shape[1] if self.writes_on else 1 :]


class Pooling(torch.nn.Module):  # type: ignore[misc]
    """Vectors of tokens [rows, tokens, d] to one for each row; several modes give longer vectors."""

    def __init__(self, modes: list[str]) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`mask`: int64 [rows, tokens], 1 for what is no padding."""
        return torch.cat([_POOLED[mode](tokens, mask) for mode in self.modes], dim=-1)


def _mean(tokens: torch.Tensor, mask: torch.Tensor, power: float = 1.0) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    total = (tokens * weights).sum(dim=1, dtype=torch.float32)
    return (total / weights.sum(dim=1, dtype=torch.float32).clamp(min=1e-9) ** power).to(tokens.dtype)


def _max(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return tokens.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).max(dim=1).values


def _weighted(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = (mask.cumsum(dim=1) * mask).unsqueeze(-1).to(torch.float32)
    return ((tokens * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)).to(tokens.dtype)


def _at(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return tokens.gather(1, index.view(-1, 1, 1).expand(-1, 1, tokens.shape[-1])).squeeze(1)


def _first(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _at(tokens, mask.argmax(dim=1))


def _last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _at(tokens, mask.shape[1] - 1 - mask.flip(1).argmax(dim=1))


_POOLED: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": functools.partial(_mean, power=0.5),
    "weightedmean": _weighted,
    "lasttoken": _last,
}


class _Dense(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, weights: dict[str, torch.Tensor], activation: str, *, residual: bool) -> None:
        super().__init__()
        size, before = weights["linear.weight"].shape
        self.linear = torch.nn.Linear(before, size, bias="linear.bias" in weights)
        self.adds = residual
        if residual and size != before:
            self.residual = torch.nn.Linear(before, size, bias=False)
        self.load_state_dict(weights)
        self.activation = _activation(activation)

    def forward(self, found: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.activation(self.linear(found))
        if self.adds:
            out = out + (self.residual(found) if hasattr(self, "residual") else found)
        return out


class _Normalize(torch.nn.Module):  # type: ignore[misc]
    def forward(self, found: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(found, p=2, dim=-1)


def _step(kind: str, settings: dict[str, Any], file: Path | None) -> torch.nn.Module:
    if kind == "Pooling":
        return Pooling(settings["modes"])
    if kind == "Normalize" or file is None:
        return _Normalize()
    weights = load_file(file)
    if kind == "LayerNorm":
        norm = torch.nn.LayerNorm(weights["norm.weight"].shape[0])
        norm.load_state_dict({key.removeprefix("norm."): value for key, value in weights.items()})
        return norm
    activation = str(settings.get("activation_function") or "torch.nn.modules.activation.Tanh")
    return _Dense(weights, activation, residual=bool(settings.get("use_residual")))


def _activation(path: str) -> torch.nn.Module:
    kind = getattr(torch.nn, path.rpartition(".")[2], None)
    if not path.startswith("torch.nn.") or not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        raise ModelError(f"a dense layer with the activation {path}, which is none of torch.nn")
    return kind()
