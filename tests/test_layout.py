"""The folders are the architecture: who may import whom, no circles, heavy and third-party systems only at home."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "api": "tagstream",
    **{name: f"tagstream.{name}" for name in ("schemas", "transforms", "pipelines", "models")},
}
IO = "transforms.io"
ALLOWED: dict[str, set[str]] = {
    "schemas": set(),
    "models": set(),
    "transforms": set(),
    "transforms.runtime": {"schemas"},
    "transforms.adapter_files": {"schemas"},
    "transforms.model_download": {"schemas"},
    "transforms.sentence_files": {"schemas"},
    "transforms.model_files": {
        "schemas", "models", "transforms.adapter_files", "transforms.model_download", "transforms.sentence_files",
    },
    "transforms.tasks": {"schemas", "transforms.tokenization"},
    "transforms.tokenization": {"schemas", "transforms.model_files"},
    "transforms.inference": {
        "schemas", "transforms.runtime", "transforms.model_files", "transforms.tasks", "transforms.tokenization",
        "transforms.inference.backends",
    },
    "transforms.inference.backends": {
        "schemas", "transforms.runtime", "transforms.model_files", "transforms.tasks", "transforms.tokenization",
        "transforms.inference.certificate", "transforms.adapter_files",
    },
    f"{IO}": {"schemas", f"{IO}.common", "transforms.runtime"},
    f"{IO}.common": {"schemas", f"{IO}.contracts", "transforms.runtime", "transforms.tokenization"},
    f"{IO}.parquet": {"schemas", f"{IO}.contracts", f"{IO}.common", "transforms.runtime"},
    f"{IO}.database": {"schemas", f"{IO}.contracts", f"{IO}.common", "transforms.runtime"},
    f"{IO}.lake": {"schemas", f"{IO}.contracts", f"{IO}.common", "transforms.runtime"},
    f"{IO}.lake.iceberg": {"schemas", f"{IO}.lake", f"{IO}.common", "transforms.runtime"},
    f"{IO}.lake.delta": {"schemas", f"{IO}.lake", f"{IO}.common", "transforms.runtime"},
    f"{IO}.kafka": {
        "schemas", f"{IO}.contracts", f"{IO}.common", f"{IO}.kafka.client", "transforms.runtime",
        "transforms.tokenization",
    },
    f"{IO}.kafka.client": {"schemas", "transforms.runtime"},
    "transforms.stages": {
        "schemas", "transforms.runtime", "transforms.tokenization", "transforms.inference", f"{IO}.contracts",
        f"{IO}.common",
    },
    "pipelines": set(),
    "pipelines.report": {"schemas", "transforms"},
    "pipelines.runners": {"schemas", "transforms", "pipelines.report"},
    "pipelines.optimize": {"schemas", "transforms"},
    "pipelines.jobs": {"schemas", "transforms", "pipelines.runners", "pipelines.report"},
    "pipelines.cli": {"schemas", "transforms", "models", "pipelines"},
    "api": {"schemas", "transforms", "models", "pipelines"},
}  # fmt: skip
"""By folder (or a file that is a room of its own): the folders and files of ours that it may import, besides itself.
A folder stands for all that is in it, except where a folder inside has an entry of its own.
"""


def modules(package: str) -> list[Path]:
    found = sorted(file for file in (ROOT / package).rglob("*.py") if "train" not in file.parts)
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
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def ours() -> dict[str, Path]:
    """Every module that is installed, by the name of its file from the top of the repository, with dots."""
    files = (file for folder in FOLDERS for file in modules(folder))
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


def links() -> Iterator[tuple[str, str, int]]:
    """Which of our modules imports which other, and the line."""
    known = ours()
    for name, file in known.items():
        for target, line in imported(file):
            top, _, rest = target.partition(".")
            assert top not in FOLDERS or (top == "models" and not rest), (
                f"{file}:{line}: {target} is not its installed name"
            )
            inside = rest if top == "tagstream" and rest in known else "api" if target == "tagstream" else None
            if inside and inside != name:
                yield name, inside, line


def room_of(module: str) -> str:
    while module not in ALLOWED:
        module = module.rpartition(".")[0]
    return module


def test_every_folder_imports_only_what_it_may() -> None:
    wrong = []
    for name, target, line in links():
        room, parts = room_of(name), target.split(".")
        outer = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if room_of(target) != room and not outer & ALLOWED[room]:
            wrong.append(f"{name}:{line} imports {target}, which {room} may not")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_by_a_detour() -> None:
    """Imports inside functions count as well; only registries and factories load by name."""
    graph: dict[str, set[str]] = {name: set() for name in ours()}
    for name, target, _ in links():
        graph[name].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_all_packages_are_installed() -> None:
    """pyproject.toml lists every folder that has modules: a new one must not be missing in the wheel."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {file.parent.relative_to(ROOT) for folder in FOLDERS for file in modules(folder)}
    assert sorted(listed) == sorted("tagstream" + "".join(f".{p}" for p in f.parts if p != "api") for f in folders)


@pytest.mark.parametrize(
    ("system", "home"),
    [
        ("torch", ("transforms/inference/backends/", "transforms/tasks/outputs.py")),
        ("onnxruntime", "transforms/inference/backends/"),
        ("peft", "transforms/inference/backends/pytorch_model.py"),
        ("kafka", "transforms/io/kafka/"),
        ("confluent_kafka", ("transforms/io/kafka/schema_registry.py", "transforms/io/kafka/client/rdkafka")),
        ("pyiceberg", "transforms/io/lake/iceberg/"),
        ("deltalake", "transforms/io/lake/delta/"),
        ("duckdb", "transforms/io/database/duckdb.py"),
        ("adbc_driver_manager", "transforms/io/database/adbc.py"),
        ("sklearn", "pipelines/jobs/evaluate.py"),
        ("prometheus_client", "pipelines/report/prometheus.py"),
        ("typer", "pipelines/cli/"),
    ],
)
def test_systems_stay_at_home(system: str, home: str | tuple[str, ...]) -> None:
    """Each third-party system is imported by the files that own it and by no other."""
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for package in FOLDERS
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
    heavy = {"pyarrow", "torch", "apache_beam", "pydantic", "transformers", "numpy", "sklearn", "kafka", "tenacity"}
    assert loaded_by("import tagstream.pipelines.cli.main", heavy) == set()


def test_specification_needs_no_engine() -> None:
    """Reading a specification loads neither Arrow, nor Beam, nor PyTorch."""
    heavy = {"torch", "apache_beam", "transformers", "pyarrow"}
    assert loaded_by("import tagstream.schemas.spec_file", heavy) == set()


@pytest.mark.parametrize("name", ["bulk", "overhead"])
def test_benchmarks_stay_small(name: str) -> None:
    """Those that report peak memory: a child's is never under its parent's."""
    heavy = {"pyarrow", "torch", "numpy", "apache_beam", "transformers", "pydantic"}
    assert loaded_by(f"import benchmarks.{name}", heavy) == set()


def test_constant_backend_loads_no_torch() -> None:
    """A dry run of the pipeline needs no PyTorch."""
    statement = (
        "from tagstream.schemas.spec import InferEntry\n"
        "from tagstream.transforms.inference.backends.registry import identify, load_backend\n"
        "c = InferEntry.model_validate({'as': 'x', 'backend': {'type': 'constant'}})\n"
        "load_backend(c); identify(c)"
    )
    assert loaded_by(statement, {"torch", "transformers"}) == set()
