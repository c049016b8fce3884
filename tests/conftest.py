"""Options and fixtures of the whole suite."""

from __future__ import annotations

pytest_plugins = ["tests.services.flink", "tests.services.kafka", "tests.services.postgres"]


def pytest_addoption(parser):
    parser.addoption("--crash-long", action="store_true", help="every kill that the guarantees speak of: minutes")
