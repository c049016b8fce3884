"""The names of this machine's CPU and GPUs, and how many cores this process may use."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The CPU's model name, as its maker gives it to Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_name() -> str:
    """The CPU's model and the number of cores."""
    return f"{cpu_model()}, {os.cpu_count()} cores"


def gpu_name(index: int) -> str | None:
    """The name of an NVIDIA GPU, by CUDA's number for it. None if there is no driver or no such GPU.

    Asks the driver's library. PyTorch would ask it too, but takes four seconds to import.
    """
    name, device = ctypes.create_string_buffer(256), ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), index)
        or driver.cuDeviceGetName(name, len(name), device)
    )
    return None if failed else name.value.decode()
