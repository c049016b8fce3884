"""Iceberg and Delta tables in jobs: new rows, owners of tables, crash points, changes by other writers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import requests
from rich.console import Console

from tagstream.pipelines.jobs.plan import plan_job
from tagstream.pipelines.jobs.run import run_job
from tagstream.pipelines.report.report import Report
from tagstream.schemas.errors import ChainMovedError, LedgerError, SinkError, SourceError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.lake.delta.table import DeltaLakeTable
from tagstream.transforms.io.lake.iceberg.table import IcebergTable
from tagstream.transforms.io.registry import open_sink, open_source
from tagstream.transforms.runtime.job_context import JobContext
from tests.transforms.io.lake import test_contract as contracts
from tests.transforms.io.lake.lakes import DeltaLake, IcebergLake, Lake
from tests.transforms.io.sink_contract import JOB, SPLIT, block

SINKS = [contracts.TestIcebergSink, contracts.TestDeltaSink]


@pytest.fixture(params=[IcebergLake, DeltaLake])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return request.param(tmp_path)


def messages(rows: int, first: int = 0) -> pa.Table:
    """Every 50th text null."""
    ids = list(range(first, first + rows))
    texts = [None if i % 50 == 0 else f"message {i}" for i in ids]
    schema = pa.schema([("id", pa.int64()), ("body", pa.string()), ("lang", pa.string())])
    return pa.table([ids, texts, ["en"] * rows], schema)


def spec(lake: Lake, *, source: Any = None, sink: Any = None, label: str = "ham", **more: Any) -> JobSpec:
    """Table `messages` to table `labels`."""
    return JobSpec.model_validate(
        {
            "source": {**lake.settings("messages"), "text": "body", "id": "id", "split_rows": 100, **(source or {})},
            "infer": [{"as": "tag", "scores": "all", "backend": {"type": "constant", "label": label}}],
            "sink": {**lake.settings("labels"), **(sink or {})},
            **more,
        }
    )


def run(job: JobSpec, **options: Any) -> Report:
    return run_job(job, Console(quiet=True), **options)


def ids(lake: Lake) -> list[int]:
    found = lake.table("labels")
    return sorted(found["id"].to_pylist()) if found.num_columns else []


def dead(lake: Lake) -> list[int]:
    found = lake.table("labels-dead" if lake.type == "delta" else "labels_dead")
    return sorted(json.loads(row)["id"] for row in found["row"].to_pylist()) if found.num_columns else []


def check(lake: Lake, rows: int) -> None:
    assert ids(lake) == [i for i in range(rows) if i % 50]
    assert dead(lake) == list(range(0, rows, 50))


def test_from_table_to_table(lake: Lake) -> None:
    """Labels with native types, dead letters beside them, spans in the history; a rerun does nothing."""
    lake.append("messages", messages(1_000))
    report = run(spec(lake, source={"keep": ["lang"]}))
    assert (report.state, report.counts.rows_in, report.counts.rows_out) == ("done", 1_000, 980)
    check(lake, 1_000)
    row = lake.table("labels").to_pylist()[0]
    assert (row["lang"], row["tag"], row["tag_score"], row["tag_scores"]) == ("en", "ham", 1.0, {"ham": 1.0})
    again = run(spec(lake, source={"keep": ["lang"]}))
    assert (again.counts.rows_in, again.rows_left, again.load_seconds) == (0, 0, 0.0)
    notes = [note for note in lake.notes("labels") if "tagstream.split" in note]
    assert sum(int(note["tagstream.rows-in"]) for note in notes) == 1_000
    assert sum(json.loads(note["tagstream.dead"]).get("null_text", 0) for note in notes) == 20
    assert {note["tagstream.fingerprint"] for note in notes} == {report.fingerprint}


def test_only_new_rows(lake: Lake) -> None:
    """With `only_new`, a second run labels the rows appended since. A job reads the version at which it began."""
    lake.append("messages", messages(250))
    run(spec(lake), limit=100)
    lake.append("messages", messages(130, first=250))
    assert run(spec(lake)).counts.rows_in == 150
    check(lake, 250)
    job = spec(lake, source={"only_new": True})
    plan = plan_job(job)
    assert (plan.rows, plan.rows_left) == (380, 130)
    assert run(job).counts.rows_in == 130
    for first in (380, 400, 420, 440):
        assert run(job).counts.rows_in == 0
        lake.append("messages", messages(20, first))
        assert run(job).counts.rows_in == 20
    check(lake, 460)


def test_rewritten_rows_are_not_new(lake: Lake) -> None:
    """Compaction brings no new rows. A commit that changed rows is refused: new rows can't be told from old ones."""
    lake.append("messages", messages(100))
    lake.append("messages", messages(100, first=100))
    job = spec(lake, source={"only_new": True})
    run(job)
    if isinstance(lake, DeltaLake):
        lake.compact("messages")
        lake.delete("messages", "id < 10")
        assert run(job).counts.rows_in == 0
    lake.rewrite("messages")
    with pytest.raises(SourceError, match=r"only_new can't find the new rows: .* rewrote rows"):
        run(job)
    assert run(spec(lake)).counts.rows_in == 0
    check(lake, 200)


def labelled(folder: Path) -> tuple[DeltaLake, JobSpec]:
    """A table of 20 labelled rows, and its job with `only_new`."""
    lake = DeltaLake(folder)
    lake.append("messages", messages(20))
    job = spec(lake, source={"only_new": True})
    run(job)
    return lake, job


def test_new_rows_that_were_deleted(tmp_path: Path) -> None:
    """Deleted rows are not labelled. The rest of their files is, also after compaction."""
    lake, job = labelled(tmp_path)
    for first in (20, 40, 60):
        lake.append("messages", messages(20, first))
    lake.delete("messages", "id < 5")  # of a file that is not new
    lake.delete("messages", "id >= 30 AND id < 60")  # a part of one file, all of another
    lake.vacuum("messages")
    assert run(job).counts.rows_in == 30
    assert ids(lake) == [*range(1, 30), *range(60, 80)]
    lake.append("messages", messages(20, 80))
    lake.delete("messages", "id = 79 OR id = 80")
    with pytest.raises(SourceError, match=r"only_new can't find the new rows: .* rewrote rows"):
        run(job)


def test_new_rows_that_were_compacted(tmp_path: Path) -> None:
    """New rows compacted with old ones are read from their own file. If that file is gone, the job says what to do."""
    lake, job = labelled(tmp_path)
    lake.append("messages", messages(20, 20))
    lake.compact("messages")
    assert run(job).counts.rows_in == 20
    check(lake, 40)
    lake.append("messages", messages(20, 40))
    lake.compact("messages")
    lake.vacuum("messages")
    with pytest.raises(SourceError, match=r"compacted, then vacuumed\?.*--overwrite starts again"):
        run(job)
    run(job, overwrite=True)
    check(lake, 60)


def test_new_rows_that_a_deletion_vector_hides(tmp_path: Path) -> None:
    """A deletion vector may hide rows of a file that is newer than the last plan."""
    lake, job = labelled(tmp_path)
    lake.append("messages", messages(40, 100))
    lake.hide("messages")
    assert run(job).counts.rows_in == 34
    gone = {103, 104, 107, 111, 118, 129}
    assert ids(lake) == [*range(1, 20), *(i for i in range(101, 140) if i not in gone)]


def test_history_may_go(lake: Lake) -> None:
    """The ledger survives expired snapshots and cleaned logs."""
    lake.append("messages", messages(500))
    run(spec(lake), limit=300)
    lake.expire("labels")
    assert plan_job(spec(lake)).rows_left == 200
    assert run(spec(lake)).counts.rows_in == 200
    lake.expire("labels")
    assert run(spec(lake)).counts.rows_in == 0
    check(lake, 500)


def test_history_of_the_source_is_gone(lake: Lake) -> None:
    """Planned rows are still read. New rows can't be found any more, and the job says so."""
    lake.append("messages", messages(200))
    run(spec(lake), limit=100)
    for first in (200, 250):
        lake.append("messages", messages(50, first))
    lake.expire("messages")
    assert run(spec(lake)).counts.rows_in == 100
    with pytest.raises(SourceError, match=r"only_new can't find the new rows"):
        run(spec(lake, source={"only_new": True}))


def test_labels_that_were_taken_back_are_noticed(lake: Lake) -> None:
    """After a rollback of the table, the ledger counts rows that are gone. The job stops; --overwrite starts again."""
    lake.append("messages", messages(200))
    run(spec(lake), limit=100)
    before = lake.version("labels")
    run(spec(lake))
    lake.roll_back("labels", before)
    with pytest.raises(LedgerError, match=r"to before the last commit of job 'job'; --overwrite starts again"):
        run(spec(lake))
    assert run(spec(lake), overwrite=True).counts.rows_in == 200
    check(lake, 200)


def test_tables_of_others_are_left_alone(lake: Lake) -> None:
    """A foreign table is refused without `adopt`. With it, rows are added, and --overwrite removes none."""
    lake.append("messages", messages(60))
    lake.append("labels", pa.table({"id": [-1], "tag": ["mine"]}))
    with pytest.raises(LedgerError, match=r"already exists and was not made by job 'job'.*adopt: true"):
        run(spec(lake))
    run(spec(lake, sink={"adopt": True}))
    assert ids(lake) == [-1, *(i for i in range(60) if i % 50)]
    with pytest.raises(LedgerError, match="its rows can't be told from others"):
        run(spec(lake, sink={"adopt": True}), overwrite=True)
    run(spec(lake, sink={"adopt": True}, name="second", label="spam"))
    assert lake.table("labels").num_rows == 1 + 2 * 58


def test_overwrite_spares_other_jobs(lake: Lake) -> None:
    """A table that a second job has adopted is not replaced: that job would lose its labels."""
    lake.append("messages", messages(60))
    run(spec(lake))
    run(spec(lake, sink={"adopt": True}, name="second", label="spam"))
    with pytest.raises(LedgerError, match=r"also holds the output of job 'second'.*give this job another table"):
        run(spec(lake), overwrite=True)
    assert lake.table("labels").num_rows == 2 * 58


def test_another_model_is_refused_and_overwrite_starts_anew(lake: Lake) -> None:
    """Names the difference; --overwrite replaces labels and dead letters, other columns included."""
    lake.append("messages", messages(120))
    run(spec(lake))
    with pytest.raises(LedgerError, match=r"another job(.|\n)*'ham' in the output, 'spam' in this job"):
        run(spec(lake, label="spam"))
    changed = spec(lake, label="spam", source={"keep": ["lang"]})
    assert run(changed, overwrite=True).counts.rows_in == 120
    assert set(lake.table("labels")["tag"].to_pylist()) == {"spam"}
    assert "lang" in lake.table("labels").column_names
    check(lake, 120)


def test_plan_is_for_one_table(lake: Lake) -> None:
    """The same job name with another source table is not silently half done."""
    lake.append("messages", messages(120))
    lake.append("others", messages(120))
    run(spec(lake))
    with pytest.raises(LedgerError, match=r"begun for .*messages, not for .*others"):
        run(spec(lake, source=lake.settings("others")))


def test_empty_tables(lake: Lake) -> None:
    """An empty table has no splits. Rows that come later are read as in a first run."""
    lake.append("messages", messages(0))
    assert run(spec(lake)).rows_total == 0
    lake.append("messages", messages(60))
    assert run(spec(lake)).counts.rows_in == 60
    check(lake, 60)


def test_columns_that_came_later(lake: Lake) -> None:
    """Files from before a column was added have null there."""
    lake.append("messages", messages(100).drop_columns(["lang"]))
    lake.append("messages", messages(100, first=100))
    run(spec(lake, source={"keep": ["lang"]}))
    found = lake.table("labels").sort_by("id")
    assert found["lang"].to_pylist() == [None if i < 100 else "en" for i in range(200) if i % 50]


def test_deleted_rows(lake: Lake) -> None:
    """Rows that were deleted are not labelled."""
    lake.append("messages", messages(100))
    lake.delete("messages", "id >= 20 AND id < 40")
    assert run(spec(lake)).counts.rows_in == 80
    assert ids(lake) == [i for i in range(100) if i % 50 and not 20 <= i < 40]


def test_deletion_vectors(tmp_path: Path) -> None:
    """Rows that a Delta table hides without rewriting their file; the file is committed as a whole."""
    lake = DeltaLake(tmp_path)
    lake.append("messages", messages(40))
    lake.hide("messages")
    gone = {3, 4, 7, 11, 18, 29}  # the example of Delta's protocol
    job = spec(lake, blocks={"rows": 7})
    assert plan_job(job).rows == 34
    assert run(job).counts.rows_in == 34
    assert ids(lake) == [i for i in range(1, 40) if i not in gone]
    assert run(job).counts.rows_in == 0


def test_partition_columns(tmp_path: Path) -> None:
    """Partition values of a Delta table are in its log, not in its files."""
    from deltalake import write_deltalake

    rows = messages(90).append_column("day", pa.array([i % 3 for i in range(90)], pa.int32()))
    lake = DeltaLake(tmp_path)
    write_deltalake(f"{tmp_path}/messages", rows, partition_by=["day"])
    job = spec(lake, source={"keep": ["day"], "only_new": True})
    run(job)
    write_deltalake(f"{tmp_path}/messages", rows.slice(0, 30), mode="append")
    run(job)
    found = lake.table("labels").to_pylist()
    assert len(found) == 88 + 29
    assert all(row["day"] == row["id"] % 3 for row in found)


class Killed(BaseException):
    """Raised in place of the death of a process."""


@pytest.mark.parametrize("step", ["put", "append", "take", "dead.append", "drop"])
@pytest.mark.parametrize("contract", SINKS)
def test_crash_points(tmp_path: Path, contract: Any, step: str) -> None:
    """If a process dies before any step of a commit, the next one still writes each row and dead letter once."""
    suite = contract()
    sink = suite.ready(tmp_path)
    writer = sink.open(SPLIT)
    writer.write(block(0, 10))
    writer.commit()

    def die(*_: Any) -> None:
        raise Killed

    table, name = (sink.dead, "append") if step.startswith("dead") else (sink.labels, step)
    setattr(table, name, die)
    if step in {"put", "append"}:
        sink.labels.drop = die
    writer.write(block(10, 40))
    with pytest.raises(Killed):
        writer.commit()
    committed = 10 if step in {"put", "append"} else 40
    assert suite.open_sink(tmp_path).progress()[SPLIT.id].stop == committed
    suite.ready(tmp_path)
    suite.check(tmp_path, committed)
    writer = suite.ready(tmp_path).open(SPLIT)
    writer.write(block(committed, 60))
    writer.commit()
    suite.check(tmp_path, 60)


@pytest.mark.parametrize("outage", [False, True])
def test_answer_to_a_commit_is_lost(lake: Lake, monkeypatch: pytest.MonkeyPatch, outage: bool) -> None:
    """If the answer to a commit is lost, the writer looks for the commit; if it can't, the next run finds it."""
    lake.append("messages", messages(200))
    lost: list[str] = []

    def lose(note: dict[str, str], error: Exception) -> None:
        if not lost and "tagstream.split" in note:
            lost.append(note["tagstream.split"])
            raise error

    def unless_out(real: Any) -> Any:
        def load(*args: Any) -> Any:
            if outage and lost:
                raise SinkError("unreachable")
            return real(*args)

        return load

    if isinstance(lake, IcebergLake):
        from pyiceberg.catalog.sql import SqlCatalog

        commit_table = SqlCatalog.commit_table

        def commit_then_fail(self: Any, table: Any, requirements: Any, updates: Any) -> Any:
            answer = commit_table(self, table, requirements, updates)
            for snapshot in (update.snapshot for update in updates if update.action == "add-snapshot"):
                lose(snapshot.summary.additional_properties, requests.exceptions.ConnectionError("connection reset"))
            return answer

        monkeypatch.setattr(SqlCatalog, "commit_table", commit_then_fail)
    else:
        import deltalake

        write_deltalake = deltalake.write_deltalake

        def write_then_fail(*args: Any, **options: Any) -> None:
            write_deltalake(*args, **options)
            lose(options["commit_properties"].custom_metadata or {}, OSError("connection reset"))

        monkeypatch.setattr(deltalake, "write_deltalake", write_then_fail)
    for table in (IcebergTable, DeltaLakeTable):
        monkeypatch.setattr(table, "load", unless_out(table.load))
    if outage:
        with pytest.raises(SinkError, match=r"unreachable|connection reset"):
            run(spec(lake))
    else:
        assert run(spec(lake)).counts.rows_in == 200
    assert lost
    monkeypatch.undo()
    run(spec(lake))
    check(lake, 200)


@pytest.mark.parametrize("contract", SINKS)
def test_dead_letters_of_a_dead_process_come_first(tmp_path: Path, contract: Any) -> None:
    """A process that was already running moves them in before its own commit, or after it loses a race."""
    suite = contract()
    running, loser = suite.ready(tmp_path), suite.ready(tmp_path).open(SPLIT)
    loser.write(block(0, 5))
    sink = suite.ready(tmp_path)
    writer = sink.open(SPLIT)
    writer.write(block(0, 40))

    def die(*_: Any) -> None:
        raise Killed

    sink.dead.append = sink.dead.create = die
    with pytest.raises(Killed):
        writer.commit()
    with pytest.raises(ChainMovedError):
        loser.commit()
    suite.check(tmp_path, 40)
    other = running.open(SPLIT)
    other.write(block(40, 70))
    other.commit()
    suite.check(tmp_path, 70)


@pytest.mark.parametrize("contract", SINKS)
def test_overwritten_while_it_runs(tmp_path: Path, contract: Any) -> None:
    """A writer of the old output adds nothing to the new one."""
    suite = contract()
    zombie = suite.ready(tmp_path).open(SPLIT)
    zombie.write(block(0, 20))
    zombie.commit()
    zombie.write(block(20, 40))
    suite.ready(tmp_path, JOB, overwrite=True)
    with pytest.raises(LedgerError, match="was overwritten while this one ran"):
        zombie.commit()
    suite.check(tmp_path, 0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"id": "ident"}, r"no column 'ident' \(source\.id\)"),
        ({"text": "id"}, "column 'id' is int64, not text"),
    ],
)
def test_bad_sources(lake: Lake, source: dict, message: str) -> None:
    """Said before work starts."""
    lake.append("messages", messages(5))
    with pytest.raises(SourceError, match=message):
        run(spec(lake, source=source))
    with pytest.raises(SourceError, match=r"no such table|no Delta table"):
        run(spec(lake, source=lake.settings("nowhere")))


def test_missing_packages(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that installs them."""
    package = {"iceberg": "pyiceberg", "delta": "deltalake"}[lake.type]
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.exceptions", None)
    with pytest.raises(SourceError, match=rf"pip install 'tagstream\[{lake.type}\]'"):
        open_source(spec(lake), JobContext())
    with pytest.raises(SinkError, match=rf"pip install 'tagstream\[{lake.type}\]'"):
        open_sink(spec(lake), JobContext()).progress()


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    """Secrets appear neither in errors nor in a printed specification."""
    secret = "Tr0ub4dor-s3cret"
    catalog = {"type": "sql", "uri": f"postgresql://user:{secret}@127.0.0.1:1/none", "token": secret}
    job = spec(IcebergLake(tmp_path), source={"type": "iceberg", "catalog": catalog, "table": "a.b"})
    with pytest.raises(SourceError) as caught:
        run(job)
    assert secret not in f"{caught.value} {job!r} {job.model_dump_json()}"
    storage = {"aws_secret_access_key": secret, "aws_access_key_id": secret, "aws_endpoint": "http://127.0.0.1:1",
               "allow_http": True, "aws_region": "x", "max_retries": 0}  # fmt: skip
    job = spec(DeltaLake(tmp_path), source={"type": "delta", "path": "s3://bucket/table", "storage": storage})
    with pytest.raises(SourceError) as caught:
        run(job)
    assert secret not in f"{caught.value} {job!r} {job.model_dump_json()}"
