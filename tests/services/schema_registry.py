"""A real schema registry: Apicurio as one process, with its data in memory and Confluent's REST interface."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.services.java import free_ports, jars, java, tail, wait_until


class RegistryServer:
    """One registry. `url`: its address for clients."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "registry.log"
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/apis/ccompat/v7"
        self.process: subprocess.Popen | None = None

    def start(self, deadline: float = 120.0) -> RegistryServer:
        settings = ["-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={self.port}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                java("-Xmx384m", *settings, "-jar", str(_program())), stdout=log, stderr=log, start_new_session=True
            )
        try:
            wait_until(self._answers, deadline, "the schema registry answers", 0.2)
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}; the end of {self.log}:\n{tail(self.log)}") from None
        return self

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def freeze(self) -> None:
        """Send SIGSTOP. Connections stay open, but the registry does not answer."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the registry ended with {self.process.returncode}"
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


def _program() -> Path:
    """The registry's runnable jar, unpacked once for all workers."""
    (archive,) = jars("registry").glob("*.tar.gz")
    folder = archive.parent / "app"
    if not folder.exists():
        fresh = Path(tempfile.mkdtemp(dir=archive.parent))
        with tarfile.open(archive) as packed:
            packed.extractall(fresh, filter="data")
        try:
            fresh.rename(folder)
        except OSError:
            assert folder.exists(), "another worker was first"
    (jar,) = folder.glob("*-runner.jar")
    return jar


@pytest.fixture(scope="session")
def registry(tmp_path_factory):
    """The registry that all tests of one worker share. A test uses subjects of its own."""
    server = RegistryServer(tmp_path_factory.mktemp(f"registry-{os.getpid()}"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def mortal_registry(tmp_path):
    """A registry for one test alone, which may freeze it."""
    server = RegistryServer(tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()
