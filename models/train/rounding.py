"""Simulated int8 arithmetic, so that a student learns to give the same label with it.

As ONNX Runtime's dynamic quantisation does it: weights symmetric, one scale an output channel; activations asymmetric,
one range a tensor, taken from the batch at hand. Gradients pass the rounding as if it were not there.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def rounded(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Inside, every linear layer of `model` computes with rounded weights and activations."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)] if enabled else []
    for layer in layers:
        layer.forward = _rounded_forward(layer)  # an instance attribute hides the class's method
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _rounded_forward(layer: nn.Linear) -> object:
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        weight = layer.weight
        with torch.no_grad():
            scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / 127
            weight_error = (weight / scale).round().mul_(scale).sub_(weight)
            values = inputs.float()
            low, high = values.amin().clamp_max(0), values.amax().clamp_min(0)
            step = (high - low).clamp_min(1e-8) / 255
            zero = (-low / step).round()
            error = ((values / step).round() + zero).clamp_(0, 255).sub_(zero).mul_(step).sub_(values)
        return functional.linear(inputs + error.to(inputs.dtype), weight + weight_error, layer.bias)

    return forward
