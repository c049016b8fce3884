"""Numbers below 1e-38 become zero in one thread, for as long as it is wanted."""

from __future__ import annotations

import platform
import sys
import threading

import numpy as np
import pytest

from tagstream.transforms.runtime import denormals
from tagstream.transforms.runtime.denormals import without_denormals

KNOWN = sys.platform.startswith("linux") and platform.machine() in {"x86_64", "aarch64"}


def tenth_of_the_smallest() -> float:
    return float((np.full(64, np.finfo(np.float32).tiny, np.float32) * np.float32(0.1)).max())


@pytest.mark.skipif(not KNOWN, reason="the flag is known for Linux on x86-64 and ARM")
def test_they_are_zero_inside_and_kept_before_and_after():
    assert tenth_of_the_smallest() > 0
    with without_denormals():
        assert tenth_of_the_smallest() == 0
        assert np.float32(1.5) * 2 == 3
    assert tenth_of_the_smallest() > 0


def test_they_are_kept_again_after_an_error():
    with pytest.raises(ZeroDivisionError), without_denormals():
        1 / 0  # noqa: B018
    assert tenth_of_the_smallest() > 0


@pytest.mark.skipif(not KNOWN, reason="the flag is known for Linux on x86-64 and ARM")
def test_other_threads_keep_them():
    found, flushing = [], threading.Event()

    def other() -> None:
        assert flushing.wait(10)
        found.append(tenth_of_the_smallest())

    thread = threading.Thread(target=other)  # started before: a thread begins with the flags of the one that starts it
    thread.start()
    with without_denormals():
        flushing.set()
        thread.join()
    assert found[0] > 0


def test_an_unknown_machine_changes_nothing(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    denormals._libm.cache_clear()
    try:
        with without_denormals():
            assert tenth_of_the_smallest() > 0
    finally:
        denormals._libm.cache_clear()
