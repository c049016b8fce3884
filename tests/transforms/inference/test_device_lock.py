"""Engines that share a device run at most as many passes as wanted, in turn."""

from __future__ import annotations

import threading
import time

import pytest

from tagstream.transforms.inference.device_lock import _DEVICES, Device


def most_at_once(device: Device, threads: int = 6) -> int:
    """The largest number of threads that hold the device at the same time."""
    lock, here, most = threading.Lock(), [0], [0]

    def work() -> None:
        for _ in range(5):
            with device.taken():
                with lock:
                    here[0] += 1
                    most[0] = max(most[0], here[0])
                time.sleep(0.005)
                with lock:
                    here[0] -= 1

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    return most[0]


def test_who_wants_most_decides() -> None:
    """The limit is the largest wish of the present users. A user that has left does not count."""
    first = Device.join("shared", 1)
    assert most_at_once(first) == 1
    second = Device.join("shared", 3)
    assert second is first
    assert most_at_once(second) == 3
    second.leave(3)
    assert most_at_once(first) == 1
    first.leave(1)
    assert "shared" not in _DEVICES


def test_who_waited_longest_is_next() -> None:
    """A thread that takes the device again and again does not keep the others out."""
    device, order = Device.join("in turn", 1), []
    started = threading.Event()

    def again() -> None:
        for _ in range(20):
            with device.taken():
                order.append("again")
                started.set()
                time.sleep(0.005)

    worker = threading.Thread(target=again)
    worker.start()
    started.wait(10)
    with device.taken():
        order.append("once")
    worker.join(30)
    device.leave(1)
    assert order.index("once") < 10


def test_an_error_gives_it_back() -> None:
    device = Device.join("broken", 1)
    with pytest.raises(ValueError, match="pass"), device.taken():
        raise ValueError("pass")
    assert most_at_once(device) == 1
    device.leave(1)
