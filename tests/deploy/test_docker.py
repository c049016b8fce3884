"""The Dockerfiles pass a linter, and their build steps work in a clean folder without a container engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, check_command
from tests.services.java import ROOT

DOCKERFILE = DEPLOY / "docker/Dockerfile"
UV = Path(sys.executable).with_name("uv")
INSTRUCTION = re.compile(r"^(FROM|RUN|COPY|ENV|ARG|USER|ENTRYPOINT|CMD|WORKDIR|SHELL|EXPOSE) +(.*)$")


def instructions(file: Path) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, in order, with continuation lines joined."""
    stages: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in re.sub(r"\\\n\s*", "", file.read_text()).splitlines():
        if (found := INSTRUCTION.match(line)) is None:
            continue
        if found[1] == "FROM":
            name = found[2].partition(" AS ")[2]
            stages[name] = []
        stages[name].append((found[1], found[2]))
    return stages


@pytest.mark.parametrize("file", sorted(DEPLOY.glob("**/Dockerfile")), ids=lambda file: file.parent.name)
def test_lint(file: Path) -> None:
    """hadolint finds nothing."""
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), file], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_image_runs_without_root_what_the_command_line_has() -> None:
    """Each image has the right user, path and command."""
    stages = instructions(DOCKERFILE)
    assert {"cpu", "gpu"} <= stages.keys()
    base = stages["base"]
    assert [line for line in base if line[0] == "USER"][-1] == ("USER", "10001:10001")
    assert any(value.startswith("PATH=/opt/tagstream/bin:") for _, value in base)
    (command,) = [value for kind, value in base if kind == "CMD"]
    assert check_command(re.findall(r'"([^"]*)"', command)) == "workers"
    for stage in ("cpu", "gpu"):
        assert stages[stage][0] == ("FROM", f"base AS {stage}")
        assert ("COPY", f"--from=build-{stage} /opt/tagstream /opt/tagstream") in stages[stage]


def context(folder: Path) -> Path:
    """Put the files of the build stage's COPY lines into `folder`, without those that the ignore file excludes."""
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split()
    sent, kept_out = {line[1:] for line in ignored if line.startswith("!")}, ignored[-2:]
    for kind, value in instructions(DOCKERFILE)["build"]:
        if kind != "COPY":
            continue
        *sources, _ = value.split()
        for source in sources:
            assert source in sent, f"{source} is copied, but the ignore file keeps it out"
            target = folder / source
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)
    for path in [p for p in folder.rglob("*") if any(fnmatch(str(p.relative_to(folder)), k) for k in kept_out)]:
        shutil.rmtree(path, ignore_errors=True)
    return folder


def run_steps(stage: str, folder: Path, *, change=lambda command: command) -> None:
    """Run the RUN lines of a stage, with the image's folders under `folder`."""
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    environment = {**os.environ, "UV_LINK_MODE": "hardlink", "PATH": path}
    environment.pop("VIRTUAL_ENV", None)
    for kind, command in instructions(DOCKERFILE)[stage]:
        if kind != "RUN" or command.startswith("pip install --no-cache-dir uv=="):
            continue  # uv is already in this environment
        command = change(command.replace("/opt/tagstream", f"{folder}/opt").replace("/dist", f"{folder}/dist"))
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=folder / "src", env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_build_steps(tmp_path: Path, request) -> None:
    """The wheel can be built from the files that are sent to the builder, and works where it is installed.

    Its dependencies take gigabytes, so those of this environment are used. `--crash-long` installs them like the image.
    """
    (tmp_path / "src").mkdir()
    context(tmp_path / "src")
    run_steps("build", tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    if request.config.getoption("--crash-long"):
        run_steps("build-gpu", tmp_path, change=lambda command: command.replace("--no-cache ", ""))
        environment = {}
    else:
        python = f"{tmp_path}/opt/bin/python"
        subprocess.run([UV, "pip", "install", "-q", "--no-deps", "--python", python, str(wheel)], check=True)
        environment = {"PYTHONPATH": sysconfig.get_path("purelib")}
    listed = subprocess.run(
        [tmp_path / "opt/bin/tagstream", "models"],
        env={"PATH": os.environ["PATH"], "COLUMNS": "200", **environment},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in ("tagstream/spam", "tagstream/sentiment", f"{tmp_path}/opt/lib"))


def test_cpu_build_takes_the_locked_pytorch(tmp_path: Path) -> None:
    """The line that reads the version from the lock file finds exactly one."""
    (command,) = [c for kind, c in instructions(DOCKERFILE)["build-cpu"] if kind == "RUN" and "--torch-backend" in c]
    found = re.search(r'"\$\((.*)\)"', command)
    printed = subprocess.run(["bash", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"torch==[\d.]+\n", printed)
