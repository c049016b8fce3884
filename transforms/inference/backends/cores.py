"""How a CPU's cores are shared between forward passes."""

from __future__ import annotations

from tagstream.transforms.runtime.machine import cpu_name, gpu_name

CPU_PASSES = 8
"""Most forward passes at once on a CPU, with cores / passes threads each, so one core each on small machines.

Measured on 2 cores, MiniLM-L6 in PyTorch: two passes of one thread do 14 % more rows/s than one pass of two threads,
whose cores wait for each other after every operator, and a busy neighbour slows them by its own share, not ten-fold.
Bundled spam model in ONNX Runtime int8, rows x tokens: 80 x 25 the same, 36 x 28 12 % more, 9 x 28 63 %, 4 x 256 30 %.
"""


def passes_and_threads(cores: int) -> tuple[int, int]:
    """Forward passes at once, and threads of each."""
    passes = max(1, min(cores, CPU_PASSES))
    return passes, max(1, cores // passes)


def passes_on(device: str, passes: int) -> str:
    """So many passes at once on this machine's CPU, or on its GPUs; `device`: as PyTorch and ONNX Runtime name it, GPUs
    with commas between.
    """
    return f"{passes} at once on {_device_name(device)}"


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return cpu_name() if device == "cpu" else f"{cpu_name()}, {device}"
    names = [gpu_name(int(one.partition(":")[2] or 0)) for one in device.split(",")]
    known = [name for name in names if name is not None]
    return ", ".join(known) if len(known) == len(names) else f"{cpu_name()}, {device}"
