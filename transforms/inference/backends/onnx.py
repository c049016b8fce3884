"""Runs a model of transformers in ONNX Runtime, as an fp32 export or as certified int8."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from tagstream.schemas.errors import ModelError, OutOfMemoryError
from tagstream.schemas.spec import InferEntry, OnnxBackend
from tagstream.transforms.inference.backends.cores import passes_and_threads, passes_on
from tagstream.transforms.inference.backends.huggingface import describe, files_of, weights_of
from tagstream.transforms.inference.backends.onnx_export import export_fp32
from tagstream.transforms.inference.backends.onnx_session import exact_options
from tagstream.transforms.runtime.denormals import without_denormals
from tagstream.transforms.runtime.machine import usable_cores
from tagstream.transforms.tokenization.tokenizer import EncodedTokens, TextTokenizer

Array = np.ndarray
CPU_TOKENS = 512
"""Token budget on a CPU. Larger budgets are slower: activations no longer fit into a core's cache, and padding grows.
Measured with the bundled spam model in int8, two passes at once: 2,040 rows/s with 256 tokens, 2,065 with 512, 1,950
with 1,024, 1,770 with 2,048, 1,600 with 4,096."""
GPU_TOKENS = 65_536
DRIVERS = ("/dev/nvidiactl", "/dev/dxg")
"""Files that exist if NVIDIA's driver is installed: on Linux, and on Windows Subsystem for Linux."""


class _Onnx:
    def __init__(self, entry: InferEntry) -> None:
        spec = cast("OnnxBackend", entry.backend)
        self.head, _ = describe(entry)
        files = files_of(entry)
        self._tokenizer = self.head.tokenizer(files)
        self.parallel, threads = passes_and_threads(usable_cores())
        pool = 1 + self.parallel * (threads - 1)  # all passes share the pool, and each calling thread computes too
        file = model_file(entry)
        self._session, self.device = _session(file, spec.device, pool)
        self._inputs = _inputs_of(self._session, file, self._tokenizer)
        if self.device != "cpu":
            self.parallel = 1
        self.token_budget = spec.token_budget or (CPU_TOKENS if self.device == "cpu" else GPU_TOKENS)
        self.max_rows = 4096
        self.buckets: tuple[int, ...] = ()
        self.speed_key = "" if spec.token_budget else f"onnx {file.name}, {passes_on(self.device, self.parallel)}"

    def encode(self, texts: pa.LargeStringArray) -> EncodedTokens:
        return self.head.encode(self._tokenizer, texts)

    def forward(self, parts: list[tuple[EncodedTokens, Array]]) -> Array:
        inputs = self._tokenizer.inputs(parts, (2,))  # the export takes at least 2 tokens
        real = inputs["attention_mask"] > 0 if self.head.output == "tokens" else None
        if "token_type_ids" in self._inputs:
            inputs.setdefault("token_type_ids", np.zeros_like(inputs["input_ids"]))
        inputs = {name: inputs[name] for name in self._inputs}
        try:
            if self.device == "cpu":
                with without_denormals():
                    logits = self._session.run(["logits"], inputs)[0]
            else:
                logits = self._bound(inputs)
        except Exception as error:
            if "allocate memory" in str(error) or "bad_alloc" in str(error):  # texts of the memory arena's errors
                raise OutOfMemoryError(str(error)) from error
            raise
        outputs = np.asarray(logits, np.float32)
        return outputs if real is None else outputs[real]

    def _bound(self, inputs: dict[str, Array]) -> Array:
        """Run with inputs and logits in the device's memory. Each is copied once: before the pass, and after it."""
        import onnxruntime as ort

        kind, _, index = self.device.partition(":")
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, kind, int(index or 0)))
        binding.bind_output("logits", kind, int(index or 0))
        self._session.run_with_iobinding(binding)
        logits: Array = binding.copy_outputs_to_cpu()[0]
        return logits

    def close(self) -> None:
        del self._session


def _inputs_of(session: Any, file: Path, tokenizer: TextTokenizer) -> list[str]:
    """Names of the model's inputs. Raises ModelError for one that nobody can give."""
    names = [one.name for one in session.get_inputs()]
    given = {
        "input_ids",
        "attention_mask",
        *(["token_type_ids"] if tokenizer.segments or tokenizer.zero_segments else []),
    }
    if unknown := sorted(set(names) - given):
        raise ModelError(f"{file}: has an input {unknown[0]}, but there are {', '.join(sorted(given))} only")
    return names


def load(entry: InferEntry) -> _Onnx:
    """The backend, with its model loaded. Raises ModelError."""
    return _Onnx(entry)


def identity(entry: InferEntry) -> dict[str, Any]:
    """Hashes of the model, and of the ONNX file that runs."""
    with model_file(entry).open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
    return {**weights_of(entry), "backend": "onnx", "file": digest}


def device_kind(entry: InferEntry) -> str:
    """The kind of device that the entry would run on here, cpu or cuda. Loads no model."""
    spec = cast("OnnxBackend", entry.backend)
    if spec.device != "auto":
        return spec.device.partition(":")[0]
    try:
        import onnxruntime as ort
    except ImportError:
        return "cpu"
    return "cuda" if _built_for_cuda(ort) and any(Path(driver).exists() for driver in DRIVERS) else "cpu"


def _built_for_cuda(ort: Any) -> bool:
    return "CUDAExecutionProvider" in ort.get_available_providers()


def model_file(entry: InferEntry) -> Path:
    """The file that the specification names, or the fp32 export in the cache, which is created if necessary."""
    spec = cast("OnnxBackend", entry.backend)
    if spec.file is None:
        files = files_of(entry)
        return export_fp32(files, files.cache_folder(), describe(entry)[0])
    path = Path(spec.file).expanduser()
    if not path.is_file():
        raise ModelError(f"{entry.as_}: backend.file {spec.file}: no such file; `tagstream optimize` can create it")
    return path


def _session(path: Path, device: str, threads: int) -> tuple[Any, str]:
    try:
        import onnxruntime as ort
    except ImportError:
        raise ModelError("backend onnx needs onnxruntime: pip install 'tagstream[onnx]'") from None
    gpu = _built_for_cuda(ort)
    if device.startswith("cuda") and not gpu:
        raise ModelError(f"device {device}: this onnxruntime has no CUDA; install onnxruntime-gpu, or set device: cpu")
    on_gpu = gpu and device != "cpu"
    options = exact_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait for work would take the tokenizer's core between two micro-batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.set_denormal_as_zero", "1")  # in the pool's threads only
    options.log_severity_level = 4
    index = int(device.partition(":")[2] or 0)
    providers = [("CUDAExecutionProvider", {"device_id": index})] if on_gpu else []
    # On a CPU the fused kernel sums without vector instructions. With a plain LayerNormalization after an Add, a small
    # int8 model is 1.4 times as fast, an fp32 model 1.2 times (onnxruntime 1.32).
    unfused = [] if on_gpu else ["SkipLayerNormFusion"]
    try:
        with without_denormals():  # the first session of a process changes the setting of the thread that creates it
            session = ort.InferenceSession(
                path, options, providers=[*providers, "CPUExecutionProvider"], disabled_optimizers=unfused
            )
    except Exception as error:
        raise ModelError(f"{path}: onnxruntime can't load it: {' '.join(str(error).split())[:300]}") from error
    if on_gpu and "CUDAExecutionProvider" not in session.get_providers():
        if device.startswith("cuda"):
            raise ModelError(
                f"device {device}: onnxruntime can't use CUDA here. Check that its CUDA version fits the driver"
            )
        return _session(path, "cpu", threads)
    return session, f"cuda:{index}" if on_gpu else "cpu"
