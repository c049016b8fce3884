"""`torch.compile` for a stream of micro-batches: one graph for each of a few lengths, all made before the first row.

A graph holds for any number of rows from 2 on; PyTorch makes one of its own for a single row, so the caller adds one.
The attention mask is always given, for a graph without it would be another one.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from schemas.errors import ModelError
from transforms.backends.replica import Replica

SHORTEST = 16
WARM_UP_ROWS = 8
MOST_ROWS = 4096
NO_LIMIT = 1 << 16


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
    """A model whose batch dimension is dynamic and whose length is not."""

    def __init__(self, model: Any) -> None:
        import torch

        self._model = torch.compile(model, fullgraph=True, dynamic=False)

    def __call__(self, **inputs: Any) -> Any:
        from torch._dynamo import mark_dynamic

        for tensor in inputs.values():
            mark_dynamic(tensor, 0, min=2, max=MOST_ROWS)
        return self._model(**inputs)


def warm_up(replicas: list[Replica], lengths: tuple[int, ...], threads: int, name: str) -> None:
    """Compile every graph of every replica. Raises ModelError.

    In a thread of its own with as many `threads` as a pass will have: graphs hold for one number of threads.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="compile") as thread:
        try:
            thread.submit(_compile_all, replicas, lengths, threads).result()
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{name}: torch.compile failed: {type(error).__name__}: {reason}. It needs a C++ compiler (g++, or "
                "what $CXX names) for a CPU, a C compiler for a GPU; without backend.compile the model runs as it is"
            ) from error


def _compile_all(replicas: list[Replica], lengths: tuple[int, ...], threads: int) -> None:
    import torch
    from torch._dynamo import config

    torch.set_num_threads(threads)
    # PyTorch counts the graphs of all models of one class together, those of other classifiers of the job included.
    with config.patch(recompile_limit=NO_LIMIT, accumulated_recompile_limit=NO_LIMIT):
        for replica in replicas:
            for length in lengths:
                ones = np.ones((WARM_UP_ROWS, length), np.int64)
                replica.logits({"input_ids": ones, "attention_mask": ones})
