"""Makes ONNX Runtime sessions that give the same scores on every CPU. Needs the extra `onnx`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

_PRODUCT = (
    b'\x08\n:>\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\t\n\x01a\x12\x04\n\x02\x08\x02'
    b"Z\t\n\x01b\x12\x04\n\x02\x08\x03b\t\n\x01y\x12\x04\n\x02\x08\x06B\x04\n\x00\x10\x14"
)
"""An ONNX model: y = MatMulInteger(a, b), uint8 and int8 to int32."""


def cpu_session(model: Path | bytes) -> Any:
    """An onnxruntime.InferenceSession on the CPU with default threads, for a few rows."""
    import onnxruntime as ort

    return ort.InferenceSession(model, exact_options(), providers=["CPUExecutionProvider"])


def exact_options() -> Any:
    """An onnxruntime.SessionOptions with which a file gives the same scores on every CPU.

    CPUs without VNNI sum products of uint8 and int8 in 16 bits, and the sums can saturate. On these CPUs the option
    `x64quantprecision` is set. It turns weights of more than 7 bits into uint8, which is slower but exact. With AMX
    nothing saturates and the option would halve the speed, so it is set only where a test product saturates.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    if products_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    return options


@functools.cache
def products_saturate() -> bool:
    """Whether the largest products of uint8 and int8 saturate on this CPU, so that onnxruntime's result is wrong."""
    import onnxruntime as ort

    session = ort.InferenceSession(_PRODUCT, providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"a": np.full((16, 64), 255, np.uint8), "b": np.full((64, 16), 127, np.int8)})
    return bool((found != 64 * 255 * 127).any())
