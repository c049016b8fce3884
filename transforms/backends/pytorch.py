"""PyTorch: any Hugging Face sequence classifier, fp32 or bf16, on CPU, CUDA or MPS. Only here is torch imported."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from schemas.errors import ModelError, OutOfMemoryError
from schemas.spec import Classifier, PyTorchBackend
from transforms.backends.huggingface import describe, files_of, weights_of
from transforms.model_files import ModelFiles
from transforms.tokenise import EncodedTokens, TextTokenizer

Array = np.ndarray

CPU_TOKENS = 768
"""Tokens of a micro-batch on a CPU. Measured with MiniLM-L6: from 384 to 1,536 the rows/s differ by less than 5 %, as
a core reaches its peak with any of them. Smaller ones have less padding (1.5 % at 512, 2.4 % at 768, 3.6 % at 1,024
when 1,000 rows are pending) and let a stream's row wait less; larger ones pay a forward pass's Python less often."""
CPU_PASSES = 8
"""Most forward passes at once on a CPU. Each has cores / passes threads, so one core on small machines: measured on 2
cores, two passes of one thread do 14 % more rows/s than one pass of two threads, whose cores wait for each other after
every operator, and a busy neighbour slows them by its own share, not ten-fold. A single row takes as long (16 ms)."""
GPU_TOKENS = 65_536
_CORES = torch.get_num_threads()
"""What PyTorch would use by itself: the physical cores that this process may run on, or OMP_NUM_THREADS."""


class _PyTorch:
    def __init__(self, classifier: Classifier) -> None:
        spec = cast("PyTorchBackend", classifier.backend)
        files = files_of(classifier)
        self.head, _ = describe(classifier)
        self.device = choose_device(spec.device)
        self.precision = choose_precision(spec.precision, self.device)
        self.token_budget = spec.token_budget or (CPU_TOKENS if self.device == "cpu" else GPU_TOKENS)
        self.max_rows = 4096
        self.parallel = min(_CORES, CPU_PASSES) if self.device == "cpu" else 1
        self._threads = _CORES // self.parallel
        self._tokenizer = TextTokenizer(files, classifier.max_length, classifier.long_text)
        self._model = load_model(files, self.device, self.precision)

    def encode(self, texts: pa.LargeStringArray) -> EncodedTokens:
        return self._tokenizer.encode(texts)

    def forward(self, parts: list[tuple[EncodedTokens, Array]]) -> Array:
        if self.device == "cpu" and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        ids, mask = self._tokenizer.pad(parts)
        inputs = {"input_ids": torch.from_numpy(ids)}
        if not mask.all():
            inputs["attention_mask"] = torch.from_numpy(mask)
        try:
            with torch.inference_mode():
                on_device = {name: value.to(self.device, non_blocking=True) for name, value in inputs.items()}
                logits: torch.Tensor = self._model(**on_device).logits
                return np.asarray(logits.float().cpu().numpy())
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemoryError(str(error)) from error
        except RuntimeError as error:
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):  # the CPU allocator's words
                raise OutOfMemoryError(str(error)) from error
            raise

    def close(self) -> None:
        del self._model
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


def load(classifier: Classifier) -> _PyTorch:
    """The model on its device. Raises ModelError."""
    return _PyTorch(classifier)


def identity(classifier: Classifier) -> dict[str, Any]:
    """What needs the files and the machine: hashes of weights and tokenizer, and what the precision comes to."""
    spec = cast("PyTorchBackend", classifier.backend)
    precision = choose_precision(spec.precision, choose_device(spec.device))
    return {**weights_of(classifier), "backend": "pytorch", "precision": precision}


def choose_device(wanted: str) -> str:
    """`auto`: the first CUDA device, else MPS, else the CPU. Raises ModelError for a device that is not there."""
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda:0"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    there = {"cpu": True, "mps": torch.backends.mps.is_available()}
    if wanted.startswith("cuda"):
        index = int(wanted.partition(":")[2] or 0)
        there[wanted] = index < torch.cuda.device_count()
    if not there.get(wanted, False):
        raise ModelError(f"device {wanted}: PyTorch finds no such device here; device: auto takes the best there is")
    return wanted


def choose_precision(wanted: str, device: str) -> str:
    """`auto`: bf16 where a GPU computes it, else fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "fp32"


def load_model(files: ModelFiles, device: str, precision: str) -> Any:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            files.path,
            dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision],
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise ModelError(f"{files.name}: the model in {files.path} can't be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{files.name}: the weights lack {missing[0]} and {len(missing) - 1} more; "
            "they would be random. Give a model whose classification head is trained"
        )
    return model.eval().to(device)
