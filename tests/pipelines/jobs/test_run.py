"""A bulk job on this machine does each row once, whatever was done before, and refuses wrong settings in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.errors import DeadLetterLimitError, LedgerError, SourceError, SpecError
from tagstream.transforms.io.memory import Memory
from tests.models import make_model, random_texts
from tests.pipelines.bulk_jobs import CONSTANT, BulkJob


@pytest.fixture
def job(tmp_path: Path) -> BulkJob:
    """250 rows in two files; row 7 has no text."""
    bulk = BulkJob(tmp_path)
    bulk.put("a.parquet", [None if i == 7 else f"text {i}" for i in range(150)])
    bulk.put("b.parquet", [f"text {i}" for i in range(150, 250)], first=150)
    return bulk


ALL = [i for i in range(250) if i != 7]


def test_every_row_once(job: BulkJob) -> None:
    """Each row is labelled or dead, and the report agrees with the output."""
    report = job.run()
    assert (report.state, report.rows_total, report.rows_before, report.rows_left) == ("done", 250, 0, 0)
    assert (report.counts.rows_in, report.counts.rows_out, dict(report.counts.dead)) == (250, 249, {"null_text": 1})
    assert dict(report.counts.labels) == {("tag", "ham"): 249}
    assert job.labels("id, tag") == [(i, "ham") for i in ALL]
    assert job.dead('"row".id, code, origin_position') == [(7, "null_text", 7)]


def test_done_twice_does_nothing(job: BulkJob) -> None:
    """A second run does no row, commits nothing and changes no file."""
    job.run()
    before = job.files()
    report = job.run()
    assert (report.state, report.rows_before, report.counts.rows_in, report.counts.commits) == ("done", 250, 0, 0)
    assert job.files() == before


@pytest.mark.parametrize("limit", [1, 99, 100, 101, 249])
def test_limit_and_then_all(job: BulkJob, limit: int) -> None:
    """A run with a limit is part of the job, and the full run continues after its rows."""
    report = job.run(limit=limit)
    assert (report.rows_total, report.counts.rows_in, report.rows_left) == (limit, limit, 0)
    assert job.labels() == [i for i in range(limit) if i != 7]
    report = job.run()
    assert (report.rows_before, report.counts.rows_in) == (limit, 250 - limit)
    assert job.labels() == ALL
    assert job.dead() == [7]


def test_smaller_limit_than_done(job: BulkJob) -> None:
    """A limit below the rows that are done leaves nothing to do."""
    job.run(limit=120)
    assert job.run(limit=50).counts.rows_in == 0
    assert "gone or has changed" not in job.said


def test_labels_and_dead_letters_of_any_input_are_kept_apart(tmp_path: Path) -> None:
    """Labels and dead letters may not share a folder, because their files have the same names."""
    bulk = BulkJob(tmp_path)
    bulk.put("a.parquet", ["x"])
    for given in ({}, {"source": {"type": "memory", "rows": Memory({"text": ["x"]})}}):
        with pytest.raises(SpecError, match="choose a folder of their own"):
            bulk.run(dead_letters__path=str(tmp_path / "out"), **given)


def test_new_file_is_added(job: BulkJob) -> None:
    """After a new file, only its rows are done."""
    job.run()
    job.put("c.parquet", ["new"] * 10, first=250)
    report = job.run()
    assert (report.rows_total, report.rows_before, report.counts.rows_in) == (260, 250, 10)
    assert job.labels() == [*ALL, *range(250, 260)]
    assert "gone or has changed" not in job.said


def test_file_that_is_gone_is_told(job: BulkJob) -> None:
    """A removed file is told of: its rows are in the output, and the message says how to start anew."""
    job.run()
    (job.folder / "in/b.parquet").rename(job.folder / "in/c.parquet")
    job.put("c.parquet", ["changed"] * 20, first=1_000)
    report = job.run()
    assert report.counts.rows_in == 20
    assert job.labels() == [*ALL, *range(1_000, 1_020)]
    assert "the output holds 1 splits whose input is gone or has changed" in job.said
    assert "--overwrite" in job.said
    job.run(overwrite=True)
    assert job.labels() == [*(i for i in range(150) if i != 7), *range(1_000, 1_020)]
    assert job.dead() == [7]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"infer__0__backend__label": "spam"}, "infer.0.label: 'ham' in the output, 'spam' in this job"),
        ({"infer__0__as": "other"}, "infer.0.as: 'tag' in the output, 'other' in this job"),
        ({"infer__0__labels": {"ham": "eggs"}}, "infer.0.labels.ham"),
        ({"infer__0__thresholds": {"ham": 0.5}}, "infer.0.thresholds.ham"),
        ({"infer__0__abstain": "?"}, "infer.0.abstain"),
        ({"infer__0__max_length": 64}, "infer.0.max_length"),
        ({"infer__0__long_text": "window"}, "infer.0.long_text"),
        ({"infer__0__scores": "all"}, "columns.3"),
        ({"infer": [CONSTANT, {**CONSTANT, "as": "two"}]}, "infer.1.as"),
        ({"source__keep": ["text"]}, "columns.1"),
        ({"source__id": None}, "columns.0"),
        ({"source__text": "other"}, "text: 'text' in the output, 'other' in this job"),
        ({"source__split_rows": 50}, "split_rows: 100 in the output, 50 in this job"),
        ({"sink__position": True}, "columns.4"),
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_the_rows_is_refused(job: BulkJob, change: dict[str, Any], part: str) -> None:
    """The message names the part that differs, and nothing is written. --overwrite replaces the whole output."""
    for name in ("a", "b"):
        table = pq.read_table(job.folder / f"in/{name}.parquet")
        pq.write_table(table.append_column("other", table["text"]), job.folder / f"in/{name}.parquet")
    job.run(limit=30)
    before = job.files()
    with pytest.raises(LedgerError) as caught:
        job.run(**change)
    assert part in str(caught.value)
    assert job.files() == before
    job.run(overwrite=True, **change)
    assert len(job.labels("*")) == len(ALL)


def test_what_does_not_change_the_rows_is_allowed(job: BulkJob) -> None:
    """Settings that leave the labels alone do not change the job: sizes, compression, where the input lies."""
    job.run(limit=30)
    job.folder.joinpath("in").rename(job.folder / "moved")
    report = job.run(
        source__path=str(job.folder / "moved"),
        blocks__rows=7,
        sink__compression="gzip",
        infer__0__backend__fail_on="text 3",
        max_dead=1,
        name="renamed",
    )
    assert report.rows_before == 30
    assert sorted(job.labels() + job.dead()) == list(range(250))


def test_changed_model_is_refused(job: BulkJob, tmp_path: Path) -> None:
    """With other weights under the same path, or other names of labels, it is another job."""
    folder = make_model(tmp_path / "model")
    infer = [{"model": str(folder), "as": "tag"}]
    job.run(limit=5, infer=infer)
    make_model(tmp_path / "model", seed=1)
    with pytest.raises(LedgerError, match=r"infer\.0\.weights"):
        job.run(infer=infer)


def test_renamed_labels_of_a_model_are_refused(job: BulkJob, tmp_path: Path) -> None:
    """The names of labels in the model's config are part of the job."""
    folder = make_model(tmp_path / "model")
    infer = [{"model": str(folder), "as": "tag"}]
    job.run(limit=5, infer=infer)
    config = (folder / "config.json").read_text().replace('"ham"', '"good"')
    (folder / "config.json").write_text(config)
    with pytest.raises(LedgerError, match=r"infer\.0\.names\.0: 'ham' in the output, 'good' in this job"):
        job.run(infer=infer)


@pytest.mark.parametrize(
    ("field", "path"),
    [
        ("sink__path", "in"),
        ("sink__path", "in/out"),
        ("sink__path", "in/../in/out/"),
        ("dead_letters__path", "in/dead"),
    ],
)
def test_output_inside_the_input(job: BulkJob, field: str, path: str) -> None:
    """Output inside the input would be read as input the next time, so it is refused before anything is created."""
    with pytest.raises(SpecError, match=rf"{field.replace('__', '.')} .* lies inside source\.path"):
        job.run(**{field: str(job.folder / path)})
    assert sorted(path.name for path in job.folder.iterdir()) == ["in"]


def test_output_beside_a_glob_is_fine_and_inside_is_not(job: BulkJob) -> None:
    """With a glob, the part of the path before the first wildcard counts as the input."""
    with pytest.raises(SpecError, match="lies inside"):
        job.run(source__path=f"{job.folder}/in/*.parquet", sink__path=f"{job.folder}/in/out")
    assert job.run(source__path=f"{job.folder}/in/*.parquet", sink__path=f"{job.folder}/inn").counts.rows_in == 250


def test_labels_and_dead_letters_need_folders_of_their_own(job: BulkJob) -> None:
    """In one folder, dead letters would replace labels, because their files have the same names."""
    with pytest.raises(SpecError, match=r"dead_letters\.path .* is sink\.path too"):
        job.run(dead_letters__path=f"{job.folder}/out/")


def test_file_without_rows(tmp_path: Path) -> None:
    """A job without rows is done at once, again and again, and does rows that come later."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", [])
    assert (job.run().state, job.run().state) == ("done", "done")
    assert job.labels() == []
    job.put("b.parquet", ["x"])
    assert job.run().counts.rows_in == 1


def test_no_id_and_nothing_kept(job: BulkJob) -> None:
    """Without id and kept columns the output has labels alone. Dead letters still have position and text."""
    job.run(source__id=None, infer__0__backend__fail_on="text 9$", max_dead=1)
    assert len(job.labels("tag")) == 248
    assert job.dead("position, code, payload") == [(7, "null_text", None), (9, "inference_failed", b"text 9")]


def test_several_classifiers(job: BulkJob) -> None:
    """Each entry has its columns. A row is dead if one entry fails on it, and the message names that entry."""
    two = {"as": "two", "scores": "all", "backend": {"type": "constant", "label": "x", "fail_on": "text 8$"}}
    report = job.run(infer=[CONSTANT, two])
    assert report.counts.rows_out == 248
    assert job.labels("id, tag, two, two_scores.x")[0] == (0, "ham", "x", 1.0)
    assert [(p, m[:4]) for p, m in job.dead("position, message")] == [(7, "the "), (8, "two:")]


def test_too_many_dead_letters_stop_the_job(tmp_path: Path) -> None:
    """If over 5 % of the first thousand rows are dead letters, the error gives the codes and nothing is written."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", [None if i % 10 == 0 else "x" for i in range(3_000)])
    with pytest.raises(DeadLetterLimitError, match=r"of 1,000 rows in a row are dead letters \(.* null_text\); none of these rows was written"):  # fmt: skip  # noqa: E501
        job.run(source__split_rows=10_000)
    assert job.labels() == []
    assert job.dead() == []
    report = job.run(source__split_rows=10_000, max_dead=1)
    assert (report.counts.rows_out, report.counts.dead_rows) == (2_700, 300)


def test_only_dead_letters_stop_the_job(tmp_path: Path) -> None:
    """If all rows are dead, the job fails however few rows there are."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", [None, None])
    with pytest.raises(DeadLetterLimitError, match="2 of 2 rows in a row are dead letters"):
        job.run()
    assert job.run(max_dead=1).counts.dead_rows == 2


@pytest.mark.parametrize("earlier", [0, 5_000])
def test_the_limit_holds_for_the_whole_of_a_run_and_every_night(tmp_path: Path, earlier: int) -> None:
    """Good rows first, then a stretch of dead ones: nothing of the stretch is written, and the exit code is its own."""
    job = BulkJob(tmp_path)
    small = {"blocks__rows": 100, "source__split_rows": 500}
    if earlier:
        job.put("a.parquet", ["x"] * earlier)
        job.run(**small)
    job.put("b.parquet", ["x"] * 3_000 + [None] * 2_000)
    with pytest.raises(
        DeadLetterLimitError, match=r"of 1,000 rows in a row are dead letters \(.* null_text\)"
    ) as raised:
        job.run(**small)
    assert raised.value.exit_code == 8
    assert job.dead() == []
    assert len(job.labels()) <= earlier + 3_000
    assert job.run(**small, max_dead=1).counts.dead_rows == 2_000
    assert len(job.labels()) == earlier + 3_000


def test_dead_letters_at_the_end_do_not_stop_a_job_that_goes_on(tmp_path: Path) -> None:
    """A short rest may be all dead: what earlier rows were is known, and the rest can be finished after a stop."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x"] * 90 + [None] * 3)
    job.run(limit=90)
    report = job.run()
    assert (report.state, report.counts.dead_rows) == ("done", 3)


def test_bad_file_goes_to_the_dead_letters(job: BulkJob) -> None:
    """The rest of the input is done, and the dead letters name the unreadable file."""
    (job.folder / "in/c.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(SourceError, match=r"c\.parquet"):
        job.run()
    report = job.run(source__on_bad_file="dead_letter")
    assert (report.counts.rows_in, report.counts.rows_out) == (251, 249)
    assert job.labels() == ALL
    assert job.dead("code, message")[0][0] == "bad_file"


def test_wrong_input_leaves_no_output(job: BulkJob) -> None:
    """A missing column is an error before the output is created."""
    with pytest.raises(SourceError):
        job.run(source__text="txet")
    assert not (job.folder / "out").exists()


def test_memory_to_memory(tmp_path: Path) -> None:
    """A job also runs with its source and sink in memory, without any file."""
    rows, labels = Memory({"id": range(500), "text": random_texts(500)}), Memory()
    job = BulkJob(tmp_path)
    memory = {"source": {"type": "memory", "rows": rows, "id": "id"}, "sink": {"type": "memory", "rows": labels}}
    report = job.run(**memory, dead_letters=None)
    assert report.counts.rows_out == 500
    assert labels.labels()["id"].to_pylist() == list(range(500))


def test_labels_of_a_model_equal_those_of_transformers(job: BulkJob, tmp_path: Path) -> None:
    """Labels of a whole job, with splits, blocks and duplicates, equal those of plain transformers."""
    from transformers import pipeline

    folder = make_model(tmp_path / "model", labels=("a", "b", "c"))
    texts = random_texts(200, seed=4)
    job.put("a.parquet", texts)
    (job.folder / "in/b.parquet").unlink()
    job.run(infer=[{"model": str(folder), "as": "tag"}])
    expected = pipeline("text-classification", str(folder), truncation=True, max_length=64, device="cpu")(texts)
    got = job.labels("id, tag, tag_score")
    assert [tag for _, tag, _ in got] == [e["label"] for e in expected]
    assert [score for *_, score in got] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    assert len({e["label"] for e in expected}) > 1


def test_remembered_answers_change_nothing_but_the_work(tmp_path: Path) -> None:
    """With `memory_bytes` rows and fingerprint stay the same, fewer sequences run, and the report says so."""
    rows = Memory({"id": range(400), "text": random_texts(100, seed=2) * 4})
    model = str(make_model(tmp_path / "model"))
    job = BulkJob(tmp_path)
    seen = {}
    for memory in (0, 1 << 20):
        report = job.run(
            source={"type": "memory", "rows": rows, "id": "id"},
            infer=[{"model": model, "as": "tag", "memory_bytes": memory}],
            sink={"type": "memory", "rows": (out := Memory())},
            dead_letters=None,
            blocks={"rows": 50},
        )
        seen[memory] = report, out.labels()
    (plain, labels), (remembering, same) = seen[0], seen[1 << 20]
    assert same.drop_columns("tag_score").equals(labels.drop_columns("tag_score"))
    assert same["tag_score"].to_pylist() == pytest.approx(labels["tag_score"].to_pylist(), abs=1e-5)
    assert plain.fingerprint == remembering.fingerprint
    assert plain.to_dict()["remembered"] == 0
    assert plain.counts.sequences == remembering.counts.sequences + remembering.to_dict()["remembered"]
    assert remembering.to_dict()["remembered"] > 50


def test_rows_move_only_after_everything_was_checked(job: BulkJob, tmp_path: Path) -> None:
    """A model that can't be loaded stops the job before the first row."""
    folder = make_model(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{}")
    from tagstream.schemas.errors import ModelError

    with pytest.raises(ModelError, match="can't be loaded"):
        run_job(job.spec(infer=[{"model": str(folder), "as": "tag"}]), job.console)
    assert job.labels("*") == []
