"""Live jobs on a real Flink cluster: each message once whatever dies, their operation, and errors that end them."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kafka import KafkaProducer
from rich.console import Console

from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.jobs.run import run_job
from tagstream.pipelines.runners import submit as remote
from tagstream.schemas.errors import ModelError, RunnerError
from tagstream.schemas.spec_file import load_spec
from tests.deploy.test_monitoring import FLINK
from tests.pipelines.runners.test_flink import finish, start, write_job
from tests.services.flink import FlinkCluster
from tests.services.flink_faults import FAULTS, Flow, inflict
from tests.services.java import wait_until
from tests.services.kafka_faults import differences

pytestmark = [pytest.mark.crash, pytest.mark.xdist_group("flink"), pytest.mark.timeout(3600)]


def write_live(folder: Path, servers: str, runner: dict, sink: dict) -> Path:
    spec = {
        "name": "flink-live",
        "source": {"type": "kafka", "servers": servers, "topics": "in"},
        "infer": [{"as": "tag", "backend": {"type": "constant"}}],
        "sink": sink,
        "blocks": {"rows": 500},
        "runner": runner,
    }
    path = folder / "live.yaml"
    path.write_text(json.dumps(spec))
    return path


def tagstream(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tagstream", *arguments], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def broker(mortal_kafka, flink: FlinkCluster):
    for topic in ("in", "out", "out-dead"):
        mortal_kafka.create_topic(topic, 4)
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "slots are free")
    return mortal_kafka


def test_every_message_once(flink: FlinkCluster, broker, tmp_path: Path, long: bool) -> None:
    """Each message is labelled once, although every process is killed under load and the job is submitted again."""
    faults = ["task manager", "resubmit"]
    if long:
        faults = [*FAULTS, "resubmit"] * 3
        random.Random(5).shuffle(faults)
    spec = write_live(tmp_path, broker.servers, flink.runner, {"type": "kafka", "topic": "out", "mode": "headers"})
    process = start(spec)
    flow = Flow(broker, "in", "out", rate=300)

    def alive() -> None:
        assert process.poll() is None, process.communicate()[0]

    try:
        flow.recovers(3, alive)
        for fault in faults:
            if fault == "resubmit":
                process.send_signal(signal.SIGTERM)
                finish(process)
                process = start(spec)
            else:
                inflict(fault, flink, broker)
            print(f"{fault}: {flow.recovers(10 if long else 3, alive):.1f} s")
        sent = flow.finish()
        process.send_signal(signal.SIGTERM)
        assert "stopping" in finish(process)
    finally:
        process.kill()
        flow.close()
    found = differences(broker.servers, "in", "out")
    assert found == {"in": sent, "out": sent, "lost": 0, "doubled": 0, "foreign": 0, "disordered": 0}


def test_detached_job_is_watched_and_stopped(flink: FlinkCluster, broker, tmp_path: Path) -> None:
    """`status` shows the job, workers serve its metrics, and `stop` commits the messages that were read."""
    sink = {"type": "parquet", "path": f"{tmp_path}/out", "commit_every": 3600.0}
    spec = write_live(tmp_path, broker.servers, flink.runner, sink)
    said = tagstream("run", "--detach", str(spec))
    assert re.search(rf"tagstream stop flink-live-\w+ --rest {flink.flink.rest}", said)
    try:
        wait_until(lambda: len(flink.samples("tagstream_lag_messages")) == 4, 120, "partitions are assigned", 0.2)
        wait_until(lambda: len(flink.samples("tagstream_lag_messages", "worker")) == 2, 120, "to both workers", 0.2)
        with closing(KafkaProducer(bootstrap_servers=broker.servers)) as producer:
            for number in range(1000):
                producer.send("in", b"message %03d" % number, partition=number % 4)
        tokens = lambda: flink.samples("tagstream_tokens_total", "worker")  # noqa: E731
        ours = flink.samples("tagstream_lag_messages", "worker")  # a worker of a job before may still be there
        read = lambda: sum(count for worker, count in tokens().items() if worker in ours)  # noqa: E731
        wait_until(lambda: read() == 11_000, 120, "the workers have read everything", 0.2)
        tagstream("status", str(spec), "--report", f"{tmp_path}/status.json")
        (job, *_) = json.loads((tmp_path / "status.json").read_text())["jobs"]
        assert (job["state"], job["committed"], job["failure"]) == ("RUNNING", 0, None)
        assert job["url"].endswith(f"#/job/{job['job']}/overview")
        assert flink.exported() >= FLINK, "metrics of Flink itself that the dashboard shows"
    finally:
        stopped = tagstream("stop", str(spec))
    assert job["name"] in stopped
    wait_until(lambda: list((tmp_path / "out").glob("*-0*.parquet")), 30, "the workers have committed")
    wait_until(lambda: pq.read_table(f"{tmp_path}/out").num_rows == 1000, 30, "every message is in a file")
    assert "canceled" in tagstream("status", job["name"], "--rest", flink.flink.rest)


def test_worker_of_another_version_ends_the_job(flink: FlinkCluster, tmp_path: Path, monkeypatch) -> None:
    """The job ends with the worker's message. It does not restart, and does not stay on the cluster."""
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "slots are free")
    real = Job.expectations
    monkeypatch.setattr(Job, "expectations", lambda job: [{**entry, "tagstream": "0.0.1"} for entry in real(job)])
    with pytest.raises(ModelError, match=r"tagstream: \S+ here, 0\.0\.1 there"):
        run_job(load_spec(str(write_job(tmp_path, 100, flink.runner))), Console(quiet=True))
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "the job has gone")


def test_pool_whose_workers_do_not_come(flink: FlinkCluster, tmp_path: Path, monkeypatch) -> None:
    """If the pool starts a `python` that can't run Beam, the job ends with a message that says where to look."""
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "slots are free")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with flink.foreign_pool(tmp_path / "bin") as address:
        runner = {**flink.runner, "environment": {"config": address}}
        monkeypatch.setitem(remote.WORKER_SECONDS, "EXTERNAL", 8.0)
        with pytest.raises(RunnerError, match=r"no Python worker has connected to Flink within 8 s.*tagstream workers"):
            run_job(load_spec(str(write_job(tmp_path, 100, runner))), Console(quiet=True))
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "the job has gone")
