"""Divides a CPU's cores between forward passes."""

from __future__ import annotations

from tagstream.transforms.runtime.machine import cpu_name, gpu_name

CPU_PASSES = 8
"""The largest number of forward passes at once on a CPU. Each pass uses cores / passes threads.

Measured on 2 cores with MiniLM-L6 in PyTorch: two passes of one thread give 14 % more rows/s than one pass of two
threads, because the threads of one pass wait for each other after every operator. If another program uses a core, two
passes lose only the time that it takes; one pass becomes ten times as slow. Gain with the bundled spam model in ONNX
Runtime int8, by rows x tokens: none for 80 x 25, 12 % for 36 x 28, 63 % for 9 x 28, 30 % for 4 x 256.
"""


def passes_and_threads(cores: int) -> tuple[int, int]:
    """How many forward passes run at once, and how many threads each has."""
    passes = max(1, min(cores, CPU_PASSES))
    return passes, max(1, cores // passes)


def passes_on(device: str, passes: int) -> str:
    """Part of a `speed_key`: the number of passes and the hardware, such as "2 at once on EPYC".

    `device`: as PyTorch and ONNX Runtime name it; several GPUs are separated by commas.
    """
    return f"{passes} at once on {_device_name(device)}"


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return cpu_name() if device == "cpu" else f"{cpu_name()}, {device}"
    names = [gpu_name(int(one.partition(":")[2] or 0)) for one in device.split(",")]
    known = [name for name in names if name is not None]
    return ", ".join(known) if len(known) == len(names) else f"{cpu_name()}, {device}"
