"""Measures how long a row waits in the engine, beyond its forward pass: in an idle engine and beside a bulk job.

- idle: rows are submitted one by one, each when the row before has its label. added: the time from `submit` to the
  result, minus the time of the forward pass that computed it.
- mixed: one submitter keeps some blocks pending, as a bulk job does, while another submits single rows at times. The
  times of these single rows are given in milliseconds, and in micro-batches: divided by the median time of a forward
  pass.

The texts are those of examples/sms.parquet, with a number added, so that no row can be answered from memory. The engine
is set up as in a job. With `--backend auto` it uses the backend that `tagstream optimize` certifies for this machine.

    python -m benchmarks.engine [--json FILE] [--model MODEL] [--backend pytorch|onnx|auto] [--rows N] [--record]
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.children import SAMPLE, certify
from benchmarks.results import save, versions
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.engine import Engine
from tagstream.transforms.inference.engines import Engines
from tagstream.transforms.runtime.job_context import JobContext

BLOCK_ROWS, BLOCKS = 512, 4
TRICKLE_SECONDS = 0.02
WARM_UP = 20


class Passes:
    """Notes begin and end, in seconds, of each of an engine's forward passes."""

    def __init__(self, engine: Engine) -> None:
        self.spans: list[tuple[float, float]] = []
        self._forward = engine.backend.forward
        engine.backend.forward = self.forward  # type: ignore[method-assign]

    def forward(self, parts: list[Any]) -> np.ndarray:
        began = time.perf_counter()
        logits = self._forward(parts)
        self.spans.append((began, time.perf_counter()))
        return logits


@functools.cache
def _messages() -> list[str]:
    found: list[str] = pq.read_table(SAMPLE).column("text").to_pylist()
    return found


def texts(first: int, count: int) -> pa.LargeStringArray:
    """Texts number `first` to `first + count`. No two numbers have the same text."""
    messages = _messages()
    return pa.array([f"{messages[i % len(messages)]} {i}" for i in range(first, first + count)], pa.large_string())


def idle(engine: Engine, passes: Passes, rows: int) -> np.ndarray:
    """Milliseconds added to each row, float64 [rows]."""
    added = []
    for text in [texts(i, 1) for i in range(rows + WARM_UP)]:
        passes.spans.clear()
        began = time.perf_counter()
        engine.submit(text).result()
        total = time.perf_counter() - began
        added.append(total - sum(end - start for start, end in passes.spans))
    return np.array(added[WARM_UP:]) * 1000


def mixed(engine: Engine, passes: Passes, rows: int) -> tuple[np.ndarray, float, float]:
    """Returns milliseconds from `submit` to result of each single row, those of a forward pass, and the bulk rows/s."""
    over, done = threading.Event(), 0

    def bulk() -> None:
        nonlocal done
        pending: deque[Any] = deque()
        first = 1_000_000
        while not over.is_set():
            while len(pending) < BLOCKS:
                pending.append(engine.submit(texts(first, BLOCK_ROWS)))
                first += BLOCK_ROWS
            pending.popleft().result()
            done += BLOCK_ROWS
        for future in pending:
            future.result()

    trickling = [texts(500_000 + i, 1) for i in range(rows)]
    thread = threading.Thread(target=bulk)
    thread.start()
    time.sleep(2.0)
    passes.spans.clear()
    began, before, waited = time.perf_counter(), done, []
    for text in trickling:
        start = time.perf_counter()
        engine.submit(text).result()
        waited.append(time.perf_counter() - start)
        time.sleep(TRICKLE_SECONDS)
    rate = (done - before) / (time.perf_counter() - began)
    spans = list(passes.spans)
    over.set()
    thread.join()
    return np.array(waited) * 1000, float(np.median([end - start for start, end in spans])) * 1000, rate


def measure(model: str, kind: str, rows: int) -> dict[str, Any]:
    backend, what = {"type": kind}, kind
    with tempfile.TemporaryDirectory(prefix="tagstream-") as folder:
        if kind == "auto":
            backend, what = certify(model, SAMPLE, Path(folder))
        context = JobContext()
        entry = InferEntry.model_validate({"model": model, "as": "label", "backend": backend})
        engine = context.resource(Engines).of(entry)
        try:
            passes = Passes(engine)
            added = idle(engine, passes, rows)
            waited, micro_batch, rate = mixed(engine, passes, rows)
        finally:
            context.close()
    return {
        "model": model,
        "backend": what,
        "rows": rows,
        "added_p50_ms": round(float(np.percentile(added, 50)), 2),
        "added_p99_ms": round(float(np.percentile(added, 99)), 2),
        "trickle_p50_ms": round(float(np.percentile(waited, 50)), 1),
        "trickle_p99_ms": round(float(np.percentile(waited, 99)), 1),
        "micro_batch_ms": round(micro_batch, 1),
        "trickle_p99_micro_batches": round(float(np.percentile(waited, 99)) / micro_batch, 2),
        "bulk_rows_per_s": round(rate),
    }


def table(found: dict[str, Any]) -> list[str]:
    """Markdown."""
    beside = f"the trickle's p99 is {found['trickle_p99_micro_batches']} of them"
    return [
        f"{found['model']}, backend {found['backend']}, {found['rows']:,} rows each",
        "",
        "| | p50 | p99 |",
        "|---|---|---|",
        f"| added to a single row in an idle engine | {found['added_p50_ms']} ms | {found['added_p99_ms']} ms |",
        f"| a single row beside a bulk submitter | {found['trickle_p50_ms']} ms | {found['trickle_p99_ms']} ms |",
        "",
        f"- a micro-batch takes {found['micro_batch_ms']} ms, {beside}; bulk: {found['bulk_rows_per_s']:,} rows/s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model", default="tagstream/spam")
    parser.add_argument("--backend", default="pytorch", choices=("pytorch", "onnx", "auto"))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    found = measure(options.model, options.backend, options.rows)
    packages = versions("torch", "transformers", "pyarrow")
    save("engine", found, table(found), packages, options.json, record=options.record)
    print(json.dumps({k: found[k] for k in ("added_p50_ms", "trickle_p99_micro_batches")}))


if __name__ == "__main__":
    main()
