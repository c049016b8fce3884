"""Simulates int8 arithmetic and storage in few bits during training, so that the student keeps its labels with them.

The rounding is that of ONNX Runtime's dynamic quantisation. Weights are symmetric, with one scale for each output
channel. Activations are asymmetric, with one range for each tensor, taken from the present batch. Gradients ignore the
rounding.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def rounded(model: nn.Module, kept_as: torch.dtype = torch.float16, *, enabled: bool = True) -> Iterator[None]:
    """Inside the `with` body, every linear layer computes with rounded weights and activations.

    Its weights, and the embeddings, are first rounded to the type `kept_as`.
    """
    kinds: dict[type[nn.Module], Callable[[nn.Module, torch.dtype], object]] = {
        nn.Linear: _rounded_linear,
        nn.Embedding: _rounded_embedding,
    }
    modules = [(module, kinds[type(module)]) for module in model.modules() if enabled and type(module) in kinds]
    for module, forward in modules:
        module.forward = forward(module, kept_as)  # an instance attribute hides the class's method
    try:
        yield
    finally:
        for module, _ in modules:
            del module.forward


def _rounded_embedding(table: nn.Module, kept_as: torch.dtype) -> object:
    def forward(ids: torch.Tensor) -> torch.Tensor:
        found = nn.Embedding.forward(cast("nn.Embedding", table), ids)
        return found + (found.to(kept_as).to(found.dtype) - found).detach()

    return forward


def _rounded_linear(module: nn.Module, kept_as: torch.dtype) -> object:
    layer = cast("nn.Linear", module)

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        weight = layer.weight
        with torch.no_grad():
            kept = weight.to(kept_as).to(weight.dtype)
            scale = kept.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / 127
            weight_error = (kept / scale).round().mul_(scale).sub_(weight)
            values = inputs.float()
            low, high = values.amin().clamp_max(0), values.amax().clamp_min(0)
            step = (high - low).clamp_min(1e-8) / 255
            zero = (-low / step).round()
            error = ((values / step).round() + zero).clamp_(0, 255).sub_(zero).mul_(step).sub_(values)
        return functional.linear(inputs + error.to(inputs.dtype), weight + weight_error, layer.bias)

    return forward
