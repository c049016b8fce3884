"""A changed model labels the rows of a table again, exactly once, killed or not. Sinks without keys refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tagstream.pipelines.cli.main import app
from tagstream.pipelines.jobs.reclassify import Choice
from tagstream.pipelines.jobs.run import run_job
from tagstream.pipelines.report.report import Report
from tagstream.schemas.errors import LedgerError, SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.database.sink import TableSink
from tagstream.transforms.io.memory import Memory
from tests.transforms.io.database.databases import Database, SqliteDatabase
from tests.transforms.io.lake.lakes import DeltaLake

ROWS = 300


def messages(rows: int = ROWS, first: int = 0) -> pa.Table:
    ids = range(first, first + rows)
    return pa.table({"id": ids, "body": [None if i == 7 else f"poison {i}" if i == 9 else f"text {i}" for i in ids]})


def spec(db: Database, label: str = "ham", mode: str = "update", **more: Any) -> JobSpec:
    """A job that writes its labels into the table `messages` itself, or into `labels`."""
    backend = {"type": "constant", "label": label, "fail_on": more.pop("fail_on", "poison")}
    return JobSpec.model_validate(
        {
            "source": {**db.settings(), "table": "messages", "text": "body", "id": "id", "split_rows": 50,
                       **more.pop("source", {})},
            "infer": [{"as": "tag", "backend": backend}],
            "sink": {**db.settings(), "table": "messages" if mode == "update" else "labels", "mode": mode},
            "max_dead": 1,
            **more,
        }
    )  # fmt: skip


def run(job: JobSpec, again: Choice | None = None, **options: Any) -> Report:
    return run_job(job, Console(quiet=True), again=again, **options)


def labels(db: Database, table: str) -> dict[int, str]:
    return {row["id"]: row["tag"] for row in db.query(f'SELECT "id", "tag" FROM {table} WHERE "tag" IS NOT NULL')}


def dead(db: Database, table: str) -> list[int]:
    return sorted(json.loads(row["row"])["id"] for row in db.query(f'SELECT "row" FROM {table}_dead'))


@pytest.mark.parametrize("mode", ["update", "upsert"])
def test_another_model_asks_for_it(db: Database, mode: str) -> None:
    """Without the flag a changed model is refused, and the message names the flag. With it all rows are done once."""
    db.fill("messages", messages(), key="id")
    table = "messages" if mode == "update" else "labels"
    run(spec(db, mode=mode))
    with pytest.raises(LedgerError, match=r"another job(.|\n)*--reclassify labels its rows again"):
        run(spec(db, "spam", mode))
    assert run(spec(db, "spam", mode), Choice()).counts.rows_in == ROWS
    assert labels(db, table) == {i: "spam" for i in range(ROWS) if i not in {7, 9}}
    assert dead(db, table) == [7, 9]
    assert run(spec(db, "spam", mode), Choice()).counts.rows_in == 0
    assert run(spec(db, "spam", mode)).rows_left == 0
    with pytest.raises(LedgerError, match="another job"):
        run(spec(db, mode=mode))
    assert run(spec(db, mode=mode), Choice()).counts.rows_in == ROWS
    assert set(labels(db, table).values()) == {"ham"}


@pytest.mark.parametrize("mode", ["update", "upsert"])
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(below=0.6), lambda i: i % 4 == 0),
        (Choice(labels=("odd", "none")), lambda i: i % 2 == 1),
        (Choice(below=0.6, labels=("even",)), lambda i: i % 4 == 0),
        (Choice(below=0.6, labels=("odd",)), lambda _: False),
    ],
)
def test_only_some_rows(db: Database, mode: str, choice: Choice, expected: Any) -> None:
    """Rows are chosen by score, by label, or by both. New rows are labelled as always."""
    db.fill("messages", messages(), key="id")
    table = "messages" if mode == "update" else "labels"
    run(spec(db, mode=mode))
    db.run(
        f'UPDATE {table} SET "tag" = CASE WHEN "id" % 2 = 0 THEN \'even\' ELSE \'odd\' END WHERE "tag" IS NOT NULL',
        f'UPDATE {table} SET "tag_score" = 0.5 WHERE "id" % 4 = 0 AND "tag" IS NOT NULL',
    )
    if mode == "upsert":
        db.fill("more", messages(100, ROWS))
        db.run("INSERT INTO messages SELECT * FROM more")
    report = run(spec(db, "spam", mode, source={"only_new": True}), choice)
    chosen = [i for i in range(ROWS) if expected(i) and i not in {7, 9}]
    new = list(range(ROWS, ROWS + 100)) if mode == "upsert" else []
    assert (report.counts.rows_in, report.rows_left) == (len(chosen) + len(new), 0)
    assert [i for i, label in sorted(labels(db, table).items()) if label == "spam"] == chosen + new
    assert dead(db, table) == [7, 9]


def test_rows_that_die_now_lose_their_label(db: Database) -> None:
    """A row is either labelled or dead after the change, whichever it was before."""
    db.fill("messages", messages(), key="id")
    for mode, table in (("update", "messages"), ("upsert", "labels")):
        run(spec(db, mode=mode, name=mode))
        report = run(spec(db, "spam", mode, name=mode, fail_on="text 2"), Choice())
        gone = [7, *(i for i in range(ROWS) if str(i).startswith("2"))]
        assert report.counts.dead_rows == len(gone)
        assert labels(db, table) == {i: "spam" for i in range(ROWS) if i not in gone}
        assert dead(db, table) == sorted(gone)


@pytest.mark.parametrize("mode", ["update", "upsert"])
def test_killed_in_the_middle(db: Database, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the take-over or after some commits, a rerun continues, and each row is inferred once."""
    db.fill("messages", messages(), key="id")
    table = "messages" if mode == "update" else "labels"
    run(spec(db, mode=mode))
    job, commits = spec(db, "spam", mode), []

    class Killed(BaseException):
        pass

    original = TableSink.check_owner

    def die(self: TableSink, session: Any) -> None:
        if len(commits) == 2:
            raise Killed
        commits.append(1)
        original(self, session)

    with monkeypatch.context() as patched:
        patched.setattr(TableSink, "check_owner", die)
        with pytest.raises((Killed, RuntimeError)):
            run(job, Choice())
    half = [label for label in labels(db, table).values() if label == "spam"]
    assert 0 < len(half) < ROWS - 2
    report = run(job, Choice())
    assert report.counts.rows_in == ROWS - 2 * 50
    assert set(labels(db, table).values()) == {"spam"}
    assert dead(db, table) == [7, 9]
    ledger = db.query('SELECT "split", "start" FROM tagstream_ledger')
    assert len({(row["split"], row["start"]) for row in ledger}) == len(ledger) == 12


def test_unfinished_rounds_are_replaced(db: Database) -> None:
    """If a third model comes before the second one was done, each row is labelled once more and not twice."""
    db.fill("messages", messages(), key="id")
    run(spec(db))
    run(spec(db, "spam", blocks={"rows": 10}), Choice(), max_seconds=0.0)
    assert run(spec(db, "third"), Choice()).counts.rows_in == ROWS
    assert set(labels(db, "messages").values()) == {"third"}


def test_from_files_to_a_table(db: Database, tmp_path: Path) -> None:
    """For a source without a plan, its splits are labelled again as far as they were done, unless a split is gone."""
    for name, first in (("a", 0), ("b", ROWS)):
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(messages(first=first), tmp_path / f"in/{name}.parquet")
    source = {"type": "parquet", "path": f"{tmp_path}/in", "text": "body", "id": "id", "split_rows": 100}

    def job(label: str) -> JobSpec:
        held = spec(db, label, "upsert").model_dump(mode="json", by_alias=True)
        sink = {**db.settings(), "table": "labels", "mode": "upsert"}
        return JobSpec.model_validate({**held, "source": source, "sink": sink})

    run(job("ham"), limit=450)
    assert run(job("spam"), Choice(below=2.0)).counts.rows_in == 448 + 150
    assert labels(db, "labels") == {i: "spam" for i in range(2 * ROWS) if i not in {7, 9}}
    (tmp_path / "in/a.parquet").unlink()
    assert run(job("third"), Choice()).counts.rows_in == ROWS


def test_who_can_not(db: Database, tmp_path: Path) -> None:
    """Sinks without keys refuse, and their message says what to do instead."""
    db.fill("messages", messages(), key="id")
    run(spec(db, mode="append"))
    with pytest.raises(SpecError, match=r"this sink only appends\. Set sink\.mode: upsert or update"):
        run(spec(db, "spam", "append"), Choice())
    assert set(labels(db, "labels").values()) == {"ham"}
    rows = Memory(messages())
    for sink in ({"type": "parquet", "path": f"{tmp_path}/out"}, DeltaLake(tmp_path).settings("out")):
        held = spec(db).model_dump(mode="json", by_alias=True)
        source = {"type": "memory", "rows": rows, "text": "body", "id": "id"}
        refused = rf"A {sink['type']} sink can't do that\. Replace the whole output with --overwrite"
        with pytest.raises(SpecError, match=refused):
            run(JobSpec.model_validate({**held, "source": source, "sink": sink}), Choice())
    with pytest.raises(SpecError, match="give only one of them"):
        run(spec(db, "spam"), Choice(), overwrite=True)
    with pytest.raises(SpecError, match="leave out --limit"):
        run(spec(db, "spam"), Choice(), limit=5)


def test_on_the_command_line(tmp_path: Path) -> None:
    """`--reclassify-below` or `--reclassify-label` alone is enough."""
    db = SqliteDatabase(tmp_path)
    db.fill("messages", messages(), key="id")
    run(spec(db))
    db.run('UPDATE messages SET "tag_score" = 0.5 WHERE "id" < 20 AND "tag" IS NOT NULL')
    file = tmp_path / "job.yaml"
    file.write_text(
        json.dumps(
            {**spec(db, "spam").model_dump(mode="json", by_alias=True),
             "source": {**db.settings(), "table": "messages", "text": "body", "id": "id", "split_rows": 50},
             "sink": {**db.settings(), "table": "messages", "mode": "update"}}
        )
    )  # fmt: skip
    refused = CliRunner().invoke(app, ["run", str(file)])
    assert refused.exit_code == 5
    arguments = ["--reclassify-below", "0.6", "--reclassify-label", "ham", "--report", str(tmp_path / "report.json")]
    done = CliRunner().invoke(app, ["run", str(file), *arguments])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "report.json").read_text())["rows_in"] == 18
    assert [i for i, label in sorted(labels(db, "messages").items()) if label == "spam"] == [
        i for i in range(20) if i not in {7, 9}
    ]
