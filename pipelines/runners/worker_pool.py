"""The worker pool of `environment: EXTERNAL`: starts a Python worker for each task manager that asks for one.

It replaces Beam's own pool for three reasons. Its workers run the interpreter of the pool, not the first `python` on
the PATH. Its workers commit the rows that they have read before they end. All workers' metrics are on one port.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
from apache_beam.utils import thread_pool_executor

from tagstream.pipelines.report.prometheus import PoolCollector, serve_metrics
from tagstream.pipelines.runners.worker_process import PORT_SUFFIX
from tagstream.schemas.errors import RunnerError

log = logging.getLogger(__name__)
STOP_SECONDS = 10.0
"""Seconds from SIGTERM to SIGKILL."""
_OPTIONS = [("grpc.http2.max_pings_without_data", 0), ("grpc.http2.max_ping_strikes", 0), ("grpc.so_reuseport", 0)]


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):  # type: ignore[misc]
    """Implements Beam's service `BeamFnExternalWorkerPool`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._workers: list[tuple[tuple[str, str], subprocess.Popen[bytes]]] = []
        """Workers, each with the connection that asked for it and its id. Two task managers may use the same ids."""

    def StartWorker(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Start a worker that connects to `request.control_endpoint`."""
        arguments = [request.control_endpoint.url, request.worker_id, str(self.folder)]
        try:
            process = subprocess.Popen([sys.executable, "-m", "tagstream.pipelines.runners.worker_process", *arguments])  # noqa: S603
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=f"can't start a worker: {error}")
        with self._lock:
            self._workers.append(((context.peer(), request.worker_id), process))
        log.info("worker %s for %s: process %d", request.worker_id, request.control_endpoint.url, process.pid)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:  # noqa: N802
        """End the worker with this id that the same connection asked for, after it has committed the rows it has read.

        A worker that is not named here ends by itself when its runner closes the connection.
        """
        wanted = (context.peer(), request.worker_id)
        _end([process for key, process in self._running() if key == wanted])
        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """End every worker."""
        _end([process for _, process in self._running()])

    def ports(self) -> dict[str, int]:
        """The ports on which the running workers serve their metrics, by process id."""
        found = {}
        for _, process in self._running():
            file = self.folder / f"{process.pid}{PORT_SUFFIX}"
            if file.is_file() and (text := file.read_text()):
                found[str(process.pid)] = int(text)
        return found

    def _running(self) -> list[tuple[tuple[str, str], subprocess.Popen[bytes]]]:
        with self._lock:
            self._workers = [(key, process) for key, process in self._workers if process.poll() is None]
            return list(self._workers)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        log.info("ending process %d", process.pid)
        process.terminate()
    ends = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def serve_pool(port: int, metrics_port: int | None) -> None:
    """Run the pool until SIGTERM or Ctrl-C, then let the workers commit and end.

    Raises RunnerError if the port is taken.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="tagstream-workers-") as folder:
        pool = WorkerPool(Path(folder))
        server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=_OPTIONS)
        beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
        try:
            server.add_insecure_port(f"[::]:{port}")
        except RuntimeError:
            raise RunnerError(f"port {port} is taken; choose another with --port") from None
        if metrics_port is not None:
            serve_metrics(metrics_port, PoolCollector(pool.ports))
        server.start()
        log.info("waiting for task managers on port %d; workers run %s; process %d", port, sys.executable, os.getpid())
        stop.wait()
        server.stop(0)
        pool.close()
