"""`torch.compile` for a stream of micro-batches. All graphs are compiled before the first row.

A graph serves any number of rows from 2 on. For a single row PyTorch would compile another graph, so the caller adds
a second row.

On a CPU, the whole model is compiled once for each of a few lengths. Every call passes an attention mask, because a
call without one would need another graph. On a GPU, only the block that the model repeats is compiled, for any length,
with a mask and without. Only one thread at a time may call a GPU replica's graphs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from tagstream.schemas.errors import ModelError
from tagstream.transforms.inference.backends.replica import Replica

Array = np.ndarray
SHORTEST = 16
WARM_UP_ROWS = 8
MOST_ROWS = 4096
GRAPHS = 64
"""Limit of graphs for one function. Beyond PyTorch's default of 8, a function silently runs uncompiled."""


def length_buckets(max_length: int) -> tuple[int, ...]:
    """The lengths to pad to, ascending up to `max_length`, in steps of 3/2 and 4/3. There are at most 11.

    With lognormal lengths of median 30 and mean 46 tokens, padding is about 18 %; without buckets it is 5 to 10 %.
    """
    lengths, power = [max_length], max(SHORTEST, 1 << max(0, (max_length - 1).bit_length() - 5))
    while power < max_length:
        lengths += [step for step in (power, power * 3 // 2) if step < max_length]
        power *= 2
    return tuple(sorted(set(lengths)))


class CompiledModel:
    """For a CPU: one compiled function for each length, which takes any number of rows from 2 on."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._of_length: dict[int, Any] = {}

    def __call__(self, **inputs: Any) -> Any:
        from torch._dynamo import mark_dynamic

        for tensor in inputs.values():
            mark_dynamic(tensor, 0, min=2, max=MOST_ROWS)
        length = inputs["input_ids"].shape[1]
        if length not in self._of_length:
            self._of_length[length] = self._compile()
        return self._of_length[length](**inputs)

    def _compile(self) -> Any:
        import torch

        model = self._model

        def forward(**inputs: Any) -> Any:
            return model(**inputs)

        return torch.compile(_alone(forward), fullgraph=True, dynamic=False)  # type: ignore[arg-type]


def compile_blocks(model: Any) -> Any:
    """For a GPU: compile the model's repeated blocks in place, or the whole model if it has none. Returns the model."""
    import torch

    for blocks in _repeated(model, torch.nn.ModuleList) or [[model]]:
        forward = _alone(type(blocks[0]).forward)
        for block in blocks:
            block.forward = torch.compile(MethodType(forward, block), dynamic=True)
    return model


def _repeated(module: Any, list_type: Any) -> list[list[Any]]:
    """The outermost module lists that hold several modules of the same type."""
    found: list[list[Any]] = []
    for child in module.children():
        blocks = list(child) if isinstance(child, list_type) else []
        alike = len(blocks) > 1 and len({type(block) for block in blocks}) == 1
        found += [blocks] if alike and not isinstance(blocks[0], list_type) else _repeated(child, list_type)
    return found


def _alone(function: FunctionType) -> FunctionType:
    """A copy of the function with a code object of its own, so that it shares no list of graphs with other functions.

    PyTorch keeps a list of graphs with each code object. A thread moves the graph that it finds to the front of the
    list. Another thread that is searching the list can then miss its graph and compile it again, in the middle of a
    stream.
    """
    code, closure = function.__code__.replace(), function.__closure__
    alone = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    alone.__kwdefaults__ = function.__kwdefaults__
    return alone


def every_length(longest: int) -> list[dict[str, Array]]:
    """Inputs that trigger every graph of `compile_blocks`. `longest`: the longest sequence, in tokens.

    With a mask, graphs differ by the powers of 2 that divide the length; in some models also by whether the sequence
    fills the model's window.
    """
    inputs = []
    for length in sorted({min(length, longest) for length in (SHORTEST, SHORTEST + 1, SHORTEST + 4, longest)}):
        ids = np.ones((WARM_UP_ROWS, length), np.int64)
        inputs += [{"input_ids": ids, "attention_mask": np.where(np.arange(length) + 1 < length, ids, 0)}]
        inputs += [{"input_ids": ids}]
    return inputs


def each_length(lengths: tuple[int, ...]) -> list[dict[str, Array]]:
    """Inputs that trigger every graph of `CompiledModel`."""
    ones = [np.ones((WARM_UP_ROWS, length), np.int64) for length in lengths]
    return [{"input_ids": ids, "attention_mask": ids} for ids in ones]


def warm_up(replicas: list[Replica], inputs: list[dict[str, Array]], threads: int, name: str) -> None:
    """Compile every graph of every replica. Raises ModelError.

    `threads`: PyTorch threads of each pass. A graph is valid only for the number of threads with which it was
    compiled, so compiling happens in a new thread where that number can be set.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="compile") as thread:
        try:
            thread.submit(_compile_all, replicas, inputs, threads).result()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{name}: torch.compile failed: {type(error).__name__}: {reason}. It needs a C++ compiler (g++ or "
                "$CXX) for a CPU, a C compiler for a GPU. Remove backend.compile to run the model uncompiled"
            ) from error


def _compile_all(replicas: list[Replica], inputs: list[dict[str, Array]], threads: int) -> None:
    import torch
    from torch._dynamo import config

    torch.set_num_threads(threads)
    with config.patch(recompile_limit=GRAPHS):
        for replica in replicas:
            for one in inputs:
                replica.run(one)
