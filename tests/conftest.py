"""Options and fixtures of the whole suite."""

from __future__ import annotations

import gc
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tagstream.transforms.runtime.machine import usable_cores
from tests import beam_specs

pytest_plugins = [
    "tests.services.flink",
    "tests.services.kafka",
    "tests.services.postgres",
    "tests.services.s3",
    "tests.services.schema_registry",
]


settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")  # how long an example takes says more of the machine than of the code


def pytest_xdist_auto_num_workers() -> int:
    """Two workers more than there are cores, because tests of brokers and clusters wait more than they compute.

    Three groups of them (two of Kafka, one of Flink) run first, for minutes and mostly waiting. A fourth worker
    computes meanwhile.
    """
    return usable_cores() + 2


def pytest_addoption(parser):
    parser.addoption("--crash-long", action="store_true", help="every kill that the guarantees speak of: minutes")


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether `--crash-long` was given."""
    return bool(request.config.getoption("--crash-long"))


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder with a unique name, because topics, tables and schemas are named after it. pytest may reuse a name."""
    path = tmp_path / uuid.uuid4().hex[:8]
    path.mkdir()
    return path


def pytest_collection_finish(session: pytest.Session) -> None:
    """Raises an error if a group of tests runs on two workers, because a group shares one service and its slots."""
    beam_specs.keep()
    gc.collect()
    gc.freeze()  # the collector need not look at a million objects of PyTorch and Beam again and again
    if getattr(session.config.option, "loadgroup", False):  # in a worker
        stray = [i.nodeid for i in session.items if i.get_closest_marker("xdist_group") and "@" not in i.nodeid]
        if stray:
            raise pytest.UsageError(f"pytest-xdist does not keep groups together: {stray[0]} and {len(stray) - 1} more")
