"""`torch.compile` for a stream of micro-batches: all graphs are made before the first row.

A graph holds for any number of rows from 2 on; PyTorch makes one of its own for a single row, so the caller adds one.

On a CPU there is one for each of a few lengths, of the whole model. The attention mask is always given, for a graph
without it would be another one. On a GPU there is one of the block that the model repeats, for any length, with a mask
and without; one thread at a time calls a replica's.
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
"""Most of them for one function: beyond PyTorch's own limit of 8 it would run as it is, and only a log would say so."""


def length_buckets(max_length: int) -> tuple[int, ...]:
    """Ascending lengths to pad to, the last one `max_length`: steps of 3/2 and 4/3, 11 of them at most.

    Padding comes to about 18 % with lognormal lengths of median 30 and mean 46 tokens (5 to 10 % without buckets).
    """
    lengths, power = [max_length], max(SHORTEST, 1 << max(0, (max_length - 1).bit_length() - 5))
    while power < max_length:
        lengths += [step for step in (power, power * 3 // 2) if step < max_length]
        power *= 2
    return tuple(sorted(set(lengths)))


class CompiledModel:
    """For a CPU: a model with any number of rows, and a compiled function for each length."""

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
    """For a GPU: the model itself, its repeated blocks (or all of it, if it has none) compiled where they are."""
    import torch

    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # of keys and values, for tokens that nobody will ask for
    for blocks in _repeated(model, torch.nn.ModuleList) or [[model]]:
        forward = _alone(type(blocks[0]).forward)
        for block in blocks:
            block.forward = torch.compile(MethodType(forward, block), dynamic=True)
    return model


def _repeated(module: Any, list_type: Any) -> list[list[Any]]:
    """The outermost lists of several modules of one type."""
    found: list[list[Any]] = []
    for child in module.children():
        blocks = list(child) if isinstance(child, list_type) else []
        alike = len(blocks) > 1 and len({type(block) for block in blocks}) == 1
        found += [blocks] if alike and not isinstance(blocks[0], list_type) else _repeated(child, list_type)
    return found


def _alone(function: FunctionType) -> FunctionType:
    """The same function, whose graphs no other has a share in.

    PyTorch keeps graphs with the code object, in a list that a thread moves the graph it found to the front of;
    another thread that searches the list then misses its own and compiles it anew, in the middle of a stream.
    """
    code, closure = function.__code__.replace(), function.__closure__
    alone = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    alone.__kwdefaults__ = function.__kwdefaults__
    return alone


def every_length(longest: int) -> list[dict[str, Array]]:
    """Inputs that make all graphs of `compile_blocks`, whose texts have at most `longest` tokens.

    With a mask they differ by the powers of 2 that divide the length, in some models by whether a window is full.
    """
    inputs = []
    for length in sorted({min(length, longest) for length in (SHORTEST, SHORTEST + 1, SHORTEST + 4, longest)}):
        ids = np.ones((WARM_UP_ROWS, length), np.int64)
        inputs += [{"input_ids": ids, "attention_mask": np.where(np.arange(length) + 1 < length, ids, 0)}]
        inputs += [{"input_ids": ids}]
    return inputs


def each_length(lengths: tuple[int, ...]) -> list[dict[str, Array]]:
    """Inputs that make all graphs of `CompiledModel`."""
    ones = [np.ones((WARM_UP_ROWS, length), np.int64) for length in lengths]
    return [{"input_ids": ids, "attention_mask": ids} for ids in ones]


def warm_up(replicas: list[Replica], inputs: list[dict[str, Array]], threads: int, name: str) -> None:
    """Compile every graph of every replica. Raises ModelError.

    In a thread of its own with as many `threads` as a pass will have: graphs hold for one number of threads.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="compile") as thread:
        try:
            thread.submit(_compile_all, replicas, inputs, threads).result()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{name}: torch.compile failed: {type(error).__name__}: {reason}. It needs a C++ compiler (g++, or "
                "what $CXX names) for a CPU, a C compiler for a GPU; without backend.compile the model runs as it is"
            ) from error


def _compile_all(replicas: list[Replica], inputs: list[dict[str, Array]], threads: int) -> None:
    import torch
    from torch._dynamo import config

    torch.set_num_threads(threads)
    with config.patch(recompile_limit=GRAPHS):
        for replica in replicas:
            for one in inputs:
                replica.logits(one)
