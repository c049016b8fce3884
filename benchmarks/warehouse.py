"""Measures the cost of a PostgreSQL table as source and sink, beside the cost of the model.

Starts a real server. The texts are those of examples/sms.parquet, repeated, each with a number added.
outside_model_share: a table is enriched in place by the bundled spam model, and the same rows go through the same model
from memory to memory. The figure is the difference of the two times as a share of the table's time. The two runs
alternate, and their times are summed. source_and_sink_share: the time of source and sink alone, divided by that of the
model.
source_rows_per_s and sink_rows_per_s: the table read as blocks, and labels committed, without Beam and model; beside
them the same columns by one statement of the plain ADBC driver, and by psycopg's binary COPY of rows. duckdb_…: this
for a DuckDB file, beside DuckDB's own export to Arrow and import from it.

    python -m benchmarks.warehouse [--json FILE] [--rows N] [--model-rows N] [--rounds N] [--record]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.children import SAMPLE, run
from benchmarks.environments import environment
from benchmarks.results import save, versions
from tagstream.pipelines.jobs.run import run_job
from tagstream.schemas.block import POSITION, Block
from tagstream.schemas.dead_letters import no_dead
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.database.adbc import connect
from tagstream.transforms.io.memory import Memory
from tagstream.transforms.io.registry import open_sink, open_source
from tagstream.transforms.runtime.job_context import JobContext
from tests.services.postgres import Postgres

PEERS = Path(__file__).parent / "peers"


def messages(rows: int) -> pa.Table:
    """`rows` different texts with ids."""
    texts = pq.read_table(SAMPLE, columns=["text"])["text"].combine_chunks().cast(pa.string())
    numbers = pa.array(np.arange(rows))
    repeated = texts.take(pa.array(np.arange(rows) % len(texts)))
    return pa.table({"id": numbers, "text": pc.binary_join_element_wise(repeated, numbers.cast(pa.string()), " ")})


def fill(uri: str, table: str, rows: pa.Table) -> None:
    session = connect(uri)
    staged = session.stage("filling", rows.to_reader())
    session.run(f"CREATE TABLE {table} AS SELECT * FROM {staged}")
    session.run(f"ALTER TABLE {table} ADD PRIMARY KEY (id)")
    session.run(f"ANALYZE {table}")
    session.commit()
    session.close()


def job(name: str, source: dict[str, Any], sink: dict[str, Any], *, model: bool) -> JobSpec:
    classifier = {"model": "tagstream/spam"} if model else {"backend": {"type": "constant"}}
    return JobSpec.model_validate(
        {
            "name": name,
            "source": {"text": "text", "id": "id", **source},
            "infer": [{"as": "spam", **classifier}],
            "sink": sink,
        }
    )


def outside_model(uri: str, rows: int, rounds: int) -> dict[str, float]:
    """Both jobs in turn, in this process; loading the model is not counted."""
    quiet = Console(quiet=True)
    table = messages(rows)
    given, labels = Memory(table), Memory()
    fill(uri, "messages", table)
    spent = {"table": 0.0, "memory": 0.0}
    sql = {"type": "sql", "uri": uri, "table": "messages"}
    for number in range(rounds + 1):
        jobs = {
            "memory": job("m", {"type": "memory", "rows": given}, {"type": "memory", "rows": labels}, model=True),
            "table": job("enrich", sql, {**sql, "mode": "update"}, model=True),
        }
        for name, spec in jobs.items():
            report = run_job(spec, quiet, overwrite=True)
            if report.counts.rows_out != rows:
                raise SystemExit(f"{report.counts.rows_out} rows out of {rows}")
            spent[name] += report.seconds if number else 0.0  # the first round warms up
    return {
        "model_rows": rows,
        "rounds": rounds,
        "enrich_rows_per_s": round(rows * rounds / spent["table"], 1),
        "model_rows_per_s": round(rows * rounds / spent["memory"], 1),
        "outside_model_share": round(max(0.0, 1 - spent["memory"] / spent["table"]), 4),
    }


class Stopwatch:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        self.seconds[name] = time.perf_counter() - started
        return result


def alone(watch: Stopwatch, prefix: str, reach: dict[str, Any]) -> list[Block]:
    """Times source and sink without Beam and model, from table `many` to `labels`. Returns the labelled blocks."""
    spec = job("alone", {**reach, "table": "many"}, {**reach, "table": "labels"}, model=False)
    source = open_source(spec, JobContext())
    splits = source.splits()
    blocks = watch.time(f"{prefix}source", lambda: [(split, list(source.read(split, 0))) for split in splits])
    ready = [(split, [labelled(block) for block in parts]) for split, parts in blocks]

    def commit_all() -> None:
        sink = open_sink(spec, JobContext())
        sink.prepare(Fingerprint({"job": "alone"}), overwrite=False)
        for split, parts in ready:
            writer = sink.open(split)
            for block in parts:
                writer.write(block)
            writer.commit()

    watch.time(f"{prefix}sink", commit_all)
    return [block for _, parts in ready for block in parts]


def on_postgres(watch: Stopwatch, uri: str, rows: pa.Table) -> None:
    """Time our source and sink, the driver's own statements, and psycopg's own copies."""
    fill(uri, "many", rows)
    blocks = alone(watch, "", {"type": "sql", "uri": uri})
    session = connect(uri)
    watch.time("adbc_read", lambda: session.query("SELECT id, text FROM many"))
    labels = pa.Table.from_batches([block.batch for block in blocks]).drop_columns([POSITION])
    watch.time("adbc_ingest", lambda: (session.stage("plain", labels.to_reader()), session.commit()))
    session.close()
    python = environment("psycopg", ["psycopg[binary]>=3.2"])
    watch.seconds |= run([str(python), str(PEERS / "psycopg_copy.py"), uri, "many"]).said


def on_duckdb(watch: Stopwatch, path: str, rows: pa.Table) -> None:
    """Time our source and sink on one file, and DuckDB's own copies on another."""
    import duckdb

    with duckdb.connect(path) as connection:
        connection.register("given", rows)
        connection.execute("CREATE TABLE many AS SELECT * FROM given")
    blocks = alone(watch, "duckdb_", {"type": "duckdb", "path": path})
    labels = pa.Table.from_batches([block.batch for block in blocks]).drop_columns([POSITION])
    with duckdb.connect(f"{path}.own") as connection:
        connection.register("given", rows)
        connection.execute("CREATE TABLE many AS SELECT * FROM given")
        watch.time("duckdb_own_read", lambda: connection.sql("SELECT id, text FROM many").to_arrow_table())
        connection.register("labels", labels)
        watch.time("duckdb_own_write", lambda: connection.execute("CREATE TABLE plain AS SELECT * FROM labels"))


def labelled(block: Block) -> Block:
    """The block with label columns in place of its text, as if a model had run."""
    n = block.batch.num_rows
    columns = {
        "id": block.batch["id"],
        POSITION: block.batch[POSITION],
        "spam": pa.array(["ham"] * n, pa.string()),
        "spam_score": pa.array(np.full(n, 0.9, np.float32)),
        "spam_truncated": pa.array(np.zeros(n, bool)),
    }
    return Block(block.span, pa.record_batch(columns), no_dead(pa.schema([("id", pa.int64())])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--model-rows", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    server = Postgres()
    try:
        uri = server.start().create_database("benchmark")
        watch = Stopwatch()
        rows = messages(given.rows)
        on_postgres(watch, uri, rows)
        with tempfile.TemporaryDirectory() as folder:
            on_duckdb(watch, f"{folder}/bench.duckdb", rows)
        speeds = {f"{name}_rows_per_s": round(given.rows / took) for name, took in watch.seconds.items()}
        figures = {"rows": given.rows, **speeds, **outside_model(uri, given.model_rows, given.rounds)}
        seconds_a_row = 1 / figures["source_rows_per_s"] + 1 / figures["sink_rows_per_s"]
        figures["source_and_sink_share"] = round(seconds_a_row * figures["model_rows_per_s"], 4)
    finally:
        server.close()
    lines = [
        f"PostgreSQL and DuckDB, {given.rows:,} rows alone, {given.model_rows:,} rows with the bundled spam model:",
        "",
        "| | rows/s |",
        "|---|---|",
        *(
            f"| {text} | {figures[name]:,.0f} |"
            for name, text in {
                "source_rows_per_s": "source alone",
                "adbc_read_rows_per_s": "the driver's own read",
                "psycopg_read_rows_per_s": "psycopg's COPY TO",
                "sink_rows_per_s": "sink alone, with ledger",
                "adbc_ingest_rows_per_s": "the driver's own ingest",
                "psycopg_write_rows_per_s": "psycopg's COPY FROM",
                "duckdb_source_rows_per_s": "DuckDB: source alone",
                "duckdb_own_read_rows_per_s": "DuckDB's own read",
                "duckdb_sink_rows_per_s": "DuckDB: sink alone, with ledger",
                "duckdb_own_write_rows_per_s": "DuckDB's own write",
                "enrich_rows_per_s": "table enriched in place",
                "model_rows_per_s": "memory to memory, same model",
            }.items()
        ),
        "",
        (
            f"Outside the model: {figures['outside_model_share']:.1%} of the time as measured, "
            f"{figures['source_and_sink_share']:.1%} if nothing overlapped."
        ),
    ]
    save(
        "warehouse",
        figures,
        lines,
        versions("adbc-driver-postgresql", "duckdb", "pyarrow", "torch"),
        given.json,
        record=given.record,
    )


if __name__ == "__main__":
    main()
