"""The GPU benchmark runs its whole path on a CPU, and its figures fit together."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import flops, peak_tflops

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_by_name(name: str, peak: float | None) -> None:
    """Whole words count: an L40S is no L4."""
    assert peak_tflops(name) == peak


def test_flops_of_bert_base() -> None:
    """A text of 128 tokens: 85.6 million parameters twice a token, and the attention's products, under 3 % of that."""
    dense, whole = 2 * 85_600_000 * 128, flops(85_600_000, 12, 768, 128, 128**2)
    assert 1.02 < whole / dense < 1.03


@pytest.mark.crash
@pytest.mark.timeout(900)  # six processes, each of which loads PyTorch
def test_runs_small_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, long: bool
) -> None:
    """Two layers, 64 rows of one length: every figure is there, and follows from the others."""
    if not long:
        pytest.skip("only with --crash-long, because it takes a minute")
    report = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "CACHE", tmp_path)
    arguments = ["--device", "cpu", "--layers", "2", "--width", "48", "--rows", "64", "--peak-tflops", "0.5"]
    arguments += ["--inputs", "fixed"]
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments, "--json", str(report)])
    gpu.main()
    figures = json.loads(report.read_text())
    assert (figures["device"], figures["rows"], figures["peak_tflops"]) == ("CPU", 64, 0.5)
    assert "lognormal" not in figures
    found = figures["fixed"]
    assert found.keys() == {"tagstream", "end_to_end", "transformers", "tokeniser"}
    mean = found["tokeniser"]["mean_tokens"]
    assert 128 <= mean < 130
    for name in ("tagstream", "end_to_end", "transformers"):
        one = found[name]
        assert one["tokens_per_s"] == pytest.approx(one["rows_per_s"] * mean, rel=0.02)
        assert one["mfu"] == pytest.approx(one["tflops"] / 0.5)
    # two layers of width 48: 4 * 48² + 8 * 48² + biases and norms; pooler and head besides
    parameters = 2 * (12 * 48**2 + 13 * 48) + 48**2 + 48 + 3 * 48 + 3
    a_row = flops(parameters, 2, 48, mean, mean**2)
    assert found["tagstream"]["tflops"] * 1e12 == pytest.approx(found["tagstream"]["rows_per_s"] * a_row, rel=0.02)
    assert found["tagstream"]["label_agreement"] > 0.8, "both compute the same, but for the rounding of bf16"
    assert 0 <= found["tagstream"]["padding"] < 0.2
    share = found["end_to_end"]["rows_per_s"] / found["tagstream"]["rows_per_s"]
    assert found["end_to_end"]["share"] == pytest.approx(share, rel=0.02)
    assert found["tagstream"]["speedup"] == pytest.approx(
        found["tagstream"]["rows_per_s"] / found["transformers"]["rows_per_s"], rel=0.02
    )
    printed = capsys.readouterr().out
    assert "| tagstream; 128 tokens each |" in printed
    assert "times the engine's" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_says_that_there_is_no_gpu() -> None:
    """One line, exit code 2."""
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "--device cpu" in done.stderr
