"""Input files that were rewritten: never old and new rows beside each other, whenever the process is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.jobs.plan import plan_job
from tagstream.pipelines.jobs.replay import replay_job
from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.errors import LedgerError, SpecError
from tagstream.transforms.io.common.atomic_folder import Folder
from tagstream.transforms.io.parquet.label_files import KEY
from tests.pipelines.bulk_jobs import BulkJob


@pytest.fixture
def job(tmp_path: Path) -> BulkJob:
    """Two labelled files; one row of each is dead. Then `a.parquet` is written anew with other rows."""
    bulk = BulkJob(tmp_path)
    bulk.put("a.parquet", ["x"] * 49 + [None])
    bulk.put("b.parquet", ["y"] * 49 + [None], first=100)
    bulk.run(max_dead=1)
    bulk.put("a.parquet", ["x"] * 59 + [None], first=1_000)
    return bulk


OLD, NEW, OTHER = [*range(49)], [*range(1_000, 1_059)], [*range(100, 149)]


def run(job: BulkJob, changed: Any = None, **more: Any) -> Any:
    return run_job(job.spec(max_dead=1, **more), job.console, changed=changed)


def test_refused_without_a_choice(job: BulkJob) -> None:
    """`run` and `plan` name the file; nothing is written."""
    for _ in range(2):
        with pytest.raises(
            LedgerError, match=r"1 file was rewritten \(a\.parquet\).*--replace-changed.*--keep-changed"
        ):
            run(job)
    assert LedgerError.exit_code == 5
    assert plan_job(job.spec()).changed == ["a.parquet"]
    assert job.labels() == OLD + OTHER


def test_replaced(job: BulkJob) -> None:
    """The new rows are there, the old ones are gone, dead letters too; then there is nothing left to do."""
    report = run(job, "replace")
    assert (report.state, report.rows_left, report.counts.rows_in) == ("done", 0, 60)
    assert (job.labels(), job.dead()) == (OTHER + NEW, [149, 1_059])
    assert not list(job.folder.glob(".*"))
    again = run(job)
    assert (again.counts.rows_in, again.rows_before, again.rows_left) == (0, 110, 0)
    assert plan_job(job.spec()).changed == []


def test_replaced_again_and_back(job: BulkJob) -> None:
    """A file that changes every night, and one that is as it was at first."""
    run(job, "replace")
    for first in (2_000, 0):
        job.put("a.parquet", ["x"] * (49 if first == 0 else 10), first=first)
        with pytest.raises(LedgerError, match="rewritten"):
            run(job)
        run(job, "replace")
        rows = 49 if first == 0 else 10
        assert job.labels() == sorted([*range(first, first + rows), *OTHER])
        assert job.dead() == [149]


def test_same_rows_in_another_compression(tmp_path: Path) -> None:
    """As many rows as ids: the case of the issue."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x"] * 350)
    run(job)
    pq.write_table(pq.read_table(tmp_path / "in/a.parquet"), tmp_path / "in/a.parquet", compression="gzip")
    with pytest.raises(LedgerError):
        run(job)
    run(job, "replace")
    assert job.labels() == list(range(350))


def test_kept(job: BulkJob) -> None:
    """The old rows stay and the new file is not read; new files are."""
    job.put("c.parquet", ["z"], first=500)
    report = run(job, "keep")
    assert (report.state, report.rows_left, report.counts.rows_in) == ("done", 0, 1)
    assert job.labels() == [*OLD, *OTHER, 500]
    assert "the old rows stay and the new files are not read" in job.said


def test_replays_of_old_rows_go_too(tmp_path: Path) -> None:
    """Rows that a replay has added belong to the old file."""
    job = BulkJob(tmp_path)
    failing = {"as": "tag", "backend": {"type": "constant", "label": "ham", "fail_on": "bad"}}
    job.put("a.parquet", ["x", "bad"])
    run(job, infer=[failing])
    replay_job(job.spec(), job.console)
    assert job.labels() == [0, 1]
    job.put("a.parquet", ["x", "y"], first=10)
    run(job, "replace")
    assert (job.labels(), job.dead()) == ([10, 11], [])


def test_file_without_rows_any_more(job: BulkJob) -> None:
    """Its old rows are taken out."""
    job.put("a.parquet", [])
    run(job, "replace")
    assert (job.labels(), job.dead()) == (OTHER, [149])


def test_output_of_an_earlier_version(job: BulkJob) -> None:
    """It does not record the names of input files: the stems of the split ids tell them."""
    for path in (job.folder / "out").glob("*-0*.parquet"):
        table = pq.read_table(path)
        footer = {k: v for k, v in json.loads(pq.read_metadata(path).metadata[KEY]).items() if k != "source"}
        pq.write_table(table.replace_schema_metadata({KEY: json.dumps(footer).encode()}), path)
    with pytest.raises(LedgerError, match=r"rewritten \(a\.parquet\)"):
        run(job)
    run(job, "replace")
    assert job.labels() == OTHER + NEW


def test_output_that_holds_both(job: BulkJob) -> None:
    """An earlier version labelled the new file beside the old one: it is said, and mended."""
    old = {p.name: p.read_bytes() for p in (job.folder / "out").glob("a-*.parquet")}
    run(job, "replace")
    for name in list(job.files()):
        if name.startswith("a-"):
            (path := job.folder / "out" / name).rename(path.with_name("kept"))
            footer = json.loads(pq.read_metadata(path.with_name("kept")).metadata[KEY])
            path.with_name("kept").rename(job.folder / f"out/{footer['split']}-{0:015d}.parquet")
    for name, content in old.items():
        (job.folder / "out" / name).write_bytes(content)
    assert job.labels() == sorted(OLD + OTHER + NEW)
    with pytest.raises(LedgerError, match="rewritten"):
        run(job)
    run(job, "replace")
    assert job.labels() == OTHER + NEW


def test_other_sinks(tmp_path: Path) -> None:
    """They can keep the old rows; replacing is refused with the ways on."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x"])
    sink = {"sink": {"type": "duckdb", "path": str(tmp_path / "x.duckdb"), "table": "labels"}, "dead_letters": None}
    run(job, **sink)
    job.put("a.parquet", ["x", "y"])
    with pytest.raises(LedgerError, match="rewritten"):
        run(job, **sink)
    with pytest.raises(LedgerError, match=r"to a local Parquet folder.*duckdb.*--keep-changed.*--overwrite"):
        run(job, "replace", **sink)
    assert run(job, "keep", **sink).counts.rows_in == 0


def test_file_that_was_mended(tmp_path: Path) -> None:
    """A file that could not be read has no old rows: it is labelled without a question."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x"] * 30)
    (tmp_path / "in/b.parquet").write_text("no")
    run(job, source__on_bad_file="dead_letter")
    job.put("b.parquet", ["y"], first=100)
    run(job)
    assert job.labels() == [*range(30), 100]


def test_limit(job: BulkJob) -> None:
    """Part of a file can't replace the whole."""
    with pytest.raises((LedgerError, SpecError), match="leave out --limit"):
        run_job(job.spec(max_dead=1), job.console, limit=5, changed="replace")


STEPS = ["publish_text", "delete", "replace", "unlink", "rmtree"]


def killing(at: int, *, after: bool) -> None:
    """From now on this process ends by SIGKILL before, or after, its step number `at` in the file system."""
    count = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            nonlocal count
            count += 1
            if count == at and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **more)
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return step

    for owner, name in ((Folder, "publish_text"), (Folder, "delete"), (Path, "replace"), (shutil, "rmtree")):
        setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("files", [1, 3])
def test_killed_at_every_step(job: BulkJob, files: int, after: bool) -> None:
    """With one file of labels all old or all new rows are visible; with several, never both. A rerun completes."""
    if files == 3:  # old and new rows in several files of labels
        shutil.rmtree(job.folder / "out")
        shutil.rmtree(job.folder / "dead")
        job.put("a.parquet", ["x"] * 49 + [None] * 250)
        run(job)
        job.put("a.parquet", ["x"] * 59 + [None] * 200, first=1_000)
    dead = sorted([149, *(range(1_059, 1_259) if files == 3 else [1_059])])
    spec = job.spec(max_dead=1)
    kept = job.folder / "kept"
    steps = 0
    while True:
        shutil.rmtree(kept, ignore_errors=True)
        for name in ("out", "dead"):
            shutil.copytree(job.folder / name, kept / name)
        steps += 1
        child = os.fork()
        if not child:
            killing(steps, after=after)
            with Job.open(spec) as opened:
                opened.sink.prepare(opened.fingerprint(), overwrite=False)
                changed = opened.changed(opened.sink.progress())
                switch_without_runner(opened, changed)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        seen = set(job.labels())
        old, new = seen & set(OLD), seen & set(NEW)
        assert not (old and new)
        if files == 1:
            assert old == set(OLD) or new == set(NEW)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        run(job, "replace")
        assert (job.labels(), job.dead()) == (OTHER + NEW, dead)
        for name in ("out", "dead"):
            shutil.rmtree(job.folder / name)
            shutil.copytree(kept / name, job.folder / name)
    assert steps > 5


def switch_without_runner(opened: Job, changed: dict[str, list[str]]) -> None:
    """What `settle` does, with blocks written here: a forked process can't start a runner's threads."""
    sink: Any = opened.sink
    splits = [split for split in opened.splits if split.payload["name"] in changed]
    aside = sink.aside(opened.fingerprint())
    from tagstream.transforms.inference.labelling import Labelling
    from tagstream.transforms.stages.infer import BlockInference

    opened.load_models()
    inference = BlockInference(opened.spec, Labelling.of(opened.spec.infer, opened.context))
    for split in splits:
        writer = aside.open(split)
        for block in opened.source.read(split, writer.position):
            writer.write(inference.finish(inference.submit(block)))
        writer.commit()
    old = {split for ids in changed.values() for split in ids} | {split.id for split in splits}
    sink.switch(old, {split.id: split.stop for split in splits})


def test_columns_stay(job: BulkJob) -> None:
    """The new file of labels has the schema of the old one."""
    before = pq.read_schema(next((job.folder / "out").glob("a-*.parquet")))
    run(job, "replace")
    assert pq.read_schema(next((job.folder / "out").glob("a-*.parquet"))).equals(before)
    assert before.field("id").type == pa.int64()
