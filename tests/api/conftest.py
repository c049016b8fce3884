"""Small models for the tests of the Python interface."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import make_model
from tests.services.java import wait_until


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("infer-")}


@pytest.fixture(autouse=True)
def no_engine_stays() -> Iterator[None]:
    """Whatever a test starts has ended its engines when the test ends; what was forgotten does so in a thread."""
    before = engine_threads()
    yield
    if not engine_threads() <= before:
        gc.collect()  # takes half a second, so only for what was forgotten in a cycle
    wait_until(lambda: engine_threads() <= before, 30, "the engines' threads end")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each kind of answer, and a second one with other labels."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "spam": make_model(folder / "spam"),
        "topic": make_model(folder / "topic", labels=("x", "y", "z"), seed=9),
        "several": make_model(
            folder / "several", labels=("a", "b", "c"), problem_type="multi_label_classification", seed=3
        ),
        "number": make_model(folder / "number", labels=("score",), problem_type="regression", seed=4),
    }
