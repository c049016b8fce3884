"""Exports the model of a Hugging Face folder to an fp32 ONNX file. Needs the extra `onnx`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tagstream.schemas.errors import ModelError
from tagstream.transforms.inference.backends.onnx_session import cpu_session
from tagstream.transforms.model_files import ModelFiles
from tagstream.transforms.tasks.head import Head
from tagstream.transforms.tokenization.tokenizer import TextTokenizer

OPSET = 20


def export_fp32(files: ModelFiles, folder: Path, head: Head) -> Path:
    """The path of the ONNX file in `folder` of what `head` runs. The first call creates the file. Raises ModelError."""
    tokenizer = TextTokenizer(files, None, "truncate")
    kind = f"-{head.export_name}" if head.export_name else ""
    path = folder / (f"fp32-eager{kind}-segments.onnx" if tokenizer.segments else f"fp32-eager{kind}.onnx")
    if path.exists():
        return path
    need("onnxscript")
    import torch

    from tagstream.transforms.inference.backends.pytorch import takes_segments
    from tagstream.transforms.inference.backends.pytorch_model import load_model

    model = load_model(files, "cpu", "fp32", tokenizer.padding, head.auto_class)
    model.set_attn_implementation("eager")  # sdpa checks each attention for NaN, 9 % of a small model's time
    module = head.module(model, tokenizer).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    length = torch.export.Dim("length", min=2, max=files.config.get("max_position_embeddings") or 4096)
    names = ["input_ids", "attention_mask"]
    if tokenizer.segments and takes_segments(model):
        names.append("token_type_ids")
    # a tensor for each, because one object for two inputs would be exported as one input
    example = {name: torch.full((2, 8), int(name != "token_type_ids"), dtype=torch.int64) for name in names}
    with writing(path) as tmp, quiet():
        torch.onnx.export(
            module,
            (),
            tmp,
            kwargs=example,
            input_names=list(example),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes={name: {0: batch, 1: length} for name in example},
            external_data=False,
            opset_version=OPSET,
            verbose=False,
        )
        _compare(files, module, tmp, tokenizer)
    return path


def _compare(files: ModelFiles, module: Any, path: Path, tokenizer: TextTokenizer) -> None:
    """Compare the export with the module on padded random input. Raises ModelError if logits differ by over 1e-3."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, int(files.setting("vocab_size")), (5, 24), generator=generator)
    lengths = torch.tensor([24, 17, 9, 3, 2])
    mask = (torch.arange(24) < lengths[:, None]).long()
    ids = torch.where(mask.bool(), ids, tokenizer.padding.pad_id)
    session = cpu_session(path)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    inputs = {one.name: inputs[one.name] for one in session.get_inputs()}
    with torch.inference_mode():
        expected = module(**inputs).numpy()
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    if (worst := float(np.abs(logits - expected).max())) > 1e-3 * max(1.0, float(np.abs(expected).max())):
        raise ModelError(
            f"{files.name}: the ONNX export's logits differ from the model's by {worst:.3g}; use backend: pytorch"
        )


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary path. It is renamed to `path` after the `with` body, so that nobody loads a half-written model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        with exporting():
            yield tmp
            tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


@contextmanager
def exporting() -> Iterator[None]:
    """Turns every error of the export libraries into a ModelError that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"ONNX export failed: {type(error).__name__}: {reason}. Use backend: pytorch") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses warnings and log lines of the libraries that export and quantise."""
    import logging

    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def need(package: str) -> None:
    """Raises ModelError if the package is not installed."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        raise ModelError(f"ONNX needs {package}: pip install 'tagstream[onnx]'")
