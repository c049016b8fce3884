"""Measures how rows/s depend on cores, text length, model size, blocks in flight and block size, in fp32 on the CPU.

Cores, text length and model size are measured with the engine alone, so that nothing else limits it. Blocks in flight
and block size are measured with `tagstream run` from Parquet to Parquet. All other settings are defaults. Needs Linux,
for `taskset`.

    python -m benchmarks.shapes [--json FILE] [--rows N] [--record]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.children import CACHE, FP32, PYTHON, parquet_job, run
from benchmarks.plot import draw
from benchmarks.results import save, versions
from tagstream.transforms.runtime.machine import usable_cores

CORES = (1, 2, 4, 8)
TOKENS = (16, 32, 64, 128, 256, 512)
LAYERS = (3, 6, 12)
IN_FLIGHT = (1, 2, 4, 8)
BLOCK_ROWS = (64, 256, 1024, 4096)
TITLES = {
    "cores": "cores",
    "tokens": "tokens a text",
    "layers": "layers",
    "in_flight": "blocks in flight (of 256 rows)",
    "block_rows": "rows a block",
}
ENGINE = [PYTHON, "-m", "benchmarks.peers.engine_alone"]


def model_of(layers: int) -> str:
    folder = CACHE / f"model-{layers}"
    if not (folder / "model.safetensors").is_file():
        run([PYTHON, "-m", "benchmarks.generated", "model", str(folder), str(layers)])
    return str(folder)


def made(folder: Path, what: str, rows: int, *more: str) -> str:
    path = folder / f"{'-'.join([what, str(rows), *more])}.parquet"
    if not path.exists():
        run([PYTHON, "-m", "benchmarks.generated", what, str(path), str(rows), *more])
    return str(path)


def alone(model: str, source: str, rows: int, prefix: tuple[str, ...] = ()) -> float:
    """Rows/s of the engine."""
    return rows / run([*prefix, *ENGINE, model, source, json.dumps(FP32)]).said["seconds"]


def whole(folder: Path, model: str, source: str, blocks: dict[str, int]) -> float:
    """Rows/s of a job."""
    return parquet_job(folder, "shapes", model, source, FP32, blocks=blocks)[1]["rows_per_s"]


def measure(folder: Path, rows: int) -> dict[str, dict[int, float]]:
    six = model_of(6)
    texts = made(folder, "texts", rows)
    there = usable_cores()
    found: dict[str, dict[int, float]] = {name: {} for name in TITLES}

    def note(name: str, at: int, rate: float) -> None:
        found[name][at] = round(rate, 1)
        print(f"{TITLES[name]} {at}: {rate:,.1f} rows/s", flush=True)

    for cores in (n for n in CORES if n <= there):
        some = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
        note("cores", cores, alone(six, texts, rows, ("taskset", "-c", some)))
    for tokens in TOKENS:
        count = max(32, rows * 46 // tokens)  # as many tokens in all
        note("tokens", tokens, alone(six, made(folder, "fixed", count, str(tokens)), count))
    for layers in LAYERS:
        note("layers", layers, alone(model_of(layers), texts, rows))
    many = made(folder, "texts", 8 * rows)  # two of the largest blocks
    for in_flight in IN_FLIGHT:
        note("in_flight", in_flight, whole(folder, six, many, {"rows": 256, "in_flight": in_flight}))
    for block_rows in BLOCK_ROWS:
        note("block_rows", block_rows, whole(folder, six, many, {"rows": block_rows}))
    return found


def lines(found: dict[str, dict[int, float]]) -> list[str]:
    """Markdown: a sentence a study, then the figures."""
    text = ["![rows a second](shapes.svg)", ""]
    for name, rates in found.items():
        (first, low), (last, high) = min(rates.items()), max(rates.items())
        text.append(
            f"- {TITLES[name]}, {first} to {last}: {low:,.0f} to {high:,.0f} rows/s, {high / low:.2f} times as many"
        )
    text += ["", "| | | rows/s |", "|---|---|---|"]
    text += [f"| {TITLES[name]} | {at} | {rate:,} |" for name, rates in found.items() for at, rate in rates.items()]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md and shapes.svg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tagstream-") as folder:
        found = measure(Path(folder), options.rows)
    figures: dict[str, Any] = {"rows": options.rows, **found}
    save("shapes", figures, lines(found), versions("torch", "pyarrow"), options.json, record=options.record)
    if options.record:
        panels = [{"title": TITLES[name], "points": sorted(rates.items())} for name, rates in found.items()]
        draw("shapes", {"panels": panels})


if __name__ == "__main__":
    main()
