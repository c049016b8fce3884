"""The search of `tagstream optimize`: which candidates are tried, where it stops, and what it certifies."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tagstream.pipelines.cli.main import app
from tagstream.pipelines.optimize import search as optimize
from tagstream.pipelines.optimize.measure import (
    HELD_DIFFER,
    LABELS_DIFFER,
    TOO_SLOW,
    TRIAL_ROWS,
    Candidate,
    Measured,
    Sample,
    _equal,
    _timed,
    measure,
)
from tagstream.schemas.errors import ModelError, SourceError
from tagstream.schemas.spec import InferEntry, OnnxBackend, PyTorchBackend
from tagstream.transforms.inference.backends import auto
from tagstream.transforms.inference.backends.auto import certificate_folder
from tagstream.transforms.inference.backends.onnx_export import export_fp32
from tagstream.transforms.inference.backends.onnx_int8 import DYNAMIC_WAYS, STATIC_WAYS, Int8, by_sensitivity, quantise
from tagstream.transforms.inference.backends.registry import describe, load_backend
from tagstream.transforms.inference.certificate import hash_file
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.model_files import find_model
from tagstream.transforms.tasks.text_classification import LabelHead, activate
from tagstream.transforms.tokenization.padding import Padding
from tests.models import make_model, random_texts

TEXTS = pa.array([*random_texts(300, seed=1, longest=20), "", "!"], pa.large_string())
SAMPLE = Sample(TEXTS, pa.array(random_texts(300, seed=2, longest=20), pa.large_string()))
BOTH = pa.concat_arrays([SAMPLE.searched, SAMPLE.held])
FP32 = Candidate("pytorch fp32", PyTorchBackend(precision="fp32"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a cache folder of its own."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", hidden_size=64, intermediate_size=256)


def spec(model: Path, **backend) -> InferEntry:
    return InferEntry.model_validate({"model": str(model), "as": "x", "backend": backend or {"type": "pytorch"}})


def scores(entry: InferEntry, texts: pa.LargeStringArray = TEXTS) -> np.ndarray:
    engine = Engine(load_backend(entry))
    try:
        return engine.submit(texts).result(120).values
    finally:
        engine.close()


def test_a_file_of_every_way_runs_with_its_certificate(tmp_path: Path, model: Path) -> None:
    """Each file is smaller than fp32 and its scores are close. `auto` runs each, also for a single short text."""
    entry, files = spec(model), find_model(str(model))
    fp32, folder = measure(entry, FP32, SAMPLE), tmp_path / "certificate"
    export = export_fp32(files, tmp_path, describe(entry)[0])
    rows, sizes = optimize._single_rows(entry, TEXTS), {}
    ranked = by_sensitivity(export, rows[:16])
    for way in (*DYNAMIC_WAYS, *STATIC_WAYS):
        path = quantise(export, way, folder / "int8.onnx", rows, ranked)
        sizes[way] = path.stat().st_size
        found = measure(entry, Candidate(way.name, OnnxBackend(file=str(path)), path), SAMPLE, fp32)
        assert 0 < found.drift_max < 0.5, way
        certificate = optimize._certificate(entry, found, fp32, SAMPLE)
        assert certificate.file_hash == hash_file(path)
        path = path.rename(folder / certificate.file)
        certificate.write(folder)
        chosen = spec(model, type="auto", certificate=str(folder), min_agreement=found.agreement)
        assert auto.resolve(chosen)[0].backend.file == str(path)
        np.testing.assert_allclose(scores(chosen, TEXTS[-2:-1])[0], found.scores[len(TEXTS) - 2], atol=0.2)
        assert auto.resolve(chosen)[1] is None
    careful = Int8(smooth=True, keep=0.1), Int8(smooth=True, keep=0.5)
    assert sizes[Int8()] < sizes[careful[0]] < sizes[careful[1]] < export.stat().st_size


def test_reference_is_the_row_alone(tmp_path: Path) -> None:
    """A model that the check at load finds runs unbatched, so its scores are those of single rows."""
    folder = make_model(tmp_path / "model", "fnet")
    found = measure(spec(folder), FP32, SAMPLE)
    assert "run one at a time" in found.notice
    backend = load_backend(spec(folder))
    encoded = backend.encode(BOTH)
    rows = (0, 7, 400)
    alone = [activate(backend.forward([(encoded, np.array([row]))]), "softmax")[0] for row in rows]
    backend.close()
    np.testing.assert_allclose(found.scores[list(rows)], alone, atol=1e-5)


def test_wrong_micro_batches_certify_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the few texts of the check at load do not show, more rows of the sample do: no certificate is written."""
    folder = make_model(tmp_path / "model", "gpt2", pad_token_id=1)
    monkeypatch.setattr("tagstream.transforms.inference.self_check._difference", lambda *_: "")
    monkeypatch.setattr("tagstream.transforms.tokenization.tokenizer.padding_of", lambda *_: Padding(0))
    with pytest.raises(ModelError, match=r"x: nothing is certified: in fp32 the text '.*' gets other scores in a"):
        optimize.optimize_entry(spec(folder), BOTH, tmp_path / "out", 0.9, Console(file=io.StringIO()))
    assert not list((tmp_path / "out").glob("*.json"))


def test_rows_that_ranges_come_from_have_no_padding(model: Path) -> None:
    """Rows come from the whole sample, have no padding, and are no longer than `max_length`."""
    rows = optimize._single_rows(spec(model).model_copy(update={"max_length": 8}), TEXTS)
    assert len(rows) == optimize.RANGE_ROWS
    assert all(row["attention_mask"].all() and row["input_ids"].shape == row["attention_mask"].shape for row in rows)
    assert {row["input_ids"].shape[0] for row in rows} == {1}
    assert max(row["input_ids"].shape[1] for row in rows) == 8
    assert rows[-1]["input_ids"].shape[1] == 3, "the sample's last text is '!'"


def test_a_row_that_only_one_can_label_is_a_difference() -> None:
    """A row that only one backend could label counts as a difference."""
    ham, spam, failed = [0.9, 0.1], [0.2, 0.8], [np.nan, np.nan]
    reference = np.array([ham, spam, ham, ham, failed, failed])
    scores = np.array([ham, spam, spam, failed, failed])
    head = LabelHead.of(InferEntry(model="m"), ["ham", "spam"], "softmax", "m")
    assert _equal(scores, reference, head).tolist() == [True, True, False, False, True, True]
    assert not _equal(np.array([ham]), np.array([failed]), head).any()
    thresholds = InferEntry(model="m", thresholds={"spam": 0.9})  # 0.8 is no spam then, and 0.95 is
    strict = LabelHead.of(thresholds, ["ham", "spam"], "softmax", "m")
    assert _equal(np.array([spam, spam]), np.array([spam, [0.05, 0.95]]), strict).tolist() == [True, False]
    several = LabelHead.of(thresholds, ["ham", "spam"], "sigmoid", "m")
    assert _equal(np.array([spam]), np.array([[0.2, 0.95]]), several).tolist() == [False]


def test_failed_rows_have_no_scores(model: Path) -> None:
    """Failed rows have NaN scores, so that they can be counted."""
    refused = spec(model).model_copy(update={"long_text": "dead_letter"})
    engine = Engine(load_backend(refused))
    try:
        found, _ = _timed(engine, pa.array(["short", "long " * 500, "short too"], pa.large_string()))
    finally:
        engine.close()
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]


def test_a_specification_says_where_and_how_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Column, folder and agreement are the job's, unless the command line says otherwise."""
    pq.write_table(pa.table({"body": ["a", "b"]}), tmp_path / "sample.parquet")
    job = {
        "source": {"type": "parquet", "path": str(tmp_path), "text": "body"},
        "infer": [
            {
                "model": "tagstream/spam",
                "as": "x",
                "backend": {"type": "auto", "certificate": "c", "min_agreement": 0.9},
            }
        ],
        "sink": {"type": "parquet", "path": f"{tmp_path}/out"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    asked = []

    def note(entry, texts, folder, least, _, *, compiled):
        asked.append((texts.to_pylist(), str(folder or certificate_folder(entry)), least, compiled))
        raise ModelError("enough")

    monkeypatch.setattr(optimize, "optimize_entry", note)
    command = ["optimize", str(tmp_path / "job.yaml"), "--sample", str(tmp_path / "sample.parquet")]
    for more in ([], ["--out", "elsewhere", "--min-agreement", "0.99", "--compile"]):
        assert CliRunner().invoke(app, [*command, *more]).exit_code == 4
    assert asked == [(["a", "b"], "c", 0.9, False), (["a", "b"], "elsewhere", 0.99, True)]


def test_compiled_graphs_are_tried_if_asked(model: Path) -> None:
    """If a compiled candidate wins, `auto` compiles."""
    short, folder = spec(model, type="auto").model_copy(update={"max_length": 16}), model.parent
    plain, tried = (
        {name: make for ladder in optimize._ladders(short, TEXTS, folder, compiled) for name, make in ladder}
        for compiled in (False, True)
    )
    assert {*tried} - {*plain} == {"pytorch fp32 compiled", "pytorch bf16 compiled"}
    fp32 = measure(short, FP32, SAMPLE)
    found = dataclasses.replace(fp32, candidate=tried["pytorch fp32 compiled"]())
    certificate = optimize._certificate(short, found, fp32, SAMPLE)
    certificate.write(certificate_folder(short))
    assert auto.resolve(short)[0].backend == found.candidate.backend
    assert found.candidate.backend.compile


def test_a_token_budget_is_of_one_machine(model: Path) -> None:
    """On another machine the certified backend runs with its default token budget."""
    entry = spec(model, type="auto")
    fp32 = measure(entry, Candidate("small", PyTorchBackend(precision="fp32", token_budget=128)), SAMPLE)
    certificate = optimize._certificate(entry, fp32, fp32, SAMPLE)
    for machine, budget in ((certificate.machine, 128), ("Another CPU, 64 cores", None)):
        dataclasses.replace(certificate, machine=machine).write(certificate_folder(entry))
        assert auto.resolve(entry)[0].backend.token_budget == budget


def test_a_certificate_is_of_one_kind_of_device(model: Path) -> None:
    """A certificate from a GPU says nothing about a CPU's bf16. The CPU runs fp32, with a notice."""
    entry = spec(model, type="auto")
    fp32 = measure(spec(model), FP32, SAMPLE)
    found = measure(spec(model), Candidate("bf16", PyTorchBackend(precision="bf16")), SAMPLE, fp32)
    certificate = dataclasses.replace(optimize._certificate(entry, found, fp32, SAMPLE), agreement=1.0)
    certificate.write(certificate_folder(entry))
    assert auto.resolve(entry)[0].backend.precision == "bf16"
    other = "cuda" if certificate.device == "cpu" else "cpu"
    dataclasses.replace(certificate, device=other).write(certificate_folder(entry))
    resolved, notice = auto.resolve(entry)
    assert resolved.backend.precision == "fp32"
    assert f"measured on {other}" in notice
    assert "optimize" in notice


def test_a_certificate_is_of_the_thresholds(tmp_path: Path, model: Path) -> None:
    """A certificate holds only for its thresholds, because they decide which labels change."""
    plain = spec(model, type="auto", certificate=str(tmp_path / "c"))
    strict = plain.model_copy(update={"thresholds": {"spam": 0.9}})
    fp32 = measure(spec(model), FP32, SAMPLE)
    optimize._certificate(plain, fp32, fp32, SAMPLE).write(tmp_path / "c")
    assert auto.resolve(plain)[0].backend.precision == "fp32"
    with pytest.raises(ModelError, match=r"measured with thresholds \{\}, the SPEC has \{'spam': 0.9\}"):
        auto.resolve(strict)
    assert certificate_folder(spec(model, type="auto")) != certificate_folder(
        spec(model, type="auto").model_copy(update={"thresholds": {"spam": 0.9}})
    )


def test_a_sample_that_says_too_little(model: Path) -> None:
    with pytest.raises(SourceError, match=r"1\d\d texts to certify with \(half of 398, .*At least 200"):
        optimize.optimize_entry(spec(model), BOTH[:398], None, 0.99, Console(quiet=True))
    assert not certificate_folder(spec(model)).exists()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, model: Path) -> None:
    """Said before anything is measured."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"file/certificates: the certificate can't be written there"):
        optimize.optimize_entry(spec(model), BOTH, tmp_path / "file/certificates", 0.99, Console(quiet=True))


def test_copies_of_a_text_are_in_one_half() -> None:
    """All copies of a text are in the same half, so that held-out texts are really new."""
    halves = Sample.halves(pa.array(["a", "b", "a", "c", "b", "d", "b"], pa.large_string()))
    assert halves.searched.to_pylist() == ["a", "a", "c"]
    assert halves.held.to_pylist() == ["b", "b", "d", "b"]


def test_a_hopeless_candidate_is_stopped_after_the_trial(model: Path) -> None:
    """A candidate is stopped if it is much slower than the best, or if too many labels differ already."""
    fp32 = measure(spec(model), FP32, SAMPLE)
    assert (fp32.rows, fp32.stopped, fp32.agreement) == (len(BOTH), "", 1.0)
    assert measure(spec(model), FP32, SAMPLE, fp32, 0.995, fp32).agreement == 1.0
    best = dataclasses.replace(fp32, trial_rows_per_s=1e9)
    slow = measure(spec(model), FP32, SAMPLE, fp32, 0.995, best)
    assert (slow.rows, slow.stopped, slow.agreement) == (TRIAL_ROWS, TOO_SLOW, 1.0)


@pytest.mark.parametrize(
    ("searched", "held", "stopped", "rows", "agreement"),
    [
        ((0, 3), 3, "", len(BOTH), 1 - 3 / 300),
        ((0, 3), 0, "", len(BOTH), 1.0),
        ((0, 4), 0, LABELS_DIFFER, TRIAL_ROWS, 1 - 4 / TRIAL_ROWS),
        ((298, 302), 0, LABELS_DIFFER, len(TEXTS), 1 - 4 / 302),
        ((0, 0), 4, HELD_DIFFER, len(BOTH), 1 - 4 / 300),
    ],
)
def test_rows_held_out_certify(
    model: Path, searched: tuple[int, int], held: int, stopped: str, rows: int, agreement: float
) -> None:
    """3 of 302 searched rows may differ, and 3 of 300 held-out rows. Only held-out rows count for the certificate."""
    fp32 = measure(spec(model), FP32, SAMPLE)
    other = fp32.scores.copy()
    for flipped in (slice(*searched), slice(len(TEXTS), len(TEXTS) + held)):
        other[flipped] = other[flipped, ::-1]
    found = measure(spec(model), FP32, SAMPLE, dataclasses.replace(fp32, scores=other), 0.99)
    assert (found.stopped, found.rows) == (stopped, rows)
    assert found.agreement == pytest.approx(agreement)
    assert (found.drift_max > 0.01) == (agreement < 1)


def test_a_ladder_is_climbed_until_the_labels_agree(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search leaves a ladder early if a candidate is much slower than the best. The fastest valid one wins."""
    results = {
        "pytorch fp32": (100, 1.0, ""),
        "a1": (900, 0.9, LABELS_DIFFER),
        "a2": (800, 0.97, HELD_DIFFER),
        "a3": (500, 0.999, ""),
        "a4": (400, 1.0, ""),
        "b1": (950, 1.0, TOO_SLOW),
        "b2": (700, 1.0, ""),
        "c1": (300, 0.5, LABELS_DIFFER),
    }

    def fake(entry, candidate, sample, fp32=None, least_agreement=0.0, best=None) -> Measured:
        rate, agreement, stopped = results[candidate.name.split(",")[0]]
        asked.append((candidate.name, best and best.candidate.name))
        assert (folder / "before.onnx").exists(), "jobs use it meanwhile"
        return Measured(candidate, np.zeros((3, 2)), rate, rate, 1024, "cpu", agreement, stopped=stopped)

    def ready(name: str) -> Candidate:
        path = tmp_path / f"{name}.onnx"
        path.write_text(name)
        return Candidate(name, OnnxBackend(file=str(path)), path)

    fp32 = measure(spec(model), FP32, SAMPLE)
    before = dataclasses.replace(optimize._certificate(spec(model), fp32, fp32, SAMPLE), file="before.onnx")
    folder = certificate_folder(spec(model))
    before.write(folder)
    (folder / "before.onnx").write_text("before")
    killed = folder / ".candidates-of-yesterday"
    killed.mkdir()
    os.utime(killed, (0, 0))
    asked: list[tuple[str, str | None]] = []
    ladders = [[(name, lambda name=name: ready(name)) for name in results if name[0] == kind] for kind in "abc"]
    monkeypatch.setattr(optimize, "measure", fake)

    def ladders_of(_, texts, *__) -> list:
        assert texts == Sample.halves(BOTH).searched, "ranges come from what is not held out"
        return ladders

    monkeypatch.setattr(optimize, "_ladders", ladders_of)
    certificate, measured, failed = optimize.optimize_entry(spec(model), BOTH, None, 0.99, Console(quiet=True))
    assert not failed
    assert asked[:6] == [
        ("pytorch fp32", None),
        ("a1", "pytorch fp32"),
        ("a2", "pytorch fp32"),
        ("a3", "pytorch fp32"),
        ("b1", "a3"),
        ("c1", "a3"),
    ]
    assert certificate.file == f"a3-{hashlib.sha256(b'a3').hexdigest()[:8]}.onnx"
    assert [m.candidate.name for m in measured][:6] == [name for name, _ in asked[:6]]
    assert sorted(path.name for path in folder.iterdir()) == [certificate.file, "certificate.json"]
    console = Console(record=True, width=140, file=io.StringIO())
    optimize.print_measured(console, certificate, measured, failed)
    printed = console.export_text()
    assert all(f"3: {why}" in printed for why in (TOO_SLOW, LABELS_DIFFER, HELD_DIFFER))
    assert all(name in printed for name, _ in asked)
