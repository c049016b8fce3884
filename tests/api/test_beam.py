"""`Infer` in somebody's own pipeline: rows of every kind, poison rows beside, windows and timestamps kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, Repeatedly
from apache_beam.transforms.window import FixedWindows, GlobalWindows, SlidingWindows, TimestampedValue

import tagstream
from tagstream.beam import _InferRowsFn
from tagstream.schemas.errors import SpecError
from tests.api.same import near
from tests.models import random_texts
from tests.services.flink import FlinkCluster
from tests.services.java import wait_until

TAG = [{"as": "tag", "scores": "none", "provenance": [], "backend": {"type": "constant", "label": "ham"}}]
POISON = [{**TAG[0], "backend": {**TAG[0]["backend"], "fail_on": "poison"}}]


class Mail(NamedTuple):
    number: int
    text: str | None


def pipeline(*options: str) -> beam.Pipeline:
    return beam.Pipeline(runner=FnApiRunner(), options=PipelineOptions([*options, "--no_save_main_session"]))


KEPT: dict[str, list[Any]] = {}
"""What came out, by a name that a pickled function can carry."""


class Keep(beam.DoFn):
    def __init__(self, name: str) -> None:
        self.name = name
        KEPT[name] = []

    def process(self, row: Any) -> None:
        KEPT[self.name].append(row)


def run(elements: list[Any], infer: Any = POISON, *options: str, **settings: Any) -> tuple[list[Any], list[Any]]:
    """What comes out of the two outputs."""
    with pipeline(*options) as p:
        labelled, failed = p | beam.Create(elements, reshuffle=False) | tagstream.Infer(infer, **settings)
        _ = labelled | "good" >> beam.ParDo(Keep("good"))
        _ = failed | "bad" >> beam.ParDo(Keep("bad"))
    return KEPT["good"], KEPT["bad"]


def test_dicts() -> None:
    """Labels beside the input; each row that has none comes out of the second output with the reason."""
    rows = [
        {"text": "a", "n": 1},
        {"text": "poison", "n": 2},
        {"text": None, "n": 3},
        {"text": float("nan"), "n": 4},
        {"text": b"\xff", "n": 5},
        {"text": 7, "n": 6},
        {"n": 7},
        {"text": b"bytes", "n": 8},
    ]
    good, bad = run(rows)
    assert good == [{"text": "a", "n": 1, "tag": "ham"}, {"text": b"bytes", "n": 8, "tag": "ham"}]
    assert [row.row["n"] for row in bad] == [2, 3, 4, 5, 6, 7]
    codes = "inference_failed null_text null_text bad_encoding bad_schema bad_schema"
    assert [row.code for row in bad] == codes.split()
    assert bad[0].message.startswith("tag: ")
    assert [row.message for row in bad[-2:]] == ["field 'text' holds int, not text", "field 'text' is missing"]
    assert all(isinstance(row, tagstream.FailedRow) for row in bad)


def test_rows_and_named_tuples() -> None:
    mails = [Mail(1, "a"), Mail(2, "poison")]
    good, bad = run([beam.Row(**mail._asdict()) for mail in mails])
    assert good == [beam.Row(number=1, text="a", tag="ham")]
    assert [(row.row.number, row.code) for row in bad] == [(2, "inference_failed")]
    good, bad = run(mails)
    assert good == [beam.Row(number=1, text="a", tag="ham")]
    assert [(row.row, row.code) for row in bad] == [(mails[1], "inference_failed")]


@pytest.mark.parametrize("kind", ["batch", "table"])
def test_record_batches_and_tables(kind: str) -> None:
    """Each comes out as what it was, without its failed rows; those are one of their own."""
    texts = pa.array(["a", "poison", None, "b"], pa.string_view())
    table = pa.table({"n": [1, 2, 3, 4], "text": texts}).replace_schema_metadata({"mine": "kept"})
    others = [table.slice(0, 1), table.slice(1, 2), table.slice(0, 0), pa.table({"n": [9]}), pa.table({"text": [9]})]
    tables = [pa.concat_tables([table.slice(0, 2), table.slice(2)]), *others]
    elements = tables if kind == "table" else [t.combine_chunks().to_batches()[0] for t in tables if t.num_rows]
    good, bad = run(elements)
    assert {type(element) for element in [*good, *bad]} == {type(elements[0])}
    labelled = [e.to_pydict() for e in good]
    assert labelled[0] == {"n": [1, 4], "text": ["a", "b"], "tag": ["ham", "ham"]}
    assert labelled[1] == {"n": [1], "text": ["a"], "tag": ["ham"]}
    assert labelled[2:] == ([{"n": [], "text": [], "tag": []}] if kind == "table" else [])
    assert good[0].schema.metadata == {b"mine": b"kept"}
    assert good[0].schema.field("text").type == pa.string_view()
    first, second, missing, number = (element.to_pydict() for element in bad)
    assert (first["n"], first["error_code"]) == ([2, 3], ["inference_failed", "null_text"])
    assert second == first
    assert missing["error_message"] == ["column 'text' is missing, or there several times"]
    assert number["error_message"] == ["column 'text' is int64, not text"]


def test_models(models: dict[str, Path]) -> None:
    """The labels that `predict` gives, of two models at once, for more rows than are given to them together."""
    texts = random_texts(150, seed=3)
    entries = [{"model": models["spam"], "as": "spam"}, {"model": models["several"], "as": "kinds", "scores": "all"}]
    good, bad = run([{"body": text} for text in texts], entries, text="body", batch_rows=16)
    wanted: list[dict[str, Any]] = [{"body": text} for text in texts]
    for entry in entries:
        with tagstream.load(**{"as_" if name == "as" else name: value for name, value in entry.items()}) as model:
            found = model.predict(texts).drop_columns(["error"]).to_pylist()
            wanted = [{**row, **more} for row, more in zip(wanted, found, strict=True)]
    assert (good, bad) == (near(wanted), [])


def test_no_rows() -> None:
    assert run([]) == ([], [])


@pytest.mark.parametrize("batch_rows", [1, 2, 7, 1000])
def test_order_within_a_bundle(batch_rows: int) -> None:
    rows = [{"text": "poison" if n % 5 == 0 else "x", "n": n} for n in range(100)]
    good, bad = run(rows, batch_rows=batch_rows)
    assert [row["n"] for row in good] == [n for n in range(100) if n % 5]
    assert [row.row["n"] for row in bad] == [n for n in range(100) if n % 5 == 0]


class Where(beam.DoFn):
    """(number, timestamp, start and end of the window, pane) of each row."""

    def process(
        self,
        row: Any,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Any:
        number = (row.row if isinstance(row, tagstream.FailedRow) else row)["n"]
        yield number, float(timestamp), float(window.start), float(window.end), pane.index


@pytest.mark.parametrize("batch_rows", [3, 500])
@pytest.mark.parametrize(
    ("windows", "of"),
    [
        (FixedWindows(10), lambda n: [(n - n % 10, n - n % 10 + 10)]),
        (SlidingWindows(20, 10), lambda n: [(n - n % 10, n - n % 10 + 20), (n - n % 10 - 10, n - n % 10 + 10)]),
    ],
    ids=["fixed", "sliding"],
)
def test_windows_and_timestamps(windows: Any, of: Any, batch_rows: int) -> None:
    """Of labelled and of failed rows, whichever row made the batch full."""
    numbers = [*range(0, 40, 3), 7, 1]
    rows = [TimestampedValue({"text": "poison" if n % 2 else "x", "n": n}, n) for n in numbers]
    places = [(n, float(n), float(start), float(end), 0) for n in numbers for start, end in of(n)]
    with pipeline() as p:
        rows = p | beam.Create(rows, reshuffle=False) | beam.Map(lambda row: row) | beam.WindowInto(windows)
        labelled, failed = rows | tagstream.Infer(POISON, batch_rows=batch_rows)
        good, bad = (each | f"{at}" >> beam.ParDo(Where()) for at, each in enumerate((labelled, failed)))
        assert_that(good, equal_to([place for place in places if place[0] % 2 == 0]), label="good")
        assert_that(bad, equal_to([place for place in places if place[0] % 2]), label="bad")


def test_panes_are_kept() -> None:
    """A trigger that fires early: the rows of each pane still say so."""
    stream = test_stream.TestStream()
    for n in range(3):
        stream = stream.add_elements([("key", n)])
    with beam.Pipeline("BundleBasedDirectRunner", PipelineOptions(["--streaming"])) as p:
        grouped = (
            p
            | stream.advance_watermark_to_infinity()
            | beam.WindowInto(
                GlobalWindows(), trigger=Repeatedly(AfterCount(1)), accumulation_mode=AccumulationMode.DISCARDING
            )
            | beam.GroupByKey()
            | beam.Map(lambda group: {"text": "x", "n": next(iter(group[1]))})
        )
        labelled, _ = grouped | tagstream.Infer(TAG)
        for name, each in (("before", grouped), ("after", labelled)):
            _ = each | name >> beam.ParDo(Where()) | f"keep {name}" >> beam.ParDo(Keep(name))
    assert sorted(KEPT["after"]) == sorted(KEPT["before"])
    assert sorted(pane for *_, pane in KEPT["after"]) == [0, 1, 2]


def test_two_transforms_in_one_pipeline(models: dict[str, Path]) -> None:
    """One behind the other and one beside, on the same model and on another; they need no labels of the user."""
    texts = random_texts(40, seed=8)
    with pipeline() as p:
        rows = p | beam.Create([{"text": text} for text in texts], reshuffle=False)
        once, _ = rows | tagstream.Infer([{"model": models["spam"], "as": "spam"}])
        twice, _ = once | tagstream.Infer([{"model": models["spam"], "as": "again"}])
        third, _ = twice | tagstream.Infer([{"model": models["topic"], "as": "topic"}])
        _ = third | beam.ParDo(Keep("third"))
    found = KEPT["third"]
    assert [row["text"] for row in found] == texts
    assert [row["spam"] for row in found] == [row["again"] for row in found]
    with tagstream.load(models["topic"]) as model:
        assert [row["topic"] for row in found] == model.predict(texts)["label"].to_pylist()


def test_a_bundle_that_is_tried_again() -> None:
    """Rows that a failed bundle has given to the model are not in the outputs of the next try."""
    fn = _InferRowsFn(*_parts(tagstream.Infer(POISON, batch_rows=2)))
    fn.setup()
    place = (0, "window", "pane")
    fn.start_bundle()
    for n in range(3):
        assert not list(fn.process({"text": "x", "n": n}, *place))
    with pytest.raises(SpecError, match="the rows have a field 'tag' already"):
        list(fn.process({"text": "x", "tag": 1}, *place))
    fn.start_bundle()
    values = [*fn.process({"text": "x", "n": 9}, *place), *fn.finish_bundle()]
    assert [value.value for value in values] == [{"text": "x", "n": 9, "tag": "ham"}]
    assert not list(fn.process({"text": "\ud800"}, *place))  # Beam can't carry such a text between stages
    (failed,) = fn.finish_bundle()
    assert failed.value.value.code == "bad_encoding"
    fn.teardown()
    fn.teardown()


def _parts(transform: tagstream.Infer) -> tuple[Any, ...]:
    fn = transform._fn
    return fn.context, fn.entries, fn.text, fn.batch_rows


class FailsOnce(dict):  # type: ignore[type-arg]
    tries = 0

    def __getitem__(self, name: str) -> Any:
        FailsOnce.tries += 1
        if FailsOnce.tries == 1:
            raise OSError("once")
        return super().__getitem__(name)


def test_a_runner_tries_a_bundle_again(caplog: pytest.LogCaptureFixture) -> None:
    """Each row comes out once, although some were with the model when the first try failed.

    This runner never ends the DoFn that failed: its engine ends when Python forgets it.
    """
    caplog.set_level(logging.CRITICAL, "apache_beam")  # pytest keeps what is logged, with tracebacks and so the DoFn
    rows = [FailsOnce(text="x", n=n) if n == 12 else {"text": "x", "n": n} for n in range(20)]
    with beam.Pipeline("BundleBasedDirectRunner") as p:
        labelled, failed = p | beam.Create(rows, reshuffle=False) | tagstream.Infer(POISON, batch_rows=2)
        assert_that(labelled | beam.Map(lambda row: row["n"]), equal_to(list(range(20))))
        assert_that(failed, equal_to([]), label="failed")
    assert FailsOnce.tries == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a"], "elements are dicts, Rows or record batches, not str"),
        ([{"text": "a", "tag": 1}], "the rows have a field 'tag' already: give the entry another name with 'as'"),
        ([pa.table({"text": ["a"], "tag": [1]})], "the rows have a field 'tag' already"),
        ([pa.table({"text": ["a"], "error_code": [1]})], "the rows have a column 'error_code' already"),
    ],
)
def test_elements_that_can_not_be(rows: list[Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(rows)


@pytest.mark.parametrize(
    ("infer", "settings", "message"),
    [
        ("tagstream/spam", {}, "^infer: give a list of entries"),
        ([], {}, "^Infer: infer"),
        ([{"modle": "x"}], {}, "^Infer: infer.0.modle: unknown field; did you mean 'model'"),
        ([*TAG, *TAG], {}, "^Infer: column 'tag' of infer.1.as is already taken by infer.0.as"),
        (TAG, {"text": 3}, "^Infer: text: give the name of the field"),
        (TAG, {"batch_rows": 0}, "^Infer: batch_rows: give a number from 1 on"),
    ],
)
def test_wrong_arguments(infer: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        tagstream.Infer(infer, **settings)


ROWS = [{"text": "poison" if n % 10 == 0 else f"text {n}", "n": n} for n in range(200)]


def check_numbers(p: beam.Pipeline) -> None:
    labelled, failed = p | beam.Create(ROWS) | tagstream.Infer(POISON, batch_rows=8)
    good = labelled | "good" >> beam.Map(lambda row: (row["n"], row["tag"]))
    bad = failed | "bad" >> beam.Map(lambda row: (row.row["n"], row.code))
    assert_that(good, equal_to([(n, "ham") for n in range(200) if n % 10]), label="labelled")
    assert_that(bad, equal_to([(n, "inference_failed") for n in range(0, 200, 10)]), label="failed")


@pytest.mark.parametrize("mode", ["multi_threading", "multi_processing"])
def test_several_workers(mode: str) -> None:
    """Workers of one process share the engines; workers elsewhere have their own."""
    with pipeline("--direct_num_workers=2", f"--direct_running_mode={mode}") as p:
        check_numbers(p)


@pytest.mark.xdist_group("flink")
def test_on_flink(flink: FlinkCluster) -> None:
    wait_until(lambda: flink.flink.slots()[1] == 2, 60, "slots are free")
    pool = flink.runner["environment"]["config"]
    options = [
        "--runner=PortableRunner", f"--job_endpoint={flink.runner['job_server']}", "--environment_type=EXTERNAL",
        f"--environment_config={pool}", "--parallelism=2", "--no_save_main_session",
    ]  # fmt: skip
    with beam.Pipeline(options=PipelineOptions(options)) as p:
        check_numbers(p)
