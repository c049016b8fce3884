"""Imports go one way: schemas <- transforms <- pipelines; heavy and third-party systems only where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"schemas", "transforms", "pipelines", "models", "benchmarks", "tests"}
ALLOWED = {
    "schemas": {"schemas"},
    "transforms": {"schemas", "transforms", "models"},
    "pipelines": {"schemas", "transforms", "pipelines", "models"},
}


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found
    return found


def imported(file: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere, also inside functions, and the line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: relative import"
            assert node.module
            yield node.module, node.lineno


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_go_one_way(package: str) -> None:
    """A package imports nothing of ours that lies above it."""
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in modules(package)
        for name, line in imported(file)
        if name.split(".")[0] in OURS - ALLOWED[package]
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("system", "home"),
    [
        ("torch", "transforms/backends/"),
        ("onnxruntime", "transforms/backends/"),
        ("kafka", "transforms/io/kafka"),
        ("confluent_kafka", ("transforms/io/schema_registry.py", "transforms/io/kafka_librdkafka.py")),
        ("pyiceberg", "transforms/io/iceberg"),
        ("deltalake", "transforms/io/delta"),
        ("duckdb", "transforms/io/duckdb"),
        ("adbc_driver_manager", "transforms/io/sql"),
        ("sklearn", "pipelines/evaluate.py"),
        ("prometheus_client", "pipelines/prometheus.py"),
        ("typer", "pipelines/cli"),
    ],
)
def test_systems_stay_at_home(system: str, home: str | tuple[str, ...]) -> None:
    """Each third-party system is imported by the files that own it and by no other."""
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for package in ALLOWED
        for file in modules(package)
        for name, line in imported(file)
        if name.split(".")[0] == system and not str(file.relative_to(ROOT)).startswith(home)
    ]
    assert not wrong


def loaded_by(statement: str, names: set[str]) -> set[str]:
    """Which of `names` a fresh interpreter has loaded after `statement`."""
    code = f"import sys\n{statement}\nprint(*({names!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stdout.split())


def test_command_line_starts_light() -> None:
    """`tagstream --help` must be instant: importing the command line loads nothing heavy."""
    heavy = {"pyarrow", "torch", "apache_beam", "pydantic", "transformers", "numpy", "sklearn", "kafka"}
    assert loaded_by("import pipelines.cli", heavy) == set()


def test_specification_needs_no_engine() -> None:
    """Reading a specification loads neither Arrow, nor Beam, nor PyTorch."""
    heavy = {"torch", "apache_beam", "transformers", "pyarrow"}
    assert loaded_by("import schemas.spec_file", heavy) == set()


@pytest.mark.parametrize("name", ["bulk", "overhead"])
def test_benchmarks_stay_small(name: str) -> None:
    """Those that report peak memory: a child's is never under its parent's."""
    heavy = {"pyarrow", "torch", "numpy", "apache_beam", "transformers", "pydantic"}
    assert loaded_by(f"import benchmarks.{name}", heavy) == set()


def test_constant_backend_loads_no_torch() -> None:
    """A dry run of the pipeline needs no PyTorch."""
    statement = (
        "from schemas.spec import Classifier\n"
        "from transforms.backends import identify, load_backend\n"
        "c = Classifier.model_validate({'as': 'x', 'backend': {'type': 'constant'}})\n"
        "load_backend(c); identify(c)"
    )
    assert loaded_by(statement, {"torch", "transformers"}) == set()
