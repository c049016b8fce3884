"""A real Flink cluster for the tests: JobManager, TaskManagers, Beam's job server and a worker pool, as processes.

The jars come from Maven into `.cache/services/flink` once. Everything listens on 127.0.0.1 with ports of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tagstream.pipelines.runners.flink_rest import Flink
from tagstream.schemas.errors import RunnerError
from tests.services.java import ROOT, free_ports, jars, java, wait_until

OPENS = [
    f"--add-opens=java.base/{package}=ALL-UNNAMED"
    for package in (
        "java.lang", "java.net", "java.io", "java.nio", "sun.nio.ch", "java.lang.reflect", "java.text", "java.time",
        "java.util", "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks",
    )
]  # fmt: skip
MEMORY = {
    "task.heap.size": "256m", "task.off-heap.size": "0m", "managed.size": "128m", "network.min": "64m",
    "network.max": "64m", "framework.heap.size": "128m", "framework.off-heap.size": "128m",
    "jvm-metaspace.size": "256m", "jvm-overhead.min": "64m", "jvm-overhead.max": "64m",
}  # fmt: skip


class FlinkCluster:
    """A running cluster. `processes` by name: jobmanager, taskmanager1 …, jobserver, workers. `lasting`: see `java`.

    `staging`: for each job, the job server sends its 150 MB of jars through the JobManager to each task manager, which
    takes 8 s of CPU time. Without it, a job uses the jars that the cluster has on its own class path. To go without
    takes a Java that can compile, see `JobServer.java`.
    """

    def __init__(
        self, folder: Path, task_managers: int = 2, slots: int = 1, *, lasting: bool = False, staging: bool = False
    ) -> None:
        self.lasting, self.staging = lasting, staging or shutil.which("javac") is None
        self.folder, self.libs, self.task_managers, self.slots = folder, jars("flink"), task_managers, slots
        self.rest_port, self.rpc_port, self.worker_port, self.metrics_port, *self.job_ports = free_ports(7)
        self.exporters: dict[str, int] = {}
        """The port of Flink's own metrics, by process."""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.flink = Flink(f"http://127.0.0.1:{self.rest_port}")

    @property
    def runner(self) -> dict[str, object]:
        """The `runner` part of a specification for this cluster."""
        return {
            "type": "flink",
            "job_server": f"127.0.0.1:{self.job_ports[0]}",
            "rest": self.flink.rest,
            "parallelism": self.task_managers * self.slots,
            "environment": {"type": "EXTERNAL", "config": f"127.0.0.1:{self.worker_port}"},
        }

    def start(self) -> None:
        self._configure()
        self.start_process("jobmanager")
        for number in range(self.task_managers):
            self.start_process(f"taskmanager{number + 1}")
        self.start_process("workers")
        self.start_process("jobserver")
        self.wait(lambda: self.flink.slots()[0] == self.task_managers * self.slots, "task managers")
        self.wait(lambda: _open(self.job_ports[0]), "job server")
        self.wait(lambda: _open(self.worker_port), "worker pool")

    def start_process(self, name: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self.processes[name] = subprocess.Popen(
            self._command(name), stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "true"},
        )  # fmt: skip

    def kill(self, name: str) -> None:
        """Kill a process and its children with SIGKILL."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def workers(self) -> list[int]:
        """Process ids of the Python workers that the pool has started."""
        pool = self.processes["workers"].pid
        found = subprocess.run(["pgrep", "-P", str(pool)], capture_output=True, check=False, text=True).stdout
        return [int(pid) for pid in found.split()]

    def samples(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Values of a metric of the worker pool, by all of its labels, or summed by the named labels."""
        found: dict[tuple[str, ...], float] = defaultdict(float)
        for family in text_string_to_metric_families(_get(self.metrics_port)):
            for sample in family.samples:
                if sample.name == name:
                    found[tuple(sample.labels[label] for label in labels or sorted(sample.labels))] += sample.value
        return found

    def exported(self) -> set[str]:
        """Names of the metrics that Flink itself serves."""
        texts = [_get(port) for name, port in self.exporters.items() if name in self.processes]
        return {sample.name for text in texts for f in text_string_to_metric_families(text) for sample in f.samples}

    @contextlib.contextmanager
    def foreign_pool(self, path: Path) -> Iterator[str]:
        """Run Beam's own worker pool, which starts the `python` in the folder `path`. Gives the pool's address."""
        (port,) = free_ports(1)
        module = "apache_beam.runners.worker.worker_pool_main"
        with (self.folder / "foreign.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module, f"--service_port={port}"], stdout=log, stderr=log,
                env={**os.environ, "PATH": f"{path}:{os.environ['PATH']}"},
            )  # fmt: skip
        try:
            wait_until(lambda: _open(port), 60, "Beam's worker pool")
            yield f"127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def wait(self, condition, what: str, seconds: float = 90) -> None:
        def met() -> bool:
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended:\n{self.tail(name)}"
            try:
                return bool(condition())
            except RunnerError:
                return False

        try:
            wait_until(met, seconds, what, 0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n" + "\n".join(self.tail(name) for name in self.processes)) from None

    def tail(self, name: str, characters: int = 3000) -> str:
        return f"--- {name}\n" + (self.folder / f"{name}.log").read_text(errors="replace")[-characters:]

    def _command(self, name: str) -> list[str]:
        if name == "workers":
            ports = [f"--port={self.worker_port}", f"--metrics-port={self.metrics_port}"]
            return [sys.executable, "-m", "tagstream", "workers", *ports]
        entry = "org.apache.flink.runtime"
        if name != "jobserver":
            (self.exporters[name],) = free_ports(1)
            own = f"metrics.reporter.prom.port={self.exporters[name]}"
            conf = ["--configDir", str(self.folder / "conf"), "-D", own]
        if name == "jobmanager":
            arguments = [f"{entry}.entrypoint.StandaloneSessionClusterEntrypoint", *conf]
        elif name.startswith("taskmanager"):
            main = f"{entry}.taskexecutor.TaskManagerRunner"
            arguments = ["-XX:MaxMetaspaceSize=256m", main, *conf, "-D", f"taskmanager.resource-id={name}"]
        else:
            main = ["org.apache.beam.runners.flink.FlinkJobServerDriver"]
            if not self.staging:
                empty = self.folder / "empty.jar"
                with zipfile.ZipFile(empty, "w") as jar:
                    jar.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n\n")
                main = [f"-Dstaged={empty}", str(ROOT / "tests/services/flink/JobServer.java")]
            arguments = [
                *main, "--job-host=127.0.0.1",
                f"--job-port={self.job_ports[0]}", f"--artifact-port={self.job_ports[1]}",
                f"--expansion-port={self.job_ports[2]}",
                f"--flink-master=127.0.0.1:{self.rest_port}", f"--artifacts-dir={self.folder / 'artifacts'}",
            ]  # fmt: skip
        return java(*OPENS, "-cp", f"{self.libs}/*", "-Xmx512m", *arguments, lasting=self.lasting)

    def _configure(self) -> None:
        (self.folder / "conf").mkdir(parents=True, exist_ok=True)
        settings = {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": self.rpc_port,
            "jobmanager.bind-host": "127.0.0.1",
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": self.rest_port,
            "taskmanager.numberOfTaskSlots": self.slots,
            "taskmanager.cpu.cores": 1.0,
            **{f"taskmanager.memory.{key}": value for key, value in MEMORY.items()},
            "cluster.evenly-spread-out-slots": "true",
            "classloader.resolve-order": "parent-first",
            "restart-strategy.type": "fixed-delay",
            "restart-strategy.fixed-delay.attempts": 1000,
            "restart-strategy.fixed-delay.delay": "1 s",
            "heartbeat.interval": 1000,
            "heartbeat.timeout": 5000,
            "metrics.reporter.prom.factory.class": "org.apache.flink.metrics.prometheus.PrometheusReporterFactory",
            "io.tmp.dirs": str(self.folder / "tmp"),
            "blob.storage.directory": str(self.folder / "blobs"),
        }
        (self.folder / "tmp").mkdir(exist_ok=True)
        (self.folder / "blobs").mkdir(exist_ok=True)
        lines = [f"{key}: {value}" for key, value in settings.items()]
        (self.folder / "conf/config.yaml").write_text("\n".join(lines) + "\n")


def _get(port: int) -> str:
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60).read().decode()


def _open(port: int) -> bool:
    with socket.socket() as opened:
        opened.settimeout(1)
        return opened.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory) -> FlinkCluster:
    """A cluster of two task managers, each with one slot."""
    cluster = FlinkCluster(tmp_path_factory.mktemp("flink"))
    cluster.start()
    yield cluster
    cluster.stop()
