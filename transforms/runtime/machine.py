"""What the machine is called, and what of it this process may use."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The maker's name for it, as Linux knows it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cpu_name() -> str:
    """The CPU's model and the number of cores."""
    return f"{cpu_model()}, {os.cpu_count()} cores"


def gpu_name(index: int) -> str | None:
    """The name of NVIDIA's GPU of that number, counted as CUDA counts; None without a driver or such a GPU.

    Asked of the driver's library, as PyTorch does, which takes four seconds to import.
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
