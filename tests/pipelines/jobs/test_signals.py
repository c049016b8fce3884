"""After SIGTERM or Ctrl-C a job commits the rows in flight and exits 0 within seconds. No row is lost or done twice."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from tests.pipelines.parquet.test_crash import Job, wait_for_more_files


def stop(job: Job, number: int, report: Path, *options: str) -> tuple[int, dict]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tagstream", "run", str(job.file), "--report", str(report), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_for_more_files(job, process, job.files())
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode, json.loads(report.read_text()) if report.exists() else {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stops_and_goes_on(tmp_path: Path, number: int) -> None:
    """The job exits 0, its report agrees with the ledger on the rows left, and the next run does just these rows."""
    job = Job(tmp_path, rows=24_000, ms_per_row=0.4)
    code, report = stop(job, number, tmp_path / "report.json")
    assert code == 0
    assert report["state"] == "stopped"
    assert 0 < report["rows_in"] < job.rows
    assert report["rows_left"] == job.rows - report["rows_in"]
    assert report["rows_out"] == job.count()
    rest = subprocess.run(
        [sys.executable, "-m", "tagstream", "run", str(job.file), "--report", str(tmp_path / "rest.json")],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert rest.returncode == 0, rest.stderr.decode()
    assert json.loads((tmp_path / "rest.json").read_text())["rows_in"] == report["rows_left"]
    job.check_complete()


def test_slow_block_is_given_up(tmp_path: Path, unused_tcp_port: int) -> None:
    """The job does not wait for a block that would take minutes. The process ends and writes no row of the block."""
    job = Job(tmp_path, rows=2_000, ms_per_row=600)
    process = subprocess.Popen(
        [sys.executable, "-m", "tagstream", "run", str(job.file), "--metrics-port", str(unused_tcp_port),
         "--set", "infer.0.backend.token_budget=1", "--report", str(tmp_path / "report.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_for_metric(unused_tcp_port, "tagstream_micro_batches_total", process)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, output
    assert time.monotonic() - started < 60, "the block alone would take five minutes"
    assert job.count() == 0
    assert json.loads((tmp_path / "report.json").read_text())["rows_left"] == job.rows


def wait_for_metric(port: int, name: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the process's Prometheus endpoint shows a value above zero."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read().decode()
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            values = [line.split()[1] for line in answer.read().decode().splitlines() if line.startswith(name)]
            if values and float(values[0]) > 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"{name} stayed at zero")


@pytest.fixture
def unused_tcp_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]
