"""ONNX exports agree with PyTorch. Low precision runs only with a valid certificate."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tagstream.pipelines.cli.main import app
from tagstream.pipelines.optimize.measure import Sample
from tagstream.pipelines.optimize.search import optimize_entry
from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends import auto, onnx
from tagstream.transforms.inference.backends.registry import identify, load_backend, resolve
from tagstream.transforms.inference.certificate import Certificate
from tagstream.transforms.inference.engine import Engine
from tests.certified import certified
from tests.models import make_model, random_texts

TEXTS = [*random_texts(80, seed=1, longest=30), "", "!", "free " * 200]
SAMPLE = [*TEXTS, *random_texts(400, seed=2, longest=30)]
"""As many as `optimize` wants."""
HELD = Sample.halves(pa.array(SAMPLE, pa.large_string())).held.to_pylist()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a cache folder of its own."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def scores(entry: InferEntry, texts: Sequence[str] = TEXTS) -> np.ndarray:
    engine = Engine(load_backend(entry))
    try:
        return engine.submit(pa.array(texts, pa.large_string())).result(120).values
    finally:
        engine.close()


def spec(model: Path, **backend) -> InferEntry:
    return InferEntry.model_validate({"model": str(model), "as": "x", "backend": backend or {"type": "pytorch"}})


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_export_equals_pytorch(tmp_path: Path, architecture: str) -> None:
    """fp32 ONNX scores are those of PyTorch within 1e-4, whatever the padding."""
    model = make_model(tmp_path / "model", architecture, labels=("a", "b", "c"))
    expected = scores(spec(model))
    assert np.ptp(expected) > 0.2, "a model whose scores are all alike would show nothing"
    np.testing.assert_allclose(scores(spec(model, type="onnx")), expected, atol=1e-4)
    np.testing.assert_allclose(scores(spec(model, type="onnx", token_budget=64)), expected, atol=1e-4)


def test_a_run_of_an_exported_file_loads_no_pytorch(tmp_path: Path) -> None:
    """PyTorch takes seconds and 500 MB to import, and ONNX Runtime needs none of it."""
    spec = InferEntry.model_validate({"as": "x", "model": str(make_model(tmp_path / "m")), "backend": {"type": "onnx"}})
    file = onnx.model_file(spec)
    entry = spec.model_copy(update={"backend": spec.backend.model_copy(update={"file": str(file)})})
    code = (
        "import sys\n"
        "import pyarrow as pa\n"
        "from tagstream.schemas.spec import InferEntry\n"
        "from tagstream.transforms.inference.backends.registry import device_kind, identify, load_backend\n"
        "from tagstream.transforms.inference.engine import Engine\n"
        f"entry = InferEntry.model_validate_json({entry.model_dump_json(by_alias=True)!r})\n"
        "engine = Engine(load_backend(entry))\n"
        "print(engine.submit(pa.array(['free prize'], pa.large_string())).result(60).values.tolist())\n"
        "engine.close()\n"
        "identify(entry), device_kind(entry)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), scores(entry, ["free prize"]), atol=1e-6)


def test_optimize_writes_a_certificate_that_auto_uses(tmp_path: Path, cache: Path) -> None:
    """The certificate names weights, sample, agreement; auto then runs exactly that backend, without a notice."""
    model = make_model(tmp_path / "model")
    sample = pa.array(SAMPLE, pa.large_string())
    certificate, measured, failed = optimize_entry(spec(model), sample, None, 0.9, Console(quiet=True))
    assert not failed
    assert {"pytorch fp32", "pytorch bf16", "onnx fp32", "onnx int8"} <= {m.candidate.name for m in measured}
    winner = max((m for m in measured if not m.stopped), key=lambda m: m.rows_per_s)
    assert certificate.agreement == winner.agreement >= 0.9
    assert certificate.backend == winner.candidate.backend.model_dump(mode="json", exclude={"file"})
    tuned = [m for m in measured if "tokens" in m.candidate.name]
    assert tuned
    assert all(m.candidate.name.endswith(f", {m.token_budget:,} tokens") for m in tuned)
    assert certificate.sample_rows == len(HELD)
    folder = auto.certificate_folder(spec(model))
    assert Certificate.read(folder) == certificate
    chosen = spec(model, type="auto", min_agreement=0.9)
    np.testing.assert_allclose(scores(chosen, HELD), winner.scores[-len(HELD) :], atol=1e-3)
    assert resolve(chosen)[1] is None
    assert identify(chosen)["backend"] == certificate.backend["type"]


def test_auto_without_certificate_is_fp32_with_a_notice(tmp_path: Path) -> None:
    """Without a certificate, `auto` runs fp32 and adds a notice."""
    model = make_model(tmp_path / "model")
    np.testing.assert_array_equal(scores(spec(model, type="auto")), scores(spec(model)))
    assert "without a certificate" in resolve(spec(model, type="auto"))[1]
    assert identify(spec(model, type="auto")) == identify(spec(model, type="pytorch", precision="fp32"))


def test_valid_certificate_is_used(tmp_path: Path) -> None:
    """The int8 file beside it runs."""
    model, folder = certified(tmp_path, real=True)
    entry = spec(model, type="auto", certificate=str(folder))
    assert auto.resolve(entry)[0].backend.file == str(folder / "int8-0.onnx")
    assert len(scores(entry)) == len(TEXTS)


@pytest.mark.parametrize(
    ("changes", "backend", "message"),
    [
        ({"weights": "f" * 16}, {}, "is for weights ffffffffffffffff"),
        ({"tokenizer": "f" * 16}, {}, "is for tokenizer ffffffffffffffff"),
        ({"max_length": 64}, {}, "was measured with max_length 64, the SPEC has None"),
        ({"long_text": "window"}, {}, "was measured with long_text window, the SPEC has truncate"),
        ({"agreement": 0.99}, {}, r"99\.00% of the sample, but min_agreement is 99\.50%"),
        ({}, {"min_agreement": 0.999}, r"min_agreement is 99\.90%"),
        ({"file_hash": "0" * 64}, {}, "not the file that the certificate was made for"),
        ({"file": "gone.onnx"}, {}, "not the file that the certificate was made for"),
    ],
)
def test_certificate_that_does_not_hold_is_refused(tmp_path: Path, changes, backend, message: str) -> None:
    """Other weights, another tokenizer, too little agreement, another file: an error that says what to do."""
    model, folder = certified(tmp_path, **changes)
    with pytest.raises(ModelError, match=message) as raised:
        load_backend(spec(model, type="auto", certificate=str(folder), **backend))
    assert "tagstream optimize" in str(raised.value)


def test_classifiers_of_one_model_have_a_certificate_each(tmp_path: Path) -> None:
    """Each max_length and each long_text has a certificate of its own."""
    model = make_model(tmp_path / "model")
    first = spec(model, type="auto")
    others = [first.model_copy(update=update) for update in ({"max_length": 64}, {"long_text": "window"})]
    assert len({auto.certificate_folder(one) for one in (first, *others)}) == 3


def test_damaged_certificate_is_refused(tmp_path: Path) -> None:
    """Not JSON, or not all fields."""
    model, folder = certified(tmp_path)
    (folder / "certificate.json").write_text(json.dumps({"weights": "x"}))
    with pytest.raises(ModelError, match="damaged certificate"):
        load_backend(spec(model, type="auto", certificate=str(folder)))


def test_missing_file_and_device_are_clear(tmp_path: Path) -> None:
    """Named in the message."""
    model = make_model(tmp_path / "model")
    with pytest.raises(ModelError, match=r"nothere\.onnx: no such file"):
        load_backend(spec(model, type="onnx", file="nothere.onnx"))
    with pytest.raises(ModelError, match="no CUDA"):
        load_backend(spec(model, type="onnx", device="cuda:0"))
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="can't load it"):
        load_backend(spec(model, type="onnx", file=str(tmp_path / "bad.onnx")))


def test_command(tmp_path: Path, cache: Path) -> None:
    """`tagstream optimize MODEL --sample FILE` prints the certified backend, and writes report and certificate."""
    model = make_model(tmp_path / "model")
    pq.write_table(pa.table({"body": [*SAMPLE, None]}), tmp_path / "sample.parquet")
    result = CliRunner().invoke(
        app,
        ["optimize", str(model), "--sample", str(tmp_path / "sample.parquet"), "--text", "body", "--report",
         str(tmp_path / "report.json"), "--min-agreement", "0.9"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "certified:" in result.output
    assert json.loads((tmp_path / "report.json").read_text())["model"]["sample_rows"] == len(HELD)
    assert list(cache.glob("*/*/certificate.json"))
    wrong = CliRunner().invoke(app, ["optimize", str(model), "--sample", str(tmp_path / "sample.parquet")])
    assert wrong.exit_code == 3
