"""Runs child processes and measures each as a whole: seconds and peak memory, as the operating system reports them.

On Linux a child starts with its parent's peak memory, so the measuring process must stay small. The benchmarks import
neither pyarrow nor torch; everything that needs them runs in a child.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
PYTHON = sys.executable
SAMPLE = ROOT / "examples" / "sms.parquet"
FP32 = {"type": "pytorch", "device": "cpu", "precision": "fp32"}


@dataclass(frozen=True)
class Child:
    """wall: seconds from start to exit; peak_mb: largest resident set, in MiB; output: what it printed."""

    wall: float
    peak_mb: float
    output: str

    @property
    def said(self) -> dict[str, Any]:
        """The last line of the output, which is JSON."""
        return json.loads(self.output.strip().splitlines()[-1])


def run(command: list[str]) -> Child:
    """Run a command to its end. If it fails, raises SystemExit with its stderr."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, cwd=ROOT)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{output}{errors.read()[-4000:]}\nended with {process.returncode}")
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10  # ru_maxrss: bytes there, KiB here
    return Child(wall, usage.ru_maxrss / scale, output)


def tagstream(spec: Path, report: Path) -> tuple[Child, dict[str, Any]]:
    """Run `tagstream run SPEC --report`. Returns the process and the report."""
    child = run([PYTHON, "-m", "tagstream", "run", str(spec), "--overwrite", "--report", str(report)])
    return child, json.loads(report.read_text())


def parquet_job(
    folder: Path, name: str, model: str, source: str, backend: dict[str, Any], **more: Any
) -> tuple[Child, dict[str, Any]]:
    """Like `tagstream`, for a job from a Parquet file to `out-<name>` in the folder. `more`: added to its SPEC."""
    job = {
        "name": name,
        "source": {"type": "parquet", "path": source, "text": "text", "id": "id"},
        "infer": [{"model": model, "as": "label", "backend": backend}],
        "sink": {"type": "parquet", "path": str(folder / f"out-{name}")},
        **more,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(job))  # JSON is YAML
    return tagstream(path, folder / "report.json")


def certify(model: str, sample: str | Path, folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Run `tagstream optimize`. Returns the `backend:` that uses the certificate, and a description of its winner."""
    out, report = folder / "certified", folder / "certificate.json"
    print("tagstream optimize …", flush=True)
    command = [PYTHON, "-m", "tagstream", "optimize", model, "--sample", str(sample), *options]
    run([*command, "--out", str(out), "--report", str(report)])
    (found,) = json.loads(report.read_text()).values()
    words = filter(None, (*map(found["backend"].get, ("type", "precision")), found["file"]))
    return {"type": "auto", "certificate": str(out)}, " ".join(words)
