"""A model with a certificate."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.onnx_export import export_fp32
from tagstream.transforms.inference.backends.onnx_int8 import Int8, quantise
from tagstream.transforms.inference.certificate import Certificate, hash_file
from tagstream.transforms.model_files import find_model
from tagstream.transforms.tasks.registry import open_head
from tests.models import make_model


def certified(tmp_path: Path, *, real: bool = False, **changes) -> tuple[Path, Path]:
    """Make a model and a certificate for its int8 version. `real`: the int8 version can run. Returns both folders."""
    model = make_model(tmp_path / "model")
    files = find_model(str(model))
    folder = tmp_path / "certificate"
    file = folder / "int8-0.onnx"
    folder.mkdir()
    if real:
        quantise(export_fp32(files, folder, open_head(InferEntry(model=str(model)), files)), Int8(), file)
    else:
        file.write_bytes(b"never loaded")
    certificate = Certificate(
        weights=files.weights_hash(),
        tokenizer=files.tokenizer_hash(),
        max_length=None,
        long_text="truncate",
        backend={"type": "onnx"},
        file=file.name,
        file_hash=hash_file(file),
        sample="0" * 16,
        sample_rows=1000,
        agreement=0.997,
        drift_p99=0.01,
        drift_max=0.02,
        rows_per_s=2.0,
        fp32_rows_per_s=1.0,
        machine="",
        versions={},
        date="2026-01-01",
        device="cpu",
    )
    dataclasses.replace(certificate, **changes).write(folder)
    return model, folder
