"""`load` and `predict`: texts of any library in, in order, the labels that a job writes for them."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import tagstream
from tagstream.schemas.errors import ModelError, SourceError, SpecError
from tests.api.conftest import engine_threads
from tests.api.same import assert_same
from tests.models import random_texts
from tests.services.java import wait_until

TEXTS = ["free prize", "see you later", None, "", "über 你 好 😀"]
TABLE = pa.table({"body": TEXTS, "n": range(len(TEXTS))})
NAN = float("nan")


@pytest.fixture(scope="module")
def spam(models: dict[str, Path]) -> Any:
    with tagstream.load(models["spam"]) as model:
        yield model


@pytest.fixture(scope="module")
def expected(spam: tagstream.Model) -> pa.Table:
    return spam.predict(TEXTS)


def test_result(spam: tagstream.Model, expected: pa.Table) -> None:
    assert expected.schema == spam.schema
    assert spam.schema.names == ["label", "label_score", "label_truncated", "error"]
    assert expected["error"].to_pylist() == [None, None, "null_text: the text is null", None, None]
    assert [label is None for label in expected["label"].to_pylist()] == [False, False, True, False, False]


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        tuple(TEXTS),
        [text and text.encode() for text in TEXTS],
        [*TEXTS[:2], NAN, *TEXTS[3:]],
        np.array(TEXTS, object),
        np.array([*TEXTS[:2], np.nan, *TEXTS[3:]], object),
        pd.Series(TEXTS),
        pd.Series(TEXTS, dtype="category"),
        pd.Series([*TEXTS[:2], np.nan, *TEXTS[3:]], dtype=object),
        pd.Series([*TEXTS[:2], pd.NA, *TEXTS[3:]], dtype=object),
        pd.Series(TEXTS, dtype="string[pyarrow]", index=range(5, 0, -1)),
        pd.DataFrame({"body": TEXTS}),
        pl.Series(TEXTS),
        pl.Series(TEXTS, dtype=pl.Categorical),
        pl.Series(TEXTS, dtype=pl.Enum([text for text in TEXTS if text is not None])),
        pl.DataFrame({"body": TEXTS}),
        pa.array(TEXTS),
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array([text and text.encode() for text in TEXTS], pa.binary_view()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(["no", *TEXTS, "no"]).slice(1, len(TEXTS)),
        pa.chunked_array([TEXTS[:1], [], TEXTS[1:]]),
        TABLE.select(["body"]),
        [{"body": text} for text in TEXTS],
    ],
    ids=lambda texts: f"{type(texts).__module__}.{type(texts).__name__}".split(".", 1)[-1],
)
def test_texts_of_any_kind(spam: tagstream.Model, expected: pa.Table, texts: Any) -> None:
    assert_same(spam.predict(texts), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TABLE,
        lambda: TABLE.to_batches()[0],
        lambda: TABLE.to_reader(),
        lambda: pa.concat_tables([TABLE.slice(0, 2), TABLE.slice(2)]),
        lambda: TABLE.to_pydict(),
        lambda: TABLE.to_pylist(),
        lambda: iter(TABLE.to_pylist()),
        lambda: TABLE.to_pandas(),
        lambda: TABLE.to_pandas().assign(mixed=[1, "two", None, 4.0, b"5"]),  # Arrow can't read that column
        lambda: pl.from_arrow(TABLE),
        lambda: duckdb.from_arrow(TABLE),
    ],
    ids=["table", "batch", "reader", "chunks", "dict", "dicts", "iterator", "pandas", "mixed", "polars", "duckdb"],
)
def test_a_column_of_a_table(spam: tagstream.Model, expected: pa.Table, make: Any) -> None:
    assert_same(spam.predict(make(), text="body"), expected)


def test_numpy_texts(spam: tagstream.Model) -> None:
    """All of NumPy's kinds of text: of fixed width, of bytes, of any length."""
    wanted = spam.predict(["a", "bb"])
    for kind in ("U", "S", np.dtypes.StringDType()):
        assert_same(spam.predict(np.array(["a", "bb"], kind)), wanted)


def test_other_iterables(spam: tagstream.Model, expected: pa.Table) -> None:
    assert_same(spam.predict(text for text in TEXTS), expected)
    assert_same(spam.predict("free prize"), expected.slice(0, 1))
    assert_same(spam.predict(b"free prize"), expected.slice(0, 1))


@pytest.mark.parametrize(
    "texts", [[], (), pa.array([], pa.string()), pa.chunked_array([], pa.string()), pd.Series([]), pl.Series([])]
)
def test_no_texts(spam: tagstream.Model, texts: Any) -> None:
    found = spam.predict(texts)
    assert (found.num_rows, found.schema) == (0, spam.schema)


def test_only_nulls(spam: tagstream.Model) -> None:
    for texts in ([None] * 3, pa.nulls(3), pd.Series([None] * 3), pl.Series([None] * 3)):
        assert spam.predict(texts)["error"].to_pylist() == ["null_text: the text is null"] * 3


def test_bytes_that_are_no_text_cost_one_row(spam: tagstream.Model) -> None:
    found = spam.predict(["free", "\ud800", b"\xff", "prize"])
    assert found["error"].to_pylist() == [None, *["bad_encoding: the text is not valid UTF-8"] * 2, None]
    assert_same(found.take([0, 3]), spam.predict(["free", "prize"]))


def test_a_very_long_text(spam: tagstream.Model) -> None:
    assert spam.predict(["free prize " * 30_000, "free"])["label_truncated"].to_pylist() == [True, False]


def test_many_texts_stay_in_order(spam: tagstream.Model) -> None:
    """More than are with the model at a time."""
    texts = [text if number % 7 else None for number, text in enumerate(random_texts(200))]
    few = spam.predict(texts)
    assert_same(spam.predict(texts * 200), pa.concat_tables([few] * 200))


@pytest.mark.parametrize(
    ("texts", "name", "message"),
    [
        (3, None, "predict: give a list of texts, a Series, an Arrow array or a table, not int"),
        (None, None, "predict: give a list of texts, a Series, an Arrow array or a table, not NoneType"),
        (["a", 1], None, "predict: number 1 of these texts is int, not str"),
        ([["a"]], None, "predict: number 0 of these texts is list, not str"),
        (np.array([["a"]]), None, "predict: number 0 of these texts is list, not str"),
        (pa.array([1]), None, "predict: these texts are int64, not text"),
        (pd.Series([1]), None, "predict: these texts are int64, not text"),
        (TABLE, None, "predict: name the column of the texts with text=...; there are body, n"),
        (TABLE, "bdy", "predict: text='bdy': no single column has that name; there are body, n"),
        (TABLE, "n", "predict: column 'n' is int64, not text"),
        (TABLE.to_pylist(), "bdy", "predict: text='bdy': no single column has that name; there are body, n"),
        (TABLE.to_pandas(), "bdy", "predict: text='bdy': no single column has that name; there are body, n"),
        (["a"], "body", "predict: text='body' names a column, and these texts have no columns: leave it out"),
        (pl.Series(["a"]), "body", "predict: text='body' names a column, and these texts have no columns"),
        (pl.LazyFrame({"body": ["a"]}), "body", r"rows of type LazyFrame .*: call its collect\(\) first"),
    ],
)
def test_what_is_no_text(spam: tagstream.Model, texts: Any, name: str | None, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        spam.predict(texts, text=name)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("spam", {"scores": "all", "provenance": ["tokens", "truncated", "model"]}),
        ("spam", {"scores": "none", "thresholds": {"spam": 0.6}, "abstain": "unsure", "as_": "verdict"}),
        ("spam", {"max_length": 8, "long_text": "window"}),
        ("spam", {"max_length": 8, "long_text": "dead_letter"}),
        ("topic", {"labels": {"x": "news"}, "backend": "onnx"}),
        ("several", {"scores": "all", "thresholds": {"a": 0.9, "b": 0.1}}),
        ("number", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_as_a_job_writes(models: dict[str, Path], kind: str, settings: dict[str, Any]) -> None:
    """Row by row: labels where a job has labels, errors where it has dead letters."""
    texts = [*random_texts(300, seed=5), None]
    out = tagstream.Memory()
    entry = {"model": models[kind], **settings, "backend": {"type": settings.get("backend", "pytorch")}}
    tagstream.run(
        source={"text": texts, "id": range(301)}, id="id", infer=[entry], sink=out, max_dead=1, progress=False
    )
    with tagstream.load(models[kind], **settings) as model:
        found = model.predict(texts)
    written, dead = out.labels(), out.dead_letters()
    assert_same(found.take(written["id"]).drop_columns(["error"]), written.drop_columns(["id"]))
    wrong = {number: error.partition(": ")[0] for number, error in enumerate(found["error"].to_pylist()) if error}
    positions = dead["position"].to_pylist()
    assert wrong == dict(zip(positions, dead["code"].to_pylist(), strict=True))
    assert len(positions) + written.num_rows == 301


def test_other_libraries_read_the_result(spam: tagstream.Model, expected: pa.Table) -> None:
    """The scores without a copy in polars, which has the same layout; pandas and DuckDB by their own ways."""
    rows = expected.to_pylist()
    frame = pl.from_arrow(expected)
    assert frame.to_dicts() == rows
    score = expected["label_score"].chunk(0).buffers()[1].address
    assert frame["label_score"].to_arrow().buffers()[1].address == score
    assert expected.to_pandas()["label"].isna().tolist() == [False, False, True, False, False]
    assert duckdb.sql("select count(*), count(label) from expected").fetchall() == [(5, 4)]


def test_threads_share_a_model(spam: tagstream.Model) -> None:
    """Each of eight threads gets the labels of its own texts."""
    texts = [random_texts(50 + 30 * seed, seed=seed) for seed in range(8)]
    alone = [spam.predict(mine) for mine in texts]
    together = threading.Barrier(8)

    def predict(mine: list[str]) -> pa.Table:
        together.wait()
        return spam.predict(mine)

    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(predict, texts), alone, strict=True):
            assert_same(found, wanted)


def test_two_models_at_once(models: dict[str, Path], spam: tagstream.Model, expected: pa.Table) -> None:
    with tagstream.load(models["topic"]) as topic, ThreadPoolExecutor(2) as pool:
        alone = topic.predict(TEXTS)
        both = [pool.submit(model.predict, TEXTS) for model in (spam, topic) for _ in range(5)]
        for number, future in enumerate(both):
            assert_same(future.result(), expected if number < 5 else alone)


def test_a_closed_model(models: dict[str, Path]) -> None:
    before = engine_threads()
    model = tagstream.load(models["spam"])
    assert engine_threads() > before
    model.close()
    model.close()
    assert engine_threads() <= before
    for texts in (["a"], []):
        with pytest.raises(ModelError, match="spam: the model is closed; load it again"):
            model.predict(texts)


def test_a_forgotten_model_closes_itself(models: dict[str, Path]) -> None:
    before = engine_threads()
    assert tagstream.load(models["spam"]).predict(["a"]).num_rows == 1
    gc.collect()
    wait_until(lambda: engine_threads() <= before, 30, "its threads end")


@pytest.mark.parametrize(
    ("model", "settings", "error", "message"),
    [
        (None, {}, SpecError, r"^load: model is missing: give a bundled name"),
        ("tagstream/spm", {}, ModelError, r"tagstream/spm: no such bundled model.*tagstream/sentiment"),
        ("/nowhere/at-all", {}, ModelError, "/nowhere/at-all: not a folder"),
        ("spam", {"score": "all"}, SpecError, "^load: score: unknown field; did you mean 'scores'"),
        ("spam", {"scores": "every"}, SpecError, "^load: scores: .*'top', 'all'.*'none'"),
        ("spam", {"backend": "tensorflow"}, SpecError, "^load: backend: type must be one of .*pytorch"),
        ("spam", {"backend": {"type": "onnx", "devise": "cpu"}}, SpecError, "backend.devise: .*did you mean 'device'"),
        ("spam", {"backend": 3}, SpecError, "^load: backend: "),
        ("spam", {"thresholds": {"spm": 0.5}}, SpecError, "thresholds: no label 'spm'; there are ham, spam"),
        ("spam", {"thresholds": {"spam": 2}}, SpecError, r"^load: thresholds\.spam: "),
    ],
)
def test_what_can_not_be_loaded(models: dict[str, Path], model: Any, settings: Any, error: Any, message: str) -> None:
    """The message names the argument, and nothing stays behind."""
    before = engine_threads()
    with pytest.raises(error, match=message):
        tagstream.load(models.get(model, model), **settings)
    assert engine_threads() <= before
