"""Private attributes of kafka-python: one file uses them, and the installed version has them all."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import re
import uuid
from importlib.metadata import version
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from tagstream.transforms.io.kafka.client import python_private

FOLDER = Path(python_private.__file__).parent.parent


@pytest.fixture(scope="module")
def clients(kafka):
    consumer = KafkaConsumer(bootstrap_servers=kafka.servers, group_id=f"private-{uuid.uuid4()}")
    producer = KafkaProducer(bootstrap_servers=kafka.servers, transactional_id=f"private-{uuid.uuid4()}")
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1000)
    batch = DefaultRecordBatch(builder.build())
    with contextlib.closing(consumer), contextlib.closing(producer):
        yield {"consumer": consumer, "producer": producer, "batch": batch}


@pytest.mark.parametrize(
    ("client", "attribute"),
    [
        *(("consumer", name) for name in python_private.OF_CONSUMERS),
        *(("producer", name) for name in python_private.OF_PRODUCERS),
        *(("batch", name) for name in python_private.OF_BATCHES),
    ],
)
def test_the_installed_version_has_it(clients, client, attribute):
    try:
        functools.reduce(getattr, attribute.split("."), clients[client])
    except AttributeError as error:
        pytest.fail(f"kafka-python {version('kafka-python')} has no {client}.{attribute} any more: {error}")


def test_the_version_is_the_one_that_was_checked():
    assert version("kafka-python") == python_private.CHECKED_VERSION


def test_the_lists_are_complete():
    """Whatever begins with an underscore in the file stands in one of the lists."""
    tree = ast.parse(Path(python_private.__file__).read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)}
    lists = python_private.OF_CONSUMERS + python_private.OF_PRODUCERS + python_private.OF_BATCHES
    listed = {part for name in lists for part in name.split(".")}
    assert used <= listed


@pytest.mark.parametrize(
    "function", [f for _, f in inspect.getmembers(python_private, inspect.isfunction)], ids=lambda f: f.__name__
)
def test_each_function_says_what_is_missing(function):
    text = " ".join((function.__doc__ or "").split())
    assert "Missing: " in text
    assert f"Checked with {python_private.CHECKED_VERSION}." in text


def test_no_other_file_uses_a_private_attribute():
    for file in FOLDER.rglob("*.py"):
        if file.name != "python_private.py":
            found = re.findall(r"\b_?(?:consumer|producer|admin|lookup)\._[a-z]\w*", file.read_text())
            assert not found, f"{file}: {found}"
