"""Enrichment of database tables: modes, growth, bad input, secrets, faults. PostgreSQL and SQLite run for real."""

from __future__ import annotations

import io
import json
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tagstream.pipelines.cli.main import app
from tagstream.pipelines.jobs.plan import plan_job
from tagstream.pipelines.jobs.run import run_job
from tagstream.pipelines.report.report import Report
from tagstream.schemas.errors import LedgerError, SinkError, SourceError, SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.registry import open_sink, open_source
from tagstream.transforms.runtime.job_context import JobContext
from tests.services.postgres import Postgres
from tests.transforms.io.database.databases import Database, PostgresDatabase, SqliteDatabase

MESSAGES = {"table": "messages", "text": "body", "id": "id", "split_rows": 100}


def messages(rows: int, first: int = 0) -> pa.Table:
    """Ids with gaps, every 50th text null."""
    ids = [3 * i for i in range(first, first + rows)]
    return pa.table({"id": ids, "body": [None if i % 150 == 0 else f"message {i}" for i in ids], "lang": ["en"] * rows})


def spec(db: Database, *, source: Any = None, sink: Any = None, label: str = "ham", **more: Any) -> JobSpec:
    """Table `messages` to table `labels`."""
    return JobSpec.model_validate(
        {
            "name": "job",
            "source": {
                **db.settings(),
                "table": "messages",
                "text": "body",
                "id": "id",
                "split_rows": 100,
                **(source or {}),
            },
            "infer": [{"as": "tag", "scores": "all", "backend": {"type": "constant", "label": label}}],
            "sink": {**db.settings(), "table": "labels", **(sink or {})},
            **more,
        }
    )


def run(job: JobSpec, **options: Any) -> Report:
    return run_job(job, Console(quiet=True), **options)


def ids(db: Database, table: str = "labels", where: str = "true") -> list[int]:
    return [row["id"] for row in db.query(f'SELECT "id" FROM {table} WHERE {where} ORDER BY "id"')]


def check_ledger(db: Database, rows: int) -> None:
    """Check that each planned range has one commit, that ranges are adjacent, and that the rows add up."""
    plans = db.query('SELECT "splits" FROM tagstream_plans ORDER BY "number"')
    planned = [split for plan in plans for split in json.loads(plan["splits"])]
    for before, after in pairwise(planned):
        assert before["payload"]["hi"] == after["payload"]["lo"]
    ledger = db.query('SELECT "split", "rows_in", "rows_out", "dead" FROM tagstream_ledger')
    assert sorted(row["split"] for row in ledger) == sorted(split["id"] for split in planned)
    assert sum(row["rows_in"] for row in ledger) == rows
    assert all(row["rows_in"] == row["rows_out"] + sum(json.loads(row["dead"]).values()) for row in ledger)


def test_append_writes_a_table_of_labels(db: Database) -> None:
    """Key, kept columns and labels; nested scores as JSON; null texts in the dead letters' table."""
    db.fill("messages", messages(1_000), key="id")
    report = run(spec(db, source={"keep": ["lang"]}))
    assert (report.state, report.counts.rows_in, report.counts.rows_out) == ("done", 1_000, 980)
    assert ids(db) == [i for i in range(0, 3_000, 3) if i % 150]
    row = db.query('SELECT * FROM labels WHERE "id" = 3')[0]
    assert {name: row[name] for name in ("lang", "tag", "tag_score")} == {"lang": "en", "tag": "ham", "tag_score": 1.0}
    assert json.loads(row["tag_scores"]) == {"ham": 1}
    dead = db.query("SELECT * FROM labels_dead")
    assert sorted(json.loads(row["row"])["id"] for row in dead) == list(range(0, 3_000, 150))
    assert {row["code"] for row in dead} == {"null_text"}
    check_ledger(db, 1_000)


def test_update_adds_label_columns_to_the_table(db: Database) -> None:
    """Everything else in the table stays; rows without a label have null."""
    db.fill("messages", messages(500), key="id")
    run(spec(db, sink={"table": "messages", "mode": "update"}))
    found = db.query('SELECT * FROM messages ORDER BY "id"')
    assert [row["tag"] for row in found] == [None if i % 150 == 0 else "ham" for i in range(0, 1_500, 3)]
    assert [row["body"] for row in found] == messages(500)["body"].to_pylist()
    check_ledger(db, 500)


def test_upsert_keeps_one_row_a_key(db: Database) -> None:
    """A second job with the same keys replaces the labels, if it may write to the first job's table (`adopt`)."""
    db.fill("messages", messages(300), key="id")
    run(spec(db, sink={"mode": "upsert"}))
    run(spec(db, sink={"mode": "upsert", "adopt": True}, label="spam", name="second"))
    assert db.query('SELECT "tag", count(*) AS n FROM labels GROUP BY "tag"') == [{"tag": "spam", "n": 294}]


def test_only_new_rows(db: Database) -> None:
    """A rerun does nothing. Rows above the highest key are labelled only with `only_new`."""
    db.fill("messages", messages(250), key="id")
    run(spec(db))
    again = run(spec(db))
    assert (again.counts.rows_in, again.rows_left, again.load_seconds) == (0, 0, 0.0)
    more = messages(130, first=250)
    db.fill("more", more)
    db.run("INSERT INTO messages SELECT * FROM more")
    assert run(spec(db)).counts.rows_in == 0
    job = spec(db, source={"only_new": True})
    plan = plan_job(job)
    assert (plan.rows, plan.rows_left, plan.splits - plan.splits_done) == (380, 130, 2)
    assert run(job).counts.rows_in == 130
    assert run(job).counts.rows_in == 0
    assert ids(db) == [i for i in range(0, 1_140, 3) if i % 150]
    check_ledger(db, 380)


def test_rows_come_and_go_while_the_job_is_away(db: Database) -> None:
    """Ranges never change. A row that appears in an unread range is labelled, and no row is labelled twice."""
    db.fill("messages", messages(400), key="id")
    limited = run(spec(db), limit=150)
    assert (limited.counts.rows_in, limited.state) == (150, "done")
    db.run(
        "INSERT INTO messages VALUES (1, 'late, in a range that is done', 'en')",
        "INSERT INTO messages VALUES (1000, 'in time', 'en')",
        'DELETE FROM messages WHERE "id" BETWEEN 901 AND 999',
    )
    run(spec(db))
    gone = set(range(901, 1_000))
    assert ids(db) == sorted({i for i in range(0, 1_200, 3) if i % 150} - gone | {1_000})


def test_only_new_says_what_it_does_not_find(db: Database) -> None:
    """Rows that came later with lower keys are counted, in the plan and in the run."""
    db.fill("messages", messages(100), key="id")
    job = spec(db, source={"only_new": True})
    run(job)
    assert not plan_job(job).notes
    db.run(*(f"INSERT INTO messages VALUES ({3 * i + 1}, 'late', 'en')" for i in range(7)))
    assert "7 rows or more came later with keys below those of earlier runs" in plan_job(job).notes[0]
    console = Console(file=io.StringIO(), width=300)
    assert run_job(job, console).counts.rows_in == 0
    assert "7 rows or more came later" in console.file.getvalue()


def test_limit_is_exact(db: Database) -> None:
    """A table is cut where the limit is, and the next run does the rest."""
    db.fill("messages", messages(400), key="id")
    large = {"split_rows": 8_192}
    assert plan_job(spec(db, source=large), limit=50).rows == 50
    assert run(spec(db, source=large), limit=50).counts.rows_in == 50
    assert len(ids(db)) == 49  # one text is null
    assert run(spec(db, source=large), limit=50).counts.rows_in == 0
    assert run(spec(db, source=large)).counts.rows_in == 350
    check_ledger(db, 400)


def test_limit_within_a_part_that_is_planned(db: Database) -> None:
    """It is refused, and the message says which limits there are."""
    db.fill("messages", messages(400), key="id")
    run(spec(db), limit=100)
    with pytest.raises(SpecError, match=r"--limit 30: .* this limit is inside one\. Give --limit 100$"):
        run(spec(db), limit=30)
    with pytest.raises(SpecError, match=r"Give --limit 100 or --limit 200$"):
        run(spec(db), limit=130)


def test_keys_of_several_columns(db: Database) -> None:
    """Rows are ordered, cut into ranges and found by both columns."""
    table = pa.table({"a": [i // 7 for i in range(300)], "b": [f"k{i % 7}" for i in range(300)], "body": ["x"] * 300})
    db.fill("messages", table)
    run(spec(db, source={"id": ["a", "b"], "split_rows": 40}, sink={"table": "messages", "mode": "update"}))
    assert db.query('SELECT count(*) AS n, count("tag") AS t FROM messages') == [{"n": 300, "t": 300}]


def test_a_query_as_source(db: Database) -> None:
    """A query may take the place of a table, and may compute the text."""
    db.fill("messages", messages(200), key="id")
    query = 'SELECT "id" + 1 AS "id", "body" || \' !\' AS "body" FROM messages WHERE "id" < 300'
    run(spec(db, source={"table": None, "query": query}))
    assert ids(db) == [i + 1 for i in range(0, 300, 3) if i % 150]


def test_a_query_may_end_in_a_comment(db: Database) -> None:
    """The comment does not hide the rest of the statement."""
    db.fill("messages", messages(20), key="id")
    run(spec(db, source={"table": None, "query": "SELECT * FROM messages -- all of them"}))
    assert ids(db) == [3 * i for i in range(1, 20)]


def test_awkward_names(db: Database) -> None:
    """Quotes, spaces, dots, reserved words and case in identifiers and values are taken literally."""
    table = pa.table({'se"lect': ["a'b", 'c"d', "e;--"], "Text": ["x", "y", "z"], "a.b": [1, 2, 3]})
    db.fill('My "odd".table', table)
    name = '"My ""odd"".table"'
    job = spec(db, source={"table": name, "text": "Text", "id": 'se"lect', "keep": ["a.b"]}, sink={"table": '"order"'})
    run(job)
    found = db.query('SELECT * FROM "order" ORDER BY "a.b"')
    assert [(row['se"lect'], row["tag"]) for row in found] == [("a'b", "ham"), ('c"d', "ham"), ("e;--", "ham")]


@pytest.mark.parametrize(
    ("setup", "source", "message"),
    [
        ([], {"table": "nowhere"}, "nowhere"),
        ([], {"id": "ident"}, r"no column 'ident' \(source\.id\)"),
        ([], {"text": "txt"}, r"no column 'txt' \(source\.text\)"),
        ([], {"text": "id"}, "column 'id' is int64, not text"),
        (['UPDATE messages SET "id" = NULL WHERE "id" = 30'], {}, "there are rows whose key .* is NULL"),
        (['UPDATE messages SET "id" = 27 WHERE "id" = 30'], {}, r"not unique: \{'id': 27\} occurs twice"),
    ],
)
def test_bad_tables_are_refused_before_work_starts(db: Database, setup: list, source: dict, message: str) -> None:
    """The message names the table, the column, the key."""
    db.fill("messages", messages(50))
    db.run(*setup)
    with pytest.raises(SourceError, match=message):
        run(spec(db, source=source))
    assert not db.table("SELECT * FROM labels").num_columns


def test_labels_never_overwrite_columns_of_the_source(db: Database) -> None:
    """Not even with `adopt`."""
    db.fill("messages", messages(5), key="id")
    infer = [{"as": "body", "backend": {"type": "constant", "label": "ham"}}]
    job = spec(db, sink={"table": "messages", "mode": "update", "adopt": True}, infer=infer)
    with pytest.raises(SpecError, match="'body' is a column of the source, which labels would overwrite"):
        run(job)
    assert "message 3" in [row["body"] for row in db.query("SELECT body FROM messages")]


def test_a_missing_sqlite_file_is_not_made(tmp_path: Path) -> None:
    db = SqliteDatabase(tmp_path)
    with pytest.raises(SourceError, match="no such file"):
        run(spec(db, sink={"uri": f"sqlite:///{tmp_path}/labels.db"}))
    assert not list(tmp_path.iterdir())


def test_key_is_required() -> None:
    """A source needs a key, a valid URI, and either a table or a query."""
    for change, message in [
        ({"id": []}, "name the key column"),
        ({"table": None}, "either table or query"),
        ({"query": "SELECT 1"}, "either table or query"),
        ({"uri": "nonsense"}, "not a URI"),
        ({"uri": "postgresql://u:p@ss/word@host/db"}, "not a valid URI"),
    ]:
        with pytest.raises(ValueError, match=message):
            spec(SqliteDatabase(Path("/tmp")), source=change)


@pytest.mark.parametrize("scheme", ["snowflake", "grpc"])
def test_a_sink_needs_keys_that_are_enforced(tmp_path: Path, scheme: str) -> None:
    """Two runs would write the same rows otherwise. Such a database may be a source."""
    db = SqliteDatabase(tmp_path)
    with pytest.raises(SpecError, match=f"{scheme}://u:.*@host/db: this database may only be a source"):
        open_sink(spec(db, sink={"uri": f"{scheme}://u:secret@host/db"}), JobContext())
    with pytest.raises(SourceError, match="needs a driver"):
        open_source(spec(db, source={"uri": f"{scheme}://u:secret@host/db"}), JobContext())


def test_columns_of_others_are_left_alone(db: Database) -> None:
    """A column with a label's name that the job did not make is refused, unless `adopt` says so."""
    db.fill("messages", messages(60).append_column("tag", pa.array(["mine"] * 60)), key="id")
    update = {"table": "messages", "mode": "update"}
    with pytest.raises(LedgerError, match=r"has a column 'tag' that this job did not make.*adopt: true"):
        run(spec(db, sink=update))
    assert {row["tag"] for row in db.query("SELECT tag FROM messages")} == {"mine"}
    run(spec(db, sink={**update, "adopt": True}))
    assert {row["tag"] for row in db.query("SELECT tag FROM messages")} == {"mine", "ham"}
    db.fill("labels", messages(5))
    with pytest.raises(LedgerError, match="has a column 'id' that this job did not make"):
        run(spec(db, name="other"))


def test_another_model_is_refused_and_overwrite_starts_anew(db: Database) -> None:
    """The message names the difference. --overwrite removes only what the job made."""
    db.fill("messages", messages(120), key="id")
    update = {"table": "messages", "mode": "update"}
    run(spec(db, sink=update))
    with pytest.raises(LedgerError, match=r"another job(.|\n)*'ham' in the output, 'spam' in this job"):
        run(spec(db, sink=update, label="spam"))
    assert run(spec(db, sink=update, label="spam"), overwrite=True).counts.rows_in == 120
    assert {row["tag"] for row in db.query("SELECT tag FROM messages")} == {None, "spam"}
    with pytest.raises(LedgerError, match="already writes to messages"):
        run(spec(db, label="spam"))


def test_plan_is_for_one_table(db: Database) -> None:
    """The same job name with another source table is not silently half done."""
    db.fill("messages", messages(120), key="id")
    db.fill("others", messages(120), key="id")
    run(spec(db))
    with pytest.raises(LedgerError, match='begun for "messages", not for "others"'):
        run(spec(db, source={"table": "others"}))


def test_from_parquet_to_a_table(db: Database, tmp_path: Path) -> None:
    """Long splits commit by time; texts that the database can't hold are dead letters, not errors."""
    texts = ["nul\x00" if i == 7 else f"text {i}" for i in range(1_000)]
    pq.write_table(pa.table({"id": range(1_000), "body": texts}), tmp_path / "in.parquet")
    source = {"type": "parquet", "path": str(tmp_path / "in.parquet"), "text": "body", "keep": ["body"]}
    base = spec(db, sink={"commit_every": 0.001}).model_dump(mode="json", by_alias=True)
    job = JobSpec.model_validate(
        {**base, "source": {**source, "id": "id"}, "sink": {**db.settings(), "table": "labels", "commit_every": 0.001},
         "blocks": {"rows": 50, "in_flight": 1}}
    )  # fmt: skip
    run(job)
    refused = isinstance(db, PostgresDatabase)
    assert ids(db) == [i for i in range(1_000) if not (refused and i == 7)]
    assert [json.loads(row["row"])["body"] for row in db.query("SELECT * FROM labels_dead")] == ["nul\x00"] * refused
    ledger = db.query('SELECT "start", "stop" FROM tagstream_ledger ORDER BY "start"')
    assert len(ledger) > 1
    assert [row["start"] for row in ledger[1:]] == [row["stop"] for row in ledger[:-1]]


def test_nul_in_nested_columns(db: Database, tmp_path: Path) -> None:
    """A NUL inside kept lists and structs makes a dead letter. An escaped backslash before u0000 is text."""
    inner = ["a\x00", "\x00", "\\\x00", "\\u0000", "\\\\u0000", "plain"]
    rows = pa.table({"id": range(6), "body": ["x"] * 6, "more": [[{"k": text}] for text in inner]})
    pq.write_table(rows, tmp_path / "in.parquet")
    base = spec(db).model_dump(mode="json", by_alias=True)
    source = {"type": "parquet", "path": str(tmp_path / "in.parquet"), "text": "body", "id": "id", "keep": ["more"]}
    report = run(JobSpec.model_validate({**base, "source": source, "sink": {**db.settings(), "table": "labels"}}))
    refused = 3 if isinstance(db, PostgresDatabase) else 0
    assert (report.state, report.counts.rows_out) == ("done", 6 - refused)
    found = db.query('SELECT "more" FROM labels ORDER BY "id"')
    assert [json.loads(row["more"]) for row in found] == [[{"k": text}] for text in inner[refused:]]
    assert [row["code"] for row in db.query("SELECT * FROM labels_dead")] == ["refused"] * refused


def test_a_key_that_is_there_twice(db: Database, tmp_path: Path) -> None:
    """With upsert, the last row of a key stays, also within one commit."""
    pq.write_table(pa.table({"id": [*range(100), 7, 8, 7], "body": [*["x"] * 100, *"yyz"]}), tmp_path / "in.parquet")
    base = spec(db).model_dump(mode="json", by_alias=True)
    source = {"type": "parquet", "path": str(tmp_path / "in.parquet"), "text": "body", "id": "id", "keep": ["body"]}
    sink = {**db.settings(), "table": "labels", "mode": "upsert"}
    report = run(JobSpec.model_validate({**base, "source": source, "sink": sink}))
    assert (report.state, report.counts.rows_in) == ("done", 103)
    assert ids(db) == [*range(100)]
    found = db.query('SELECT "body" FROM labels WHERE "id" IN (6, 7, 8) ORDER BY "id"')
    assert [row["body"] for row in found] == ["x", "z", "y"]


def test_two_at_once(db: Database) -> None:
    """Two runs started together: the same as one."""
    db.fill("messages", messages(2_000), key="id")
    from subprocess import PIPE, STDOUT, Popen
    from sys import executable

    file = Path(f"/tmp/{id(db)}.yaml")
    settings = json.dumps({**db.settings(), "table": "messages", "text": "body", "id": "id", "split_rows": 100})
    file.write_text(
        f"name: job\nsource: {settings}\ninfer: [{{as: tag, backend: {{type: constant, ms_per_row: 0.3}}}}]\n"
        f"sink: {json.dumps({**db.settings(), 'table': 'labels'})}\n"
    )
    processes = [Popen([executable, "-m", "tagstream", "run", str(file)], stdout=PIPE, stderr=STDOUT) for _ in "ab"]
    for process in processes:
        output = process.communicate(timeout=120)[0].decode()
        assert process.returncode == 0, output
    file.unlink()
    assert ids(db) == [i for i in range(0, 6_000, 3) if i % 150]
    check_ledger(db, 2_000)


def test_types_of_keys(postgres: Postgres, tmp_path: Path) -> None:
    """uuid, numeric, timestamp and varchar keys are read in their own order and found again exactly."""
    db = PostgresDatabase(postgres, f"keys_{tmp_path.parent.name}".replace("-", "_"))
    for kind, value in {
        "uuid": "gen_random_uuid()",
        "numeric(20,4)": "i / 7.0",
        "timestamptz": "now() + i * interval '1.000001 s'",
        "varchar(20)": "'k' || i",
        "smallint": "i",
    }.items():
        db.run(
            "DROP TABLE IF EXISTS messages", f"CREATE TABLE messages (id {kind} PRIMARY KEY, body text)",
            f"INSERT INTO messages SELECT {value}, 'text ' || i FROM generate_series(1, 333) i",
        )  # fmt: skip
        run(spec(db, sink={"table": "messages", "mode": "update"}, name=f"job-{kind[:4]}"))
        assert db.query("SELECT count(*) AS n, count(tag) AS t FROM messages") == [{"n": 333, "t": 333}], kind


@pytest.mark.parametrize("source", [{}, {"table": None, "query": "SELECT * FROM messages"}])
def test_keys_that_are_selected_as_text(postgres: Postgres, tmp_path: Path, source: dict[str, Any]) -> None:
    """Pages follow each other in numeric order, not in the order of the keys' text."""
    db = PostgresDatabase(postgres, f"digits_{tmp_path.parent.name}_{bool(source)}".replace("-", "_").lower())
    db.run(
        "DROP TABLE IF EXISTS messages", "CREATE TABLE messages (id numeric(20) PRIMARY KEY, body text)",
        "INSERT INTO messages SELECT i, 'text ' || i FROM generate_series(1, 1000) i",
    )  # fmt: skip
    report = run(spec(db, source={"split_rows": 1_000, **source}))
    assert report.counts.rows_in == 1_000
    assert sorted(int(row["id"]) for row in db.query("SELECT id FROM labels")) == list(range(1, 1_001))


def test_passwords_are_never_shown(postgres: Postgres, tmp_path: Path) -> None:
    """Neither in plan, report, output, ledger nor in any error, --debug included."""
    secret = "Tr0ub4dor-s3cret"
    db = PostgresDatabase(postgres, f"secret_{tmp_path.parent.name}".replace("-", "_"))
    role = f"writer_{abs(hash(tmp_path)) % 10**9}"
    db.fill("messages", messages(50), key="id")
    db.run(f"CREATE ROLE {role} LOGIN PASSWORD '{secret}'", f"GRANT SELECT ON messages TO {role}")
    uri = postgres.uri(db.uri.rpartition("/")[2], role, secret)
    file, report = tmp_path / "job.yaml", tmp_path / "report.json"
    file.write_text(
        f"source: {{type: sql, uri: '{uri}', table: messages, text: body, id: id}}\n"
        f"infer: [{{as: tag, backend: {{type: constant}}}}]\nsink: {{type: sql, uri: '{uri}', table: labels}}\n"
    )
    shown = ""

    def call(*arguments: str) -> int:
        nonlocal shown
        result = CliRunner().invoke(app, [*arguments, "--report", str(report)])
        shown += result.output + str(result.exception) + (report.read_text() if report.exists() else "")
        return result.exit_code

    assert call("run", str(file)) == 5  # may not create tables
    assert "permission denied" in shown
    assert call("run", str(file), "--debug") != 0
    db.run(f"GRANT CREATE, USAGE ON SCHEMA public TO {role}")
    assert call("run", str(file)) == 0
    assert call("plan", str(file)) == 0
    for wrong in (uri.replace(secret, secret + "x"), uri.replace("postgresql:", "mysql:"), uri + "?nonsense=1"):
        assert call("plan", str(file), "--set", f"source.uri={wrong}") != 0
    assert role in shown
    assert secret not in shown
    assert secret not in repr(spec(db, source={"uri": uri}))
    for table in ("jobs", "plans", "ledger"):
        assert secret not in str(db.query(f"SELECT * FROM tagstream_{table}"))


def test_locks_of_others_are_waited_for(db: Database) -> None:
    """Another session holds a lock in the middle of the job; when it lets go, the job goes on."""
    db.fill("messages", messages(500), key="id")
    run(spec(db, sink={"table": "messages", "mode": "update"}), limit=100)
    other = db.session()
    other.run('UPDATE messages SET "lang" = \'de\' WHERE "id" = 900')

    def let_go() -> None:
        time.sleep(1.5)
        other.commit()

    thread = threading.Thread(target=let_go)
    thread.start()
    report = run(spec(db, sink={"table": "messages", "mode": "update"}))
    thread.join()
    other.close()
    assert report.state == "done"
    assert db.query('SELECT count("tag") AS n FROM messages') == [{"n": 490}]
    assert db.query('SELECT "lang" FROM messages WHERE "id" = 900') == [{"lang": "de"}]


def test_sink_mode_needs_keys_and_tables(db: Database) -> None:
    """Said before work starts."""
    db.fill("messages", messages(10), key="id")
    with pytest.raises(SinkError, match="table nowhere does not exist"):
        run(spec(db, sink={"table": "nowhere", "mode": "update"}))
    with pytest.raises(SpecError, match=r"sink\.key: 'lang' is neither the source's id nor one of its kept columns"):
        run(spec(db, sink={"mode": "upsert", "key": "lang"}))
    with pytest.raises(SpecError, match="is not a table name"):
        run(spec(db, sink={"table": 'a"b'}))
