"""Names that certificates and measured speeds are kept under."""

from __future__ import annotations

from tagstream.transforms.runtime.machine import cpu_name, gpu_name


def test_a_gpu_that_is_not_there_has_no_name():
    assert gpu_name(999) is None


def test_the_cpu_has_a_name():
    assert "cores" in cpu_name()
