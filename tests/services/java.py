"""Shared by all services that run from Java jars: the jars, free ports, and a way to wait for a condition."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "services"
RANDOM = random.SystemRandom()
"""Hypothesis seeds the global random generator, so ports come from another one."""
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 32
PORTS = itertools.cycle(RANDOM.sample(range(10_000 + 700 * WORKER, 10_700 + 700 * WORKER), 700))
"""Each test worker has ports of its own, given in turn. Ports of the system's range for outgoing connections are left
out: another program could take one while the service with that port is killed and started again."""
FETCHES = 3
"""How often Maven is tried, because a remote repository may refuse once."""


def java(*arguments: str, lasting: bool = False) -> list[str]:
    """A Java command line. With `lasting` false, as in tests, the JVM compiles quickly and never thoroughly."""
    short = [] if lasting else ["-XX:TieredStopAtLevel=1"]
    return ["java", "-XX:+UseSerialGC", *short, *arguments]


def jars(name: str) -> Path:
    """The folder of the jars in `tests/services/<name>/pom.xml`, which Maven fetches once for all workers.

    Skips the test when Java or Maven is missing, and fails instead when CI=true.
    """
    missing = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    if missing:
        unavailable(f"{name} needs {' and '.join(missing)} on the PATH")
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    pom = Path(__file__).parent / name / "pom.xml"
    stamp = folder / "pom.xml"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_bytes() != pom.read_bytes():
            shutil.rmtree(folder / "libs", ignore_errors=True)
            command = ["mvn", "-q", "-B", "-U", "-f", str(pom), "dependency:copy-dependencies"]
            for attempt in range(FETCHES):
                time.sleep(5 * attempt)
                done = subprocess.run(
                    [*command, f"-DoutputDirectory={folder / 'libs'}"], capture_output=True, text=True, check=False
                )
                if not done.returncode:
                    break
            else:
                unavailable(f"Maven can't fetch the jars of {name}: {(done.stdout + done.stderr)[-2000:]}")
            shutil.copy(pom, stamp)
    return folder / "libs"


def unavailable(reason: str) -> None:
    """Fail the test in CI, and skip it on a laptop, because a service can't start."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago. Ports of the last calls are left out, because they may not be in use yet."""
    found: list[int] = []
    while len(found) < count:
        port = next(PORTS)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            found.append(port)
    return found


def wait_until(condition, deadline: float, what: str, pause: float = 0.02):
    """The first true value of `condition()`. After `deadline` seconds raises AssertionError with `what`.

    Between two questions it waits for `pause` seconds, or longer if the question itself takes long, because the
    condition of a busy machine should not make it busier.
    """
    end = time.monotonic() + deadline
    while True:
        asked = time.monotonic()
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline:g} s: {what}"
        time.sleep(max(pause, min(4 * (time.monotonic() - asked), 0.1)))


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a log, for an error message."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"
