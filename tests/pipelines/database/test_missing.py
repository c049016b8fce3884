"""`only_new: missing`: every row whose present text has no label is labelled, wherever its key is."""

from __future__ import annotations

import json
import random
import uuid
from typing import Any

import pyarrow as pa
import pytest

from tagstream.pipelines.jobs.job import Job
from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import JobSpec
from tests.pipelines.database.test_sql import run, spec
from tests.transforms.io.database.databases import Database

MODES = ["append", "upsert", "update"]


def missing(db: Database, mode: str = "append", **more: Any) -> JobSpec:
    sink = {"mode": mode, "table": "messages" if mode == "update" else "labels"}
    return spec(db, source={"only_new": "missing", "split_rows": 20}, sink=sink, **more)


def fill(db: Database, keys: list[Any], table: str = "messages") -> None:
    db.fill(table, pa.table({"id": keys, "body": [f"text of {key}" for key in keys]}), key="id")


def insert(db: Database, keys: list[Any]) -> None:
    db.run(*(f"INSERT INTO messages (id, body) VALUES ('{key}', 'text of {key}')" for key in keys))


def labelled(db: Database, mode: str) -> list[Any]:
    table = "messages" if mode == "update" else "labels"
    return sorted(row["id"] for row in db.query(f'SELECT "id" FROM {table} WHERE "tag" IS NOT NULL'))


def outcomes(db: Database) -> dict[str, int]:
    found = db.query("SELECT tagstream_outcome AS o, count(*) AS n FROM labels_texts GROUP BY tagstream_outcome")
    return {row["o"]: row["n"] for row in found}


@pytest.mark.parametrize("mode", MODES)
def test_random_uuids(db: Database, mode: str) -> None:
    """New rows are found between old ones. Old rows are not labelled again."""
    keys = [str(uuid.UUID(int=random.Random(n).getrandbits(128))) for n in range(100)]
    fill(db, keys[:60])
    assert run(missing(db, mode)).counts.rows_out == 60
    insert(db, keys[60:])
    report = run(missing(db, mode))
    assert (report.state, report.counts.rows_in, report.counts.rows_out) == ("done", 40, 40)
    assert labelled(db, mode) == sorted(keys)
    assert run(missing(db, mode)).counts.rows_in == 0


@pytest.mark.parametrize("mode", MODES)
def test_late_keys_changed_texts_and_no_texts(db: Database, mode: str) -> None:
    """A lower key that came late, an edited text, a text that went and one that was filled in."""
    fill(db, list(range(100, 150)))
    db.run("UPDATE messages SET body = NULL WHERE id = 149")
    run(missing(db, mode))
    insert(db, [5])
    db.run(
        "UPDATE messages SET body = 'another' WHERE id = 110",
        "UPDATE messages SET body = NULL WHERE id = 120",
        "UPDATE messages SET body = 'came' WHERE id = 149",
    )
    report = run(missing(db, mode, label="ham"))
    assert (report.counts.rows_in, report.counts.rows_out) == (4, 3)
    assert labelled(db, mode) == [5, *range(100, 120), *range(121, 150)]
    assert run(missing(db, mode)).counts.rows_in == 0


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_truncated_labels(db: Database, mode: str) -> None:
    """Labels that were removed from the label table are made again; dead letters are not."""
    fill(db, list(range(50)))
    db.run("UPDATE messages SET body = NULL WHERE id = 7")
    run(missing(db, mode))
    db.run("DELETE FROM labels WHERE id < 30")
    report = run(missing(db, mode))
    assert (report.counts.rows_in, report.counts.rows_out) == (29, 29)
    assert labelled(db, mode) == [key for key in range(50) if key != 7]
    assert outcomes(db) == {"labelled": 49, "dead": 1}


def test_rebuilt_table(db: Database) -> None:
    """A table that is dropped and built again each night gets all its labels."""
    fill(db, list(range(50)))
    run(missing(db, "update"))
    db.run("DROP TABLE messages")
    fill(db, list(range(20, 80)))
    report = run(missing(db, "update"))
    assert report.counts.rows_out == 60
    assert labelled(db, "update") == list(range(20, 80))


def test_deleted_rows_are_no_error(db: Database) -> None:
    """Their labels stay in a table of labels."""
    fill(db, list(range(50)))
    run(missing(db))
    db.run("DELETE FROM messages WHERE id < 30")
    assert run(missing(db)).counts.rows_in == 0
    assert labelled(db, "append") == list(range(50))


def test_goes_on_from_an_output_by_key(db: Database) -> None:
    """Labels that were made without `only_new`, and so without state, count. An edit is seen from then on."""
    fill(db, list(range(0, 100, 2)))
    run(spec(db, source={"split_rows": 20}))
    insert(db, [1, 3])
    assert run(missing(db)).counts.rows_out == 2
    assert labelled(db, "append") == sorted([1, 3, *range(0, 100, 2)])


def test_a_query_for_rows_without_a_label(db: Database) -> None:
    """The rows that a query finds become fewer with every commit, and others come."""
    fill(db, list(range(50)))
    db.run("ALTER TABLE messages ADD COLUMN mood VARCHAR(20)")
    source = {"only_new": "missing", "table": None, "query": "SELECT id, body FROM messages WHERE mood IS NULL"}
    sink = {"mode": "update", "table": "messages", "adopt": True}
    infer = [{"as": "mood", "backend": {"type": "constant", "label": "ham"}}]
    job = spec(db, source=source, sink=sink, infer=infer)
    assert run(job).counts.rows_out == 50
    insert(db, [-3, 70])
    assert run(job).counts.rows_out == 2
    assert db.query("SELECT count(*) AS n FROM messages WHERE mood IS NULL") == [{"n": 0}]


def test_an_unfinished_round_first(db: Database) -> None:
    """A run finishes the splits of an earlier one, then looks for missing rows, those below included."""
    fill(db, list(range(100)))
    assert run(missing(db), limit=40).counts.rows_out == 40
    insert(db, [-1, -2])
    report = run(missing(db))
    assert (report.state, report.rows_left) == ("done", 0)
    assert labelled(db, "append") == [-2, -1, *range(100)]
    ledger = db.query("SELECT rows_in, rows_out, dead FROM tagstream_ledger")
    assert sum(row["rows_out"] for row in ledger) == 102
    assert all(row["rows_in"] == row["rows_out"] + sum(json.loads(row["dead"]).values()) for row in ledger)


def test_overwrite_forgets_the_state(db: Database) -> None:
    """All rows are labelled again."""
    fill(db, list(range(30)))
    run(missing(db))
    assert run(missing(db), overwrite=True).counts.rows_out == 30
    assert labelled(db, "append") == list(range(30))


def test_another_sink_is_refused(db: Database, tmp_path: Any) -> None:
    """A folder has no state to look into."""
    fill(db, [1])
    source = {**db.settings(), "table": "messages", "id": "id", "text": "body", "only_new": "missing"}
    infer = [{"as": "tag", "backend": {"type": "constant", "label": "ham"}}]
    job = {"name": "job", "source": source, "infer": infer, "sink": {"type": "parquet", "path": f"{tmp_path}/out"}}
    with pytest.raises(SpecError, match="only_new: missing needs a sink"):
        Job.open(JobSpec.model_validate(job))


def test_ten_nights(db: Database) -> None:
    """After each night every row with a text has one label, and it is the label of its present text's state."""
    chance = random.Random(7)
    keys = set(range(0, 100, 2))
    fill(db, sorted(keys))
    for night in range(10):
        run(missing(db), limit=20 if night == 3 else None)
        if night == 3:
            run(missing(db))
        new = [key for key in chance.sample(range(200), 8) if key not in keys]
        found = db.query("SELECT id, count(*) AS n FROM labels WHERE tag IS NOT NULL GROUP BY id")
        assert keys <= {row["id"] for row in found}
        assert {row["n"] for row in found} == {1}
        assert run(missing(db)).counts.rows_in == 0
        insert(db, new)
        keys |= {*new}
        for key in chance.sample(sorted(keys), 3):
            db.run(f"UPDATE messages SET body = 'night {night}' WHERE id = {key}")
        gone = chance.choice(sorted(keys))
        db.run(f"DELETE FROM messages WHERE id = {gone}")
        keys -= {gone}
