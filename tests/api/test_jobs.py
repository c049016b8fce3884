"""`run`, `plan` and `evaluate` with Python objects as input and output; several jobs in one process."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tagstream
from tagstream.jobs import specification
from tagstream.schemas.errors import LedgerError, SourceError, SpecError
from tests.api.same import assert_same
from tests.models import random_texts

TAG = [{"as": "tag", "backend": {"type": "constant", "label": "ham"}}]
ROWS = pa.table({"body": ["a", None, "c"], "id": [1, 2, 3], "name": ["p", "q", "r"]})


def run(rows: Any = ROWS, infer: Any = TAG, sink: Any = None, **fields: Any) -> tagstream.Report:
    fields = {"text": "body", "max_dead": 1.0, **fields}
    return tagstream.run(source=rows, infer=infer, sink=sink or tagstream.Memory(), progress=False, **fields)


def labels(rows: Any = ROWS, **fields: Any) -> pa.Table:
    out = tagstream.Memory()
    run(rows, sink=out, **fields)
    return out.labels()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ROWS,
        lambda: tagstream.Memory(ROWS),
        lambda: ROWS.to_reader(),
        lambda: ROWS.to_pydict(),
        lambda: ROWS.to_pylist(),
        lambda: iter(ROWS.to_pylist()),
        lambda: ROWS.to_pandas(),
        lambda: pl.from_arrow(ROWS),
        lambda: pl.from_arrow(ROWS).with_columns(pl.col("body", "name").cast(pl.Categorical)),
        lambda: duckdb.from_arrow(ROWS),
    ],
    ids="table memory reader dict dicts iterator pandas polars categorical duckdb".split(),  # noqa: SIM905
)
def test_rows_of_any_kind(make: Any) -> None:
    found = labels(make(), id="id", keep="name")
    assert found.select(["id", "tag"]).to_pylist() == [{"id": 1, "tag": "ham"}, {"id": 3, "tag": "ham"}]
    assert found["name"].to_pylist() == ["p", "r"]


def test_dicts_with_different_keys() -> None:
    rows = [{"body": "a"}, {"body": "b", "n": 1}, {"n": 2}]
    assert labels(rows, keep=["n"]).select(["n", "tag"]).to_pylist() == [
        {"n": None, "tag": "ham"},
        {"n": 1, "tag": "ham"},
    ]


def test_rows_stay_in_order() -> None:
    """Over many splits and blocks, and over two inputs in turn."""
    texts, out = [str(n) for n in range(5_000)], tagstream.Memory()
    first, second = tagstream.Memory({"body": texts[:3000]}), tagstream.Memory({"body": texts[3000:]})
    for rows in (first, second):
        source = {"type": "memory", "rows": rows, "split_rows": 700, "keep": ["body"]}
        run(source, sink=out, blocks={"rows": 90})
    assert out.labels()["body"].to_pylist() == texts


def test_the_output_is_read_by_others() -> None:
    found = labels(id="id")
    assert pl.from_arrow(found)["tag"].to_list() == ["ham", "ham"]
    assert found.to_pandas()["id"].tolist() == [1, 3]
    assert duckdb.sql("select id from found where tag = 'ham'").fetchall() == [(1,), (3,)]


def test_dead_letters_in_memory() -> None:
    out = tagstream.Memory()
    report = run(sink=out, id="id")
    assert (report.counts.rows_in, report.counts.rows_out, dict(report.counts.dead)) == (3, 2, {"null_text": 1})
    (dead,) = out.dead_letters().to_pylist()
    assert (dead["code"], dead["position"], dead["row"]) == ("null_text", 1, {"id": 2})


def test_same_objects_again() -> None:
    """Nothing is left to do; `clear` and `overwrite` start anew."""
    rows, out = tagstream.Memory(ROWS), tagstream.Memory()
    assert [run(rows, sink=out).counts.rows_in for _ in range(2)] == [3, 0]
    assert run(rows, sink=out, overwrite=True).counts.rows_in == 3
    assert out.labels().num_rows == 2
    out.clear()
    assert out.labels().num_rows == 0
    assert run(rows, sink=out).counts.rows_in == 3


def test_same_job_with_new_rows(models: dict[str, Path]) -> None:
    """The same specification with other rows: their labels, not the first ones'."""
    entry = [{"model": models["topic"], "as": "topic"}]
    for seed in range(2):
        texts = random_texts(60, seed=seed)
        with tagstream.load(models["topic"], as_="topic") as model:
            wanted = model.predict(texts).drop_columns(["error"])
        assert_same(labels({"body": texts}, infer=entry), wanted)


def test_a_limit_first() -> None:
    rows, out = tagstream.Memory(ROWS), tagstream.Memory()
    assert [run(rows, sink=out, limit=limit).counts.rows_in for limit in (1, None)] == [1, 2]
    assert out.labels().num_rows == 2


def test_the_output_of_another_job() -> None:
    """Refused, with the differences by name."""
    out = tagstream.Memory()
    run(sink=out)
    with pytest.raises(
        LedgerError, match=r"(?s)infer.0.as: 'tag' in the output, 'other' in this job.*Memory of its own"
    ):
        run(sink=out, infer=[{**TAG[0], "as": "other"}])
    assert out.labels().schema.names == ["tag", "tag_score", "tag_truncated"]


def test_two_jobs_side_by_side(models: dict[str, Path]) -> None:
    """In threads, with other models and rows: each has its own rows, labels and counts, and ends its own engines."""
    texts = {"spam": random_texts(700, seed=1), "topic": [*random_texts(400, seed=2), None]}
    alone = {}
    for kind, mine in texts.items():
        with tagstream.load(models[kind], as_=kind) as model:
            alone[kind] = model.predict(mine).drop_columns(["error"]).slice(0, len(mine) - mine.count(None))
    together = threading.Barrier(2)

    def job(kind: str) -> tuple[tagstream.Report, pa.Table]:
        out = tagstream.Memory()
        together.wait()
        rows = {"body": texts[kind]}
        report = run(rows, infer=[{"model": models[kind], "as": kind}], sink=out, blocks={"rows": 50})
        return report, out.labels()

    with ThreadPoolExecutor(2) as pool:
        for kind, (report, found) in zip(texts, pool.map(job, texts), strict=True):
            assert_same(found, alone[kind])
            assert (report.counts.rows_in, report.rows_left) == (len(texts[kind]), 0)
            assert dict(report.counts.dead) == ({"null_text": 1} if kind == "topic" else {})
            assert {column for column, _ in report.counts.labels} == {kind}


def test_one_job_fails_beside_another() -> None:
    """The failure and the stop are of the one job only."""

    def job(fails: bool) -> tagstream.Report | None:
        if not fails:
            return run({"body": [str(n) for n in range(400)]}, infer=[slow])
        with pytest.raises(SourceError, match="are dead letters"):
            run({"body": [None] * 400}, max_dead=0.05)
        return None

    slow = {"as": "tag", "backend": {"type": "constant", "ms_per_row": 1.0}}
    with ThreadPoolExecutor(2) as pool:
        good, _ = pool.map(job, [False, True])
    assert (good.state, good.counts.rows_out) == ("done", 400)


def test_one_model_under_two_names(models: dict[str, Path]) -> None:
    """Each text goes through the model once, whatever becomes of its scores."""
    texts = [f"text {n}" for n in range(100)]
    entries = [
        {"model": models["spam"], "as": "strict", "thresholds": {"spam": 0.99, "ham": 0.99}, "abstain": "unsure"},
        {"model": models["spam"], "as": "spam", "scores": "all"},
    ]
    out = tagstream.Memory()
    report = run({"body": texts}, infer=entries, sink=out)
    assert (report.counts.sequences, report.counts.rows_out) == (100, 100)
    for entry in entries:
        settings = {("as_" if name == "as" else name): value for name, value in entry.items()}
        with tagstream.load(**settings) as model:
            wanted = model.predict(texts).drop_columns(["error"])
        assert_same(out.labels().select(wanted.column_names), wanted)


def test_files_and_folders(tmp_path: Path) -> None:
    """Paths, and a specification as mapping, file and checked object; the user's mapping stays as it is."""
    pq.write_table(ROWS, tmp_path / "in.parquet")
    given = {
        "source": {"type": "parquet", "path": tmp_path / "in.parquet"},
        "infer": TAG,
        "sink": {"type": "parquet", "path": tmp_path / "out"},
        "max_dead": 1.0,
    }
    copied = {name: dict(value) if isinstance(value, dict) else value for name, value in given.items()}
    assert tagstream.run(given, text="body", id="id", progress=False).counts.rows_out == 2
    assert given == copied
    assert pq.read_table(tmp_path / "out")["id"].to_pylist() == [1, 3]
    spec = specification(given, text="body", id="id")
    assert tagstream.run(spec, progress=False).counts.rows_in == 0
    (tmp_path / "job.yaml").write_text("infer: [{as: tag, backend: {type: constant, label: ham}}]\nmax_dead: 1\n")
    out = tagstream.Memory()
    tagstream.run(tmp_path / "job.yaml", source=tmp_path / "in.parquet", text="body", sink=out, progress=False)
    assert out.labels().num_rows == 2
    report = run(tmp_path / "in.parquet", sink=tmp_path / "other")
    assert (report.output, report.counts.rows_out) == (str(tmp_path / "other"), 2)


def test_plan() -> None:
    out, rows = tagstream.Memory(), tagstream.Memory(ROWS)
    plan = tagstream.plan(source=rows, text="body", infer=TAG, sink=out)
    assert (plan.rows, plan.rows_done, list(plan.columns)) == (3, 0, ["tag", "tag_score", "tag_truncated"])
    assert out.labels().num_rows == 0
    run(rows, sink=out)
    assert tagstream.plan(source=rows, text="body", infer=TAG, sink=out, max_dead=1).rows_done == 3


def test_evaluate() -> None:
    frame = pd.DataFrame({"body": ["a", "b", None], "truth": ["ham", "spam", "ham"]})
    found = tagstream.evaluate(source=frame, text="body", infer=TAG, label="truth", progress=False)
    assert (found["rows"], found["dead_letters"], found["entries"]["tag"]["accuracy"]) == (2, {"null_text": 1}, 0.5)


MEMORY = tagstream.Memory


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, SpecError, "source: is missing"),
        ({"source": ROWS, "sink": MEMORY()}, SpecError, "infer: is missing"),
        ({"source": ROWS, "infer": TAG}, SpecError, "sink: is missing"),
        ({"source": ROWS, "infer": "tagstream/spam", "sink": MEMORY()}, SpecError, "^infer: give a list of entries"),
        ({"source": ROWS, "infer": TAG[0], "sink": MEMORY()}, SpecError, "^infer: give a list of entries"),
        ({"source": ROWS, "infer": [{"modle": "x"}], "sink": MEMORY()}, SpecError, "infer.0.modle: .*'model'"),
        ({"source": ROWS, "infer": TAG, "sink": ROWS}, SpecError, "^sink: give a folder, a tagstream.Memory, or"),
        ({"source": ROWS, "infer": TAG, "sink": MEMORY(), "max_ded": 1}, SpecError, "max_ded: .*'max_dead'"),
        ({"source": ROWS, "infer": TAG, "sink": MEMORY(), "limit": 0}, SpecError, "^limit: give a number of rows"),
        ({"source": ROWS, "infer": TAG, "sink": MEMORY(), "text": "bdy"}, SourceError, "no column 'bdy'.*mean 'body'"),
        ({"source": 3, "infer": TAG, "sink": MEMORY()}, SourceError, "rows of type int can't be read by Arrow"),
        ({"source": ["a"], "infer": TAG, "sink": MEMORY()}, SourceError, "each row must be a dict, .*, not str"),
        ({"source": pl.Series(["a"]), "infer": TAG, "sink": MEMORY()}, SourceError, "Rows have named columns"),
        ({"source": [], "infer": TAG, "sink": MEMORY()}, SourceError, "source.rows has no columns: .*a schema"),
        ({"source": MEMORY(), "infer": TAG, "sink": MEMORY()}, SourceError, "source.rows is an empty Memory: give it"),
        ({"spec": 3}, SpecError, "a specification is a YAML file or a mapping, not int"),
        ({"spec": "/nowhere.yaml"}, SpecError, "/nowhere.yaml: no such file"),
    ],
)  # fmt: skip
def test_what_can_not_run(given: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        tagstream.run(**given, progress=False)


def test_names() -> None:
    assert set(dir(tagstream)) == set(tagstream.__all__)
    assert all(getattr(tagstream, name) for name in tagstream.__all__)
    with pytest.raises(AttributeError, match="module 'tagstream' has no attribute 'rnu'"):
        tagstream.rnu  # noqa: B018
