"""The demo's input: held-out rows of the SMS Spam Collection, which is free to share with its citation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from models.train.data import HELD, rows

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 1000


def write(data: Path, out: Path) -> None:
    chosen = rows(data, "sms", HELD)[:ROWS]
    columns = {name: [getattr(row, name) for row in chosen] for name in ("id", "text", "label")}
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out, compression="zstd")
