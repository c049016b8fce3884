"""Compares two outputs: matches rows by id, and compares labels and scores.

python -m benchmarks.agreement FILE… [-- FILE…]
"""

from __future__ import annotations

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def _read(paths: list[str]) -> pa.Table:
    tables = [pq.read_table(path) for path in paths]
    return pa.concat_tables(tables).sort_by("id")


def _scores(table: pa.Table) -> np.ndarray:
    return table["label_score" if "label_score" in table.column_names else "score"].to_numpy().astype(np.float64)


def main(arguments: list[str]) -> None:
    if "--" not in arguments:
        print(json.dumps({"rows": _read(arguments).num_rows}))
        return
    at = arguments.index("--")
    ours, theirs = _read(arguments[:at]), _read(arguments[at + 1 :])
    if not ours["id"].equals(theirs["id"]):
        raise SystemExit(f"other rows: {ours.num_rows} and {theirs.num_rows}")
    same = np.array(ours["label"].to_pylist()) == np.array(theirs["label"].to_pylist())
    difference = np.abs(_scores(ours) - _scores(theirs)).max()
    print(json.dumps({"agreement": float(same.mean()), "difference": float(difference)}))


if __name__ == "__main__":
    main(sys.argv[1:])
