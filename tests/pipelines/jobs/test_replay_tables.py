"""Replays and `--show` work on every system that holds the output. Replays are exact, whenever they are killed."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from tagstream.pipelines.jobs.replay import replay_job
from tagstream.pipelines.jobs.run import run_job
from tagstream.pipelines.jobs.show import sample_rows
from tagstream.pipelines.report.report import Report
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import JobSpec
from tests.pipelines.test_any_to_any import SYSTEMS, system

ROWS = 200
NINES = [i for i in range(ROWS) if "9" in str(i)]
OTHERS = [i for i in range(ROWS) if i != 7 and i not in NINES]


class Outcome:
    """A job whose input is a table in the same system. Texts with a nine fail at first, and one text is null."""

    def __init__(self, folder: Path, name: str, request: pytest.FixtureRequest, **columns: Any) -> None:
        self.name, self.at = name, system(name, folder / "it", request)
        texts = [None if i == 7 else f"text {i}" for i in range(ROWS)]
        self.at.append("messages", pa.table({"id": range(ROWS), "text": texts, **columns}))
        self.keep = list(columns)

    def spec(self, fail_on: str | None = "9", **more: Any) -> JobSpec:
        return JobSpec.model_validate(
            {
                "source": {**self.at.settings("messages"), "id": "id", "keep": self.keep, "split_rows": 60},
                "infer": [{"as": "tag", "backend": {"type": "constant", "fail_on": fail_on}}],
                "sink": self.at.settings("labels"),
                "blocks": {"rows": 25},
                "max_dead": 1,
                **more,
            }
        )

    def run(self, *, replay: bool = False, **more: Any) -> Report:
        run = replay_job if replay else run_job
        report = run(self.spec(**more), Console(quiet=True))
        assert report.counts.rows_in == report.counts.rows_out + report.counts.dead_rows
        return report

    def labels(self) -> list[int]:
        return sorted(self.at.table("labels")["id"].to_pylist())

    def dead(self) -> list[tuple]:
        table = self.at.table("labels-dead" if self.name in {"parquet", "delta"} else "labels_dead")
        rows = table.to_pylist() if table.num_columns else []
        held = [json.loads(row["row"]) if isinstance(row["row"], str) else row["row"] for row in rows]
        return sorted(
            (one["id"], row["code"], row["origin_split"], row["origin_position"], row["payload"])
            for one, row in zip(held, rows, strict=True)
        )


@pytest.fixture(params=SYSTEMS)
def outcome(tmp_path: Path, request: pytest.FixtureRequest) -> Outcome:
    made = Outcome(tmp_path, request.param, request)
    made.run()
    return made


def test_what_succeeds_now_joins_the_labels(outcome: Outcome) -> None:
    """Over many replays, rows that fail stay dead and keep their origin. The job itself has nothing left to do."""
    before = outcome.dead()
    assert [row[0] for row in before] == sorted([7, *NINES])
    assert outcome.run(replay=True).counts.rows_out == 0
    assert outcome.dead() == before
    assert outcome.run(replay=True, fail_on="19").counts.rows_out == len([i for i in NINES if "19" not in str(i)])
    assert outcome.dead() == [row for row in before if row[0] == 7 or "19" in str(row[0])]
    outcome.run(replay=True, fail_on=None)
    assert outcome.labels() == sorted([*OTHERS, *NINES])
    assert [row[:2] for row in outcome.dead()] == [(7, "null_text")]
    assert outcome.run().counts.rows_in == 0


def test_nothing_to_replay(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The error comes before a model is loaded."""
    for name in SYSTEMS:
        (tmp_path / name).mkdir()
        made = Outcome(tmp_path / name, name, request)
        with pytest.raises(SourceError, match="no dead letters to replay"):
            made.run(replay=True)


class Killed(BaseException):
    """Raised in place of a process that dies."""


@pytest.mark.parametrize("step", ["append", "dead.append", "drop"])
@pytest.mark.parametrize("name", ["iceberg", "delta"])
def test_killed_replay_of_a_lake(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    """After a death between the commits of labels and dead letters, the next replay completes the first one."""
    import tagstream.transforms.io.lake.delta.table as delta
    import tagstream.transforms.io.lake.iceberg.table as iceberg

    made = Outcome(tmp_path, name, request)
    made.run()
    table = {"iceberg": iceberg.IcebergTable, "delta": delta.DeltaLakeTable}[name]
    method = step.rpartition(".")[2]
    original = getattr(table, method)

    def die(self: Any, *arguments: Any) -> Any:
        is_dead = "dead" in self.where.rpartition("/")[2].replace("it/", "")
        if is_dead == step.startswith("dead") and (method != "append" or "tagstream.split" in arguments[3] or is_dead):
            raise Killed
        return original(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(table, method, die)
        with pytest.raises((Killed, RuntimeError)):
            made.run(replay=True, fail_on=None)
    while len(made.dead()) > 1:
        made.run(replay=True, fail_on=None)
    assert made.labels() == sorted([*OTHERS, *NINES])
    assert [row[:2] for row in made.dead()] == [(7, "null_text")]


@pytest.mark.parametrize("name", SYSTEMS)
def test_kept_columns_come_back(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    """Values keep their types, even where a dead letter stores its row as JSON: numbers, times, bytes."""
    columns = {
        "number": pa.array([i / 8 for i in range(ROWS)], pa.float64()),
        "word": pa.array([f"ü{i}" for i in range(ROWS)], pa.string()),
        "raw": pa.array([bytes([i, 255]) for i in range(ROWS)], pa.binary()),
    }
    if name != "sqlite":
        columns |= {
            "day": pa.array([dt.date(2024, 1, 1) + dt.timedelta(days=i) for i in range(ROWS)], pa.date32()),
            "instant": pa.array([dt.datetime(2024, 1, 1, i % 24, 5, tzinfo=dt.UTC) for i in range(ROWS)]),
            "money": pa.array([decimal.Decimal(i) / 4 for i in range(ROWS)], pa.decimal128(12, 2)),
        }
    if name == "postgres":
        del columns["money"]  # numeric is read as text there
    made = Outcome(tmp_path, name, request, **columns)
    made.run()
    made.run(replay=True, fail_on=None)
    table = made.at.table("labels").sort_by("id")
    rows = pa.table({"id": range(ROWS), **columns}).filter(pa.array([i != 7 for i in range(ROWS)]))
    for column in columns:
        assert table[column].to_pylist() == rows[column].to_pylist(), column


@pytest.mark.parametrize("name", SYSTEMS)
def test_labels_are_shown_with_their_texts(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    """`--show` shows labels beside their texts, whatever the sink is."""
    made = Outcome(tmp_path, name, request)
    made.run()
    rows = sample_rows(made.spec(), 5)
    assert rows.num_rows == 5
    assert rows["text"].to_pylist() == [f"text {i}" for i in rows["id"].to_pylist()]
    assert set(rows["tag"].to_pylist()) == {"constant"}
