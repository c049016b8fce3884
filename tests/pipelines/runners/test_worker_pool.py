"""The worker pool as a process serves its workers' metrics, refuses a taken port, and ends when asked."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

from tests.services.java import free_ports, wait_until


def start(port: int, metrics_port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tagstream", "workers", f"--port={port}", f"--metrics-port={metrics_port}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def children(process: subprocess.Popen[str]) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, check=False, text=True).stdout
    return [int(pid) for pid in found.split()]


def test_pool() -> None:
    """Only the connection that asked for a worker can stop it, even if another connection has a worker of that name."""
    port, metrics_port, control = free_ports(3)
    pool = start(port, metrics_port)
    try:
        channels = [grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) for _ in "ab"]
        first, second = (beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel) for channel in channels)
        grpc.channel_ready_future(channels[0]).result(60)
        address = endpoints_pb2.ApiServiceDescriptor(url=f"127.0.0.1:{control}")
        request = beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1", control_endpoint=address)
        for stub in (first, second):
            assert not stub.StartWorker(request).error
        _, others = children(pool)
        first.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"))
        assert children(pool) == [others]
        first.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id="1-1"))
        assert children(pool) == [others]
        text = urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10).read().decode()
        assert "tagstream_workers" in text
        refused = start(port, free_ports(1)[0])
        assert "is taken" in refused.communicate(timeout=60)[0]
        assert refused.returncode == 6
        pool.send_signal(signal.SIGTERM)
        assert pool.wait(30) == 0
        wait_until(lambda: not Path(f"/proc/{others}").exists(), 10, "its workers have ended")
    finally:
        pool.kill()
