"""`plan` tells the truth before, in the middle of and after a job, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tagstream.pipelines.jobs.plan import Plan, plan_job, print_plan
from tagstream.schemas.errors import ModelError, SourceError
from tagstream.transforms.inference.backends import auto
from tests.certified import certified
from tests.models import make_model
from tests.pipelines.bulk_jobs import BulkJob


@pytest.fixture
def job(tmp_path: Path) -> BulkJob:
    bulk = BulkJob(tmp_path)
    bulk.put("a.parquet", ["x"] * 250)
    bulk.put("b.parquet", [None, *["x"] * 49], first=250)
    return bulk


def numbers(plan: Plan) -> tuple[int, ...]:
    return plan.splits, plan.splits_done, plan.rows, plan.rows_done, plan.rows_left


def test_before_half_way_and_after(job: BulkJob) -> None:
    """Dead letters count as done. A plan with a limit tells of that part only."""
    assert numbers(plan_job(job.spec())) == (4, 0, 300, 0, 300)
    assert numbers(plan_job(job.spec(), limit=120)) == (2, 0, 120, 0, 120)
    job.run(limit=120)
    assert numbers(plan_job(job.spec())) == (4, 1, 300, 120, 180)
    assert numbers(plan_job(job.spec(), limit=120)) == (2, 2, 120, 120, 0)
    assert numbers(plan_job(job.spec(), limit=50)) == (1, 1, 50, 50, 0)
    job.run()
    assert numbers(plan_job(job.spec())) == (4, 4, 300, 300, 0)


def test_changes_nothing(job: BulkJob) -> None:
    """No folder is created, and after a run no file is changed."""
    plan_job(job.spec())
    assert sorted(path.name for path in job.folder.iterdir()) == ["in"]
    job.run(limit=120)
    before = {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")}
    plan_job(job.spec())
    assert {path: path.stat().st_mtime_ns for path in job.folder.rglob("*")} == before


@pytest.mark.parametrize("position", [False, True])
def test_columns_are_those_that_are_written(job: BulkJob, position: bool) -> None:
    """The plan has the names, order and types of the output's columns."""
    infer = [{"as": "tag", "scores": "all", "provenance": ["model", "tokens"], "backend": {"type": "constant"}}]
    plan = plan_job(job.spec(infer=infer, sink__position=position))
    job.run(infer=infer, sink__position=position)
    written = pq.read_schema(next((job.folder / "out").glob("*.parquet")))
    assert plan.columns == {field.name: str(field.type) for field in written}


def test_rows_of_input_that_is_gone(job: BulkJob) -> None:
    """Splits of the output without input are counted separately."""
    job.run()
    (job.folder / "in/b.parquet").unlink()
    plan = plan_job(job.spec())
    assert numbers(plan) == (3, 3, 250, 250, 0)
    assert plan.foreign_splits == 1


def test_speed(job: BulkJob) -> None:
    """Without a model the speed is unknown before the first commit, and measured afterwards."""
    assert plan_job(job.spec()).rows_per_s is None
    job.run(limit=120)
    plan = plan_job(job.spec())
    assert plan.rows_per_s is not None
    assert plan.rows_per_s > 0
    assert plan.speed_from == "measured by the commits of this output"


def test_speed_of_a_certificate(job: BulkJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The certificate of this machine counts, another machine's does not. The entries' seconds add up."""
    monkeypatch.setattr(auto, "cpu_name", lambda: "this machine")
    model, folder = certified(tmp_path, machine="this machine", rows_per_s=50.0)
    infer = [
        {"model": str(model), "as": "a", "backend": {"type": "auto", "certificate": str(folder)}},
        {"as": "b", "backend": {"type": "constant", "ms_per_row": 20}},
    ]
    plan = plan_job(job.spec(infer=infer))
    assert plan.rows_per_s == 25.0
    assert "optimize" in plan.speed_from
    plan = plan_job(job.spec(infer=infer[1:]))
    assert plan.rows_per_s == 50.0
    assert "ms_per_row" in plan.speed_from
    monkeypatch.setattr(auto, "cpu_name", lambda: "another machine")
    plan = plan_job(job.spec(infer=infer))
    assert "rough estimate" in plan.speed_from
    assert plan.rows_per_s is not None
    assert 25 < plan.rows_per_s <= 50, "20 ms of the second and next to nothing of the tiny first"


@pytest.mark.parametrize("backend", ["onnx", "auto"])
def test_speed_of_a_model_is_no_reading_speed(job: BulkJob, tmp_path: Path, backend: str) -> None:
    """Without a certificate the speed is estimated from the model's size."""
    model = make_model(tmp_path / "model")
    plan = plan_job(job.spec(infer=[{"model": str(model), "backend": {"type": backend}}]))
    assert "rough estimate" in plan.speed_from
    assert plan.rows_per_s is not None


def test_needs_the_config_of_a_model_only(job: BulkJob, tmp_path: Path) -> None:
    """Damaged weights do not matter, because they are not read. The speed is estimated from the model's size."""
    folder = make_model(tmp_path / "model", labels=("a", "b"))
    (folder / "model.safetensors").write_bytes(b"not loaded")
    plan = plan_job(job.spec(infer=[{"model": str(folder), "as": "tag", "scores": "all"}]))
    assert plan.columns["tag_scores"] == "struct<a: float, b: float>"
    assert plan.rows_per_s is not None
    assert plan.rows_per_s > 0
    with pytest.raises(ModelError, match="not a folder"):
        plan_job(job.spec(infer=[{"model": "./nowhere"}]))


def test_wrong_input(job: BulkJob) -> None:
    """`plan` gives the same errors as `run`."""
    with pytest.raises(SourceError, match="no column 'txet'"):
        plan_job(job.spec(source__text="txet"))


def test_prints_what_it_knows(job: BulkJob) -> None:
    """The table shows every number that matters, and says so if nothing is left to do."""
    job.run(limit=120)
    print_plan(job.console, plan_job(job.spec()))
    for text in ("4 (1 done)", "300", "120", "180", "tag: string", str(job.folder / "out")):
        assert text in job.said
    job.run()
    print_plan(job.console, plan_job(job.spec()))
    assert "nothing to do" in job.said


def test_as_json(job: BulkJob) -> None:
    """The report has every field, and the rows that are left."""
    assert plan_job(job.spec()).to_dict()["rows_left"] == 300


def test_advice_for_a_cluster(job: BulkJob) -> None:
    """Advice names idle slots, and a model that two processes would load. A local run gets none."""
    model = {"model": str(make_model(job.folder / "model")), "as": "tag"}
    assert plan_job(job.spec()).advice == []
    assert plan_job(job.spec(runner={"type": "flink", "parallelism": 4})).advice == []
    (few,) = plan_job(job.spec(runner={"type": "flink", "parallelism": 9})).advice
    assert few.startswith("4 splits leave some of the 9 slots idle")
    plan = plan_job(job.spec(runner={"type": "flink", "parallelism": 2}, infer=[model]))
    print_plan(job.console, plan)
    assert "run one task manager for each GPU" in " ".join(job.said.split())
