"""What `pip install` puts into an environment: one package, all of it, and it works beside a user's own packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_layout import FOLDERS

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.xdist_group("wheel")
HEAVY = {"pyarrow", "torch", "apache_beam", "pydantic", "transformers", "numpy", "typer", "rich", "yaml"}
UNSET = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE"}


def call(*command: str | Path, cwd: Path, **env: str) -> str:
    """Standard output of a command, which must succeed."""
    own = {name: value for name, value in os.environ.items() if name not in UNSET}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env={**own, **env}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked() -> list[Path]:
    """Files that git knows, or would add, from the top of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: which files belong to it is not known")
    listed = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    return [Path(name) for name in listed if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that git knows: what lies about in a working tree is not in it."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "tree" / name)
    uv = ["-m", "uv", "build", "--wheel", "--offline", "--no-build-isolation", "--python", sys.executable]
    call(sys.executable, *uv, "--out-dir", folder / "dist", folder / "tree", cwd=folder)
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("fresh") / "env"
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=ROOT)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    before = {path.name for path in packages.iterdir()}
    call(sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", python, wheel, cwd=ROOT)
    assert {path.name for path in packages.iterdir()} - before == {"tagstream", f"{dist_info(wheel)}"}
    # a line of a .pth file adds a folder, but runs no .pth file that lies there: not that of the editable install
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def dist_info(wheel: Path) -> str:
    return "-".join(wheel.name.split("-")[:2]) + ".dist-info"


def test_what_is_in_the_wheel(wheel: Path) -> None:
    """Every module of ours, the bundled models and the mark of a typed package; no recipe, no test."""
    found = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    inside = {name for name in found if not name.startswith(dist_info(wheel))}
    wanted = {"tagstream/py.typed"}
    for path in tracked():
        top, *rest = path.parts
        package = FOLDERS.get(top, "").replace(".", "/")
        bundled = top == "models" and rest[0] in ("spam", "sentiment")
        if package and rest[0] != "train" and (path.suffix == ".py" or bundled):
            wanted.add("/".join([package, *rest]))
    assert inside == wanted
    assert {f"tagstream/models/{name}/model.safetensors" for name in ("spam", "sentiment")} <= inside


def test_importing_is_light(python: Path, tmp_path: Path) -> None:
    """The package of the wheel is found, and nothing heavy is loaded before it is used."""
    code = f"import sys, tagstream; print(tagstream.__file__, tagstream.__version__, *({HEAVY!r} & sys.modules.keys()))"
    file, version, *heavy = call(python, "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(python.parent.parent)
    assert version in dist_info(next(python.parent.parent.glob("lib/*/site-packages/tagstream-*")))
    assert heavy == []


SCRIPT = """
import json
import models, pipelines, schemas, transforms
import tagstream
out = tagstream.Memory()
rows = {"text": ["a", None, "b"]}
infer = [{"as": "tag", "backend": {"type": "constant", "label": "mine"}}]
tagstream.run(source=rows, infer=infer, sink=out, max_dead=1, progress=False)
mine = [package.MINE for package in (models, pipelines, schemas, transforms)]
print(json.dumps([tagstream.__file__, mine, out.labels()["tag"].to_pylist()]))
"""


def test_beside_packages_of_the_user(python: Path, tmp_path: Path) -> None:
    """A job runs where a project has packages of the names that our folders have; each finds its own."""
    for name in ("models", "pipelines", "schemas", "transforms"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"MINE = {name!r}\n")
    texts = ["Win a free prize now, call 0900 123456!", "See you at lunch", None]
    pq.write_table(pa.table({"text": texts, "n": [1, 2, 3]}), tmp_path / "in.parquet")
    spec = {
        "source": {"type": "parquet", "path": "in.parquet", "id": "n"},
        "infer": [{"model": "tagstream/spam", "as": "spam"}],
        "sink": {"type": "parquet", "path": "out"},
        "max_dead": 1,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(spec))  # JSON is YAML
    call(python.parent / "tagstream", "run", "job.yaml", cwd=tmp_path, PYTHONPATH=".")
    labels = pq.read_table(tmp_path / "out").select(["n", "spam"]).to_pylist()
    assert labels == [{"n": 1, "spam": "spam"}, {"n": 2, "spam": "ham"}]
    (tmp_path / "script.py").write_text(SCRIPT)
    file, mine, found = json.loads(call(python, "script.py", cwd=tmp_path, PYTHONPATH="."))
    assert Path(file).is_relative_to(python.parent.parent)
    assert mine == ["models", "pipelines", "schemas", "transforms"]
    assert found == ["mine", "mine"]


TYPED = """
from typing import Any, assert_type

import tagstream

report = tagstream.run("job.yaml", sink=tagstream.Memory(), limit=10, max_dead=1.0)
assert_type(report, tagstream.Report)
assert_type(report.rows_left, int)
assert_type(tagstream.plan("job.yaml"), tagstream.Plan)
assert_type(tagstream.evaluate("job.yaml", label="truth"), dict[str, Any])
assert_type(tagstream.__version__, str)
with tagstream.load("tagstream/spam", backend="onnx", scores="all") as model:
    assert_type(model, tagstream.Model)
    assert_type(model.notes, list[str])
    model.predict(["a"], txt="body")  # type: ignore[call-arg]
try:
    tagstream.Infer([{"model": "tagstream/spam"}], text="body", batch_rows=64)
except tagstream.TagstreamError as error:
    assert_type(error.exit_code, int)
tagstream.run("job.yaml", limit="10")  # type: ignore[arg-type]
tagstream.rnu("job.yaml")  # type: ignore[attr-defined]
"""


def test_a_type_checker_knows_the_interface(python: Path, tmp_path: Path) -> None:
    """A user's file passes mypy's strict mode, where an `ignore` that nothing needs is an error too."""
    (tmp_path / "user.py").write_text(TYPED)
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-apache_beam.*,pyarrow.*,rich.*]\nfollow_imports = skip\n")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--config-file", "mypy.ini"]
    assert "Success" in call(*mypy, "user.py", cwd=tmp_path)
