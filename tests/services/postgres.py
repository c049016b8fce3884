"""A real PostgreSQL server for tests and benchmarks, with its own data folder and run by an unprivileged user."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.services.java import free_ports, tail, unavailable

TOOLS = ("initdb", "pg_ctl")
_APT = ["apt-get", "install", "-y", "-q", "--no-install-recommends", "postgresql"]


class Postgres:
    """One server. Its data folder and port survive `restart`. `uri(name)` gives the address of a database."""

    def __init__(self) -> None:
        self.tools = _tools()
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
        (self.port,) = free_ports(1)
        self._as = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
        if self._as:
            shutil.chown(self.folder, "nobody", "nogroup")
        self.log = self.folder / "server.log"

    def start(self) -> Postgres:
        """Return once the server answers. If it does not answer, raise AssertionError with the end of its log."""
        if not (self.folder / "data").exists():
            self._run("initdb", "-D", f"{self.folder}/data", "-U", "postgres", "--auth-local=trust", "-E", "UTF8",
                      "--auth-host=scram-sha-256", "--no-sync", f"--pwfile={self._password_file()}")  # fmt: skip
        # without fsync all survives as long as the machine does, and tests stop the server only, never the machine
        options = f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 -c max_connections=200 -c fsync=off"
        self._run("pg_ctl", "-D", f"{self.folder}/data", "-o", options, "-l", str(self.log), "-w", "start")
        return self

    def stop(self, mode: str = "fast") -> None:
        """Stop the server. The mode `immediate` is like a crash: the next start recovers from the log."""
        if (self.folder / "data/postmaster.pid").exists():
            self._run("pg_ctl", "-D", f"{self.folder}/data", "-m", mode, "-w", "stop")

    def restart(self, mode: str = "immediate") -> None:
        """Stop the server, by default as in a crash, and start it on the same data and port."""
        self.stop(mode)
        self.start()

    def uri(self, database: str = "postgres", user: str = "postgres", password: str = "admin-secret") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> str:
        """Create an empty database. Returns its URI."""
        import adbc_driver_postgresql.dbapi as adbc

        with adbc.connect(self.uri(), autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{name}"')
        return self.uri(name)

    def databases(self) -> list[str]:
        import adbc_driver_postgresql.dbapi as adbc

        with adbc.connect(self.uri()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT datname FROM pg_database")
            return [name for (name,) in cursor.fetchall()]

    def close(self) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _password_file(self) -> Path:
        path = self.folder / "password"
        path.write_text("admin-secret\n")
        path.chmod(0o644)
        return path

    def _run(self, tool: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self.tools / tool), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server would hold a pipe open
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{tool} ended with {done.returncode}; the end of {self.log}:\n{tail(self.log)}"


def _tools() -> Path:
    """The folder of the server's programs. If they are missing, apt installs them in CI. A laptop skips the test."""
    if (found := _find()) is None and os.environ.get("CI") == "true" and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-q"], _APT):
            subprocess.run(command, env=environment, capture_output=True, check=False)
        found = _find()
    if found is None:
        unavailable("PostgreSQL's initdb and pg_ctl are not on the PATH nor in /usr/lib/postgresql/*/bin")
    return found


def _find() -> Path | None:
    on_path = [Path(found).parent for tool in TOOLS if (found := shutil.which(tool))]
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return next((f for f in [*on_path, *packaged] if all((f / tool).exists() for tool in TOOLS)), None)


@pytest.fixture(scope="session")
def postgres():
    """The server that all tests of one worker share. A test uses a database of its own."""
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def mortal_postgres():
    """A server for one test alone, which may crash it."""
    server = Postgres()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def database(postgres, request):
    """URI of an empty PostgreSQL database for this test alone."""
    name = f"t{abs(hash(request.node.nodeid)) % 10**12}_{os.getpid()}"
    return postgres.create_database(name)
