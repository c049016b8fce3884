"""Measures the cost of the pipeline itself: rows/s and peak memory without a tokenizer, with an instant backend.

Runs `tagstream run` as a child process, from Parquet to Parquet, on generated rows of about 100 characters with an id.
rows_per_s: for the larger input, from reading the first block to the last commit. The start of the process is not
counted; it is printed too. peak_mb_300k and peak_mb_3m: the largest resident set of a run over a tenth of the rows and
over all of them. If the two are alike, memory is bounded. Small and large runs alternate; the figures are medians.

    python -m benchmarks.overhead [--json FILE] [--rows N] [--rounds N] [--record]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.children import PYTHON, run, tagstream
from benchmarks.results import save, versions

ROWS = 3_000_000


def _spec(folder: Path, name: str) -> Path:
    spec = {
        "name": "overhead",
        "source": {"type": "parquet", "path": str(folder / f"{name}.parquet"), "text": "text", "id": "id"},
        "infer": [{"as": "label", "backend": {"type": "constant"}}],
        "sink": {"type": "parquet", "path": str(folder / f"out-{name}")},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(spec))  # JSON is YAML
    return path


def measure(folder: Path, rows: int, rounds: int) -> dict[str, float]:
    sizes = {"small": max(1, rows // 10), "large": rows}
    for name, count in sizes.items():
        run([PYTHON, "-m", "benchmarks.generated", "rows", str(folder / f"{name}.parquet"), str(count)])
    peaks: dict[str, list[float]] = {"small": [], "large": []}
    rates, process_rates = [], []
    for _ in range(rounds):
        for name, count in sizes.items():
            child, report = tagstream(_spec(folder, name), folder / "report.json")
            if report["rows_out"] != count:
                raise SystemExit(f"{report['rows_out']} rows out of {count}")
            peaks[name].append(child.peak_mb)
        rates.append(report["rows_per_s"])
        process_rates.append(rows / child.wall)
    return {
        "rows": rows,
        "rounds": rounds,
        "rows_per_s": round(median(rates)),
        "rows_per_s_whole_process": round(median(process_rates)),
        "peak_mb_300k": round(median(peaks["small"]), 1),
        "peak_mb_3m": round(median(peaks["large"]), 1),
        "peak_growth": round(median(peaks["large"]) / median(peaks["small"]) - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=ROWS, help="of the larger run; the smaller one has a tenth")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tagstream-") as folder:
        found = measure(Path(folder), options.rows, options.rounds)
    lines = [
        "| | |",
        "|---|---|",
        f"| rows/s end to end, {found['rows']:,} rows | {found['rows_per_s']:,} |",
        f"| rows/s, start of the process included | {found['rows_per_s_whole_process']:,} |",
        f"| peak memory, {found['rows'] // 10:,} rows | {found['peak_mb_300k']:.0f} MiB |",
        f"| peak memory, {found['rows']:,} rows | {found['peak_mb_3m']:.0f} MiB ({found['peak_growth']:+.1%}) |",
    ]
    save("overhead", found, lines, versions("apache-beam", "pyarrow"), options.json, record=options.record)


if __name__ == "__main__":
    main()
