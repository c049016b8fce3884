"""Small models for the tests of the Python interface."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import make_model


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
