"""A specification on a real Flink cluster gives the same labels as a local run, exactly once, with clear errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.pipelines.parquet.test_crash import query
from tests.services.flink import FlinkCluster
from tests.services.java import ROOT, free_ports, wait_until

pytestmark = pytest.mark.xdist_group("flink")


def write_job(folder: Path, rows: int, runner: dict, **backend) -> Path:
    texts = [None if i % 89 == 0 else f"message number {i % 1000} of many" for i in range(rows)]
    (folder / "in").mkdir()
    pq.write_table(pa.table({"id": range(rows), "text": texts}), folder / "in/a.parquet", row_group_size=5_000)
    spec = {
        "name": "flink-test",
        "source": {"type": "parquet", "path": f"{folder}/in", "id": "id", "split_rows": 4000},
        "infer": [{"as": "tag", "backend": {"type": "constant", **backend}}],
        "sink": {"type": "parquet", "path": f"{folder}/out", "commit_every": 1.0},
        "blocks": {"rows": 250},
        "runner": runner,
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(spec))  # JSON is YAML
    return path


def start(spec: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tagstream", "run", str(spec), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    output = process.communicate(timeout=seconds)[0]
    assert process.returncode == 0, output
    return output


def check_complete(folder: Path, rows: int) -> None:
    ids = [i for (i,) in query(f"select id from read_parquet('{folder}/out/*.parquet')")]
    dead = [i for (i,) in query(f"select \"row\".id from read_parquet('{folder}/out-dead/*.parquet')")]
    assert sorted(dead) == [i for i in range(rows) if i % 89 == 0]
    assert sorted(ids) == [i for i in range(rows) if i % 89]


def test_bulk_equals_the_local_run(flink: FlinkCluster, tmp_path: Path) -> None:
    """Labels and dead letters equal those of a local run of the same specification. A rerun has nothing to do."""
    spec = write_job(tmp_path, 20_000, flink.runner)
    output = finish(start(spec, "--report", str(tmp_path / "report.json")))
    assert f"{flink.flink.rest}/#/job/" in output
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["state"], report["rows_in"], report["rows_left"]) == ("done", 20_000, 0)
    check_complete(tmp_path, 20_000)
    assert_equals_local(spec, tmp_path)
    assert "0 of 20,000 (20,000 were done before)" in finish(start(spec))


def assert_equals_local(spec: Path, folder: Path) -> None:
    """Assert that the job wrote to `out` what a local run of it writes."""
    finish(start(spec, "--set", f"sink.path={folder}/local", "--runner", "local"))
    both = [query(f"select * from read_parquet('{folder}/{name}/*.parquet') order by id") for name in ("out", "local")]
    assert both[0]
    assert both[0] == both[1]


@pytest.mark.crash
def test_demo_equals_the_local_run(flink: FlinkCluster, tmp_path: Path, long: bool) -> None:
    """The bundled models run in the workers. Only with --crash-long, because it takes a minute more than the others."""
    if not long:
        pytest.skip("only with --crash-long")
    spec = tmp_path / "demo.yaml"
    demo = yaml.safe_load((ROOT / "examples/sms.yaml").read_text())
    demo["source"]["path"] = str(ROOT / "examples/sms.parquet")
    demo |= {"sink": {"type": "parquet", "path": f"{tmp_path}/out"}, "runner": flink.runner}
    spec.write_text(json.dumps(demo))
    finish(start(spec))
    assert_equals_local(spec, tmp_path)


def test_killed_workers_and_task_managers(flink: FlinkCluster, tmp_path: Path, long: bool) -> None:
    """After kill -9 of a Python worker and of a task manager in the middle, every row is there exactly once."""
    rows, ms_per_row = (200_000, 0.25) if long else (16_000, 1.0)
    spec = write_job(tmp_path, rows, flink.runner, ms_per_row=ms_per_row)
    process = start(spec)

    def files() -> int:
        return len(list((tmp_path / "out").glob("*-0*.parquet"))) if process.poll() is None else 1 << 30

    wait_until(lambda: files() > 2, 120, "some files are committed")
    assert process.poll() is None, process.communicate()[0]
    worker = flink.workers()[0]
    subprocess.run(["kill", "-9", str(worker)], check=True)
    before = files()
    wait_until(lambda: files() > before + 1, 120, "work goes on after a worker's death")
    assert process.poll() is None
    flink.kill("taskmanager2")
    flink.start_process("taskmanager2")
    finish(process)
    check_complete(tmp_path, rows)
    if long:
        assert_equals_local(spec, tmp_path)


@pytest.mark.crash
def test_slots_of_a_task_manager_share_a_worker(tmp_path: Path, long: bool) -> None:
    """Two slots share one Python process. Only with --crash-long, because it needs a cluster of its own."""
    if not long:
        pytest.skip("only with --crash-long")
    cluster = FlinkCluster(tmp_path / "cluster", task_managers=1, slots=2, staging=True)
    cluster.start()
    try:
        spec = write_job(tmp_path, 16_000, cluster.runner, ms_per_row=1.0)
        process = start(spec)
        wait_until(lambda: list((tmp_path / "out").glob("*-0*.parquet")), 120, "a file is committed")
        assert len(cluster.workers()) == 1
        finish(process)
        check_complete(tmp_path, 16_000)
    finally:
        cluster.stop()


@pytest.mark.crash
def test_any_runner_of_beam(flink: FlinkCluster, tmp_path: Path, long: bool) -> None:
    """With Beam's own options for a runner, here the same cluster, a job is stopped by SIGTERM and then finished."""
    if not long:
        pytest.skip("only with --crash-long")
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "slots are free")
    pool = flink.runner["environment"]["config"]
    options = [f"--job_endpoint={flink.runner['job_server']}", "--environment_type=EXTERNAL"]
    options += ["--runner=PortableRunner", f"--environment_config={pool}", "--parallelism=2"]
    spec = write_job(tmp_path, 16_000, {"type": "beam", "options": options}, ms_per_row=1.0)
    process = start(spec, "--must-finish")
    wait_until(lambda: list((tmp_path / "out").glob("*-0*.parquet")), 120, "a file is committed")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 7, output
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "the job has gone")
    finish(start(spec, "--must-finish"))
    check_complete(tmp_path, 16_000)


def test_stop_leaves_the_rest_for_the_next_run(flink: FlinkCluster, tmp_path: Path) -> None:
    """SIGTERM cancels the job on the cluster. It exits 0, or 7 with --must-finish. The next run does the rest."""
    spec = write_job(tmp_path, 10_000, flink.runner, ms_per_row=1.0)
    process = start(spec, "--report", str(tmp_path / "report.json"), "--must-finish")
    wait_until(lambda: list((tmp_path / "out").glob("*-0*.parquet")), 120, "a file is committed")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 7, output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["state"] == "stopped"
    assert report["rows_left"] > 0
    assert {job.state for job in flink.flink.jobs() if "flink-test" in job.name} <= {"CANCELED", "FINISHED"}
    finish(start(spec))
    check_complete(tmp_path, 10_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"job_server": "127.0.0.1:{closed}"}, "runner.job_server 127.0.0.1:{closed} does not answer"),
        ({"rest": "http://127.0.0.1:{closed}"}, "does not answer"),
        ({"parallelism": 50}, "2 task slots, 2 free; runner.parallelism asks for 50"),
        ({"environment": {"config": "127.0.0.1:{closed}"}}, "start `tagstream workers`"),
        (  # a pool beside task managers on other machines can't be checked from here
            {"rest": "http://0.0.0.0:{rest}", "environment": {"config": "127.0.0.1:{closed}"}},
            "a task manager can't reach a Python worker",
        ),
    ],
)
def test_submission_errors_are_clear(flink: FlinkCluster, tmp_path: Path, change: dict, message: str) -> None:
    """The job exits 6, and the message names the field and says what to do."""
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "slots are free")
    (closed,) = free_ports(1)
    runner = json.loads(
        json.dumps({**flink.runner, **change})
        .replace("{closed}", str(closed))
        .replace("{rest}", flink.flink.rest.rpartition(":")[2])
    )
    process = start(write_job(tmp_path, 100, runner))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 6, output
    assert message.replace("{closed}", str(closed)) in " ".join(output.split())
    assert "Traceback" not in output


def test_error_of_a_worker_ends_the_job(flink: FlinkCluster, tmp_path: Path) -> None:
    """If a file is removed after the planning, the job ends with the worker's message and exit 3, not in restarts."""
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "slots are free")
    spec = write_job(tmp_path, 8_000, flink.runner, ms_per_row=2.0)
    process = start(spec)
    wait_until(
        lambda: (tmp_path / "out/job.parquet").exists() or process.poll() is not None, 120, "the output is claimed"
    )
    (tmp_path / "in/a.parquet").unlink()
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 3, output
    assert "a.parquet: can't be read" in output
