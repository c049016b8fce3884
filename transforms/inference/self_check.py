"""Loads a model and checks, before the first row, that it works and that micro-batches change nothing.

A row's logits must not depend on the rows beside it. They would, for example, if the model's head looked for another
padding than ours, or if the model ignored the attention mask. So a few texts of different lengths are run together and
one at a time. If the logits differ, the model runs one row at a time, and the user is told.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry, OnnxBackend, PyTorchBackend
from tagstream.transforms.inference.backends.contracts import Backend, Brief
from tagstream.transforms.inference.backends.registry import load_backend
from tagstream.transforms.inference.forward import one_line
from tagstream.transforms.tokenization.encoded import Encoded

Array = np.ndarray
TEXTS = (
    "Is it working?",
    "a",
    "Call now and win a free prize: 1,000 texts a day, the best news, and a movie for you and a friend. See you later!",
)
FP32, BF16, OTHER = 1e-3, 0.1, 0.25
"""How much logits may differ, as a share of the largest one (or of 1, if all are smaller). Rounding in fp32 gives about
1e-6, in bf16 up to 2e-2. int8 with dynamic ranges rounds by the whole micro-batch; its certificate says what that does
to labels."""


def load_checked(entry: InferEntry) -> tuple[Backend, tuple[Encoded, Array] | None, str]:
    """The loaded backend, a row that it labels (for `Engine`), and a notice if it runs one row at a time.

    Raises ModelError.
    """
    backend = load_backend(entry)
    if not entry.backend.needs_model:
        return backend, None, ""
    with backend.brief() if isinstance(backend, Brief) else nullcontext():
        works = try_out(backend, entry.as_)
        notice = "" if works is None else _check(backend, entry, works[0])
    return backend, works, notice


def try_out(backend: Backend, name: str) -> tuple[Encoded, Array] | None:
    """A row that the backend labels; None if it takes none of `TEXTS`, as with a tiny `max_length`.

    Raises ModelError, and closes the backend, if it can't label a row: then no row is to blame.
    """
    try:
        encoded = backend.encode(pa.array(TEXTS, pa.large_string()))
        if not len(encoded.lengths):
            return None
        works = (encoded, np.arange(1))
        logits = backend.forward([works])
    except Exception as error:
        backend.close()
        raise ModelError(f"{name}: the model is loaded, but can't label a first text: {one_line(error)}") from error
    if backend.head.output != "text" and not np.isfinite(logits).all():
        backend.close()
        raise ModelError(f"{name}: the model's logits are not finite, even for a plain text. Are its weights damaged?")
    return works


def _check(backend: Backend, entry: InferEntry, encoded: Encoded) -> str:
    """Sets the backend to one row at a time if `encoded` has other logits together than alone, and says why."""
    try:
        difference = _difference(backend, encoded, _tolerance(entry))
    except Exception as error:
        backend.close()
        raise ModelError(f"{entry.as_}: the model can't label a plain text: {one_line(error)}") from error
    if not difference or backend.max_rows == 1:
        return ""
    if backend.buckets:
        backend.close()
        raise ModelError(
            f"{entry.as_}: {entry.model}: padding changes what this model answers ({difference}), and compiled graphs "
            "need padding; remove compile from backend"
        )
    backend.max_rows = 1
    return (
        f"{entry.as_}: {entry.model}: {difference}. So rows run one at a time, which is exact but slower. A decoder "
        "needs a pad_token_id in its config.json that its head was trained with"
    )


def _difference(backend: Backend, encoded: Encoded, tolerance: float) -> str:
    """How the logits of texts together differ from those of each text alone; empty if they agree."""
    every = np.arange(len(encoded.lengths))
    if backend.head.output == "text":
        alone = [backend.forward([(encoded, every[i : i + 1])])[0] for i in every]
        return "" if list(backend.forward([(encoded, every)])) == alone else "rows give other texts together than alone"
    alone = np.nan_to_num(np.concatenate([backend.forward([(encoded, every[i : i + 1])]) for i in every]))
    try:
        together = np.nan_to_num(backend.forward([(encoded, every)]))
    except Exception as error:  # noqa: BLE001  what a single row does without error
        return f"several rows at once fail ({one_line(error)})"
    scale = max(1.0, float(np.abs(alone).max()))
    worst = float(np.abs(together - alone).max())
    if worst <= tolerance * scale:
        return ""
    return f"rows of different lengths get other logits together than alone, by up to {worst:.2g} of {scale:.2g}"


def _tolerance(entry: InferEntry) -> float:
    spec = entry.backend
    if isinstance(spec, PyTorchBackend):
        return FP32 if spec.precision == "fp32" else BF16
    return FP32 if isinstance(spec, OnnxBackend) and spec.file is None else OTHER
