"""Measures Flink: the gain of a second task manager, the latency of labels, and the recovery after a kill.

Runs a real cluster on this machine (JobManager, two task managers with one slot each, job server, worker pool), a real
broker, and the constant-time test backend.

- scaling: bulk rows/s of two task managers divided by those of one, with 1 ms of pretended model time for each row.
  Counted from 20 to 80 % of the rows. The pretended time needs no CPU, so two cores are enough.
- p50_ms, p99_ms: time from a message's timestamp until a read_committed consumer has its label, at a steady rate.
- state_growth_mb: growth of the live objects on the task managers' heaps under that load. The heaps hold all of the
  job's state.
- recovery_s: each part in turn is killed with kill -9 under that load. Seconds from the kill until labels keep up
  again; the worst of all kills. lost, duplicated: messages over the whole topics, after the kills and after the job was
  cancelled and submitted again.

    python -m benchmarks.flink [--json FILE] [--rows N] [--rate N] [--seconds N] [--faults N] [--record]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.children import PYTHON, tagstream
from benchmarks.results import save, versions
from benchmarks.topics import PARTITIONS, Contestant, Run, send
from tests.services.flink import FlinkCluster
from tests.services.flink_faults import FAULTS, Flow, inflict
from tests.services.kafka import KafkaBroker
from tests.services.kafka_faults import differences

MS_PER_ROW = 1.0
WARM_SECONDS = 10
SPLITS = 8
TEXTS = [f"message number {number} of many, as long as a short one is" for number in range(1000)]
SPEC = """
name: {name}
source: {type: kafka, servers: "{servers}", topics: {source}}
infer: [{as: label, backend: {type: constant}}]
sink: {type: kafka, topic: {target}, mode: headers}
blocks: {rows: 512}
runner: RUNNER
"""
COMMAND = [PYTHON, "-m", "tagstream", "run"]


def runner(cluster: FlinkCluster, parallelism: int) -> dict[str, Any]:
    return {**cluster.runner, "parallelism": parallelism}


def live(cluster: FlinkCluster) -> Contestant:
    return Contestant("flink", COMMAND, SPEC.replace("RUNNER", json.dumps(runner(cluster, cluster.task_managers))))


def bulk_rate(cluster: FlinkCluster, folder: Path, parallelism: int, rows: int) -> float:
    """Rows a second of a Parquet job."""
    name = f"bulk{parallelism}"
    texts = [TEXTS[i % len(TEXTS)] + f" {i}" for i in range(rows)]
    (folder / f"{name}-in").mkdir()
    pq.write_table(pa.table({"text": texts}), folder / f"{name}-in/a.parquet", row_group_size=rows // SPLITS)
    spec = {
        "name": name,
        "source": {"type": "parquet", "path": f"{folder}/{name}-in", "split_rows": rows // SPLITS},
        "infer": [{"as": "label", "backend": {"type": "constant", "ms_per_row": MS_PER_ROW}}],
        "sink": {"type": "parquet", "path": f"{folder}/{name}", "commit_every": 0.25},
        "blocks": {"rows": 250},
        "runner": runner(cluster, parallelism),
    }
    (folder / f"{name}.yaml").write_text(json.dumps(spec))  # JSON is YAML
    _, report = tagstream(folder / f"{name}.yaml", folder / "report.json")
    if report["rows_in"] != rows:
        raise SystemExit(f"{report['rows_in']} of {rows} rows")
    files = [(f.stat().st_mtime, pq.read_metadata(f).num_rows) for f in (folder / name).glob("*.parquet")]
    return middle_rate([at for at, count in files for _ in range(count)])


def middle_rate(times: list[float]) -> float:
    """Rows a second. `times`: one for each row. The start and the end are left out: loading, and the last rows."""
    times = sorted(times)
    first, last = len(times) // 5, len(times) * 4 // 5
    begin = times[first]
    done = sum(begin < at <= times[last] for at in times)
    return done / (times[last] - begin)


def steady(cluster: FlinkCluster, broker: KafkaBroker, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Latency at a steady rate, then one kill after the other under the same load."""
    job = live(cluster)
    recovery: dict[str, list[float]] = {}
    with Run(broker, folder, job, "steady") as run:
        run.start()
        send(run.servers, run.source, TEXTS, options.rate, 10)
        if not run.wait_for(10, 180):
            raise SystemExit(f"no labels:\n{run.log.read_text()[-3000:]}")
        warm, count = int(options.rate * WARM_SECONDS), int(options.rate * options.seconds)
        send(run.servers, run.source, TEXTS, options.rate, warm, 10)
        before = live_mb(cluster)
        send(run.servers, run.source, TEXTS, options.rate, count, warm + 10)
        if not run.wait_for(10 + warm + count, 60):
            raise SystemExit(f"{10 + warm + count - len(run.watcher.seen)} messages without a label")
        waited = np.array([visible - sent for visible, sent in run.watcher.seen[10 + warm :]]) * 1000
        p50_ms, p99_ms = (round(float(np.percentile(waited, share)), 1) for share in (50, 99))
        growth = live_mb(cluster) - before
        print(f"{len(waited)} messages, p50 {p50_ms} ms, p99 {p99_ms} ms, state {growth:+.2f} MB", flush=True)
        if options.faults:
            flow = Flow(broker, run.source, run.target, options.rate, PARTITIONS)

            def alive() -> None:
                if run.process.poll() is not None:
                    raise SystemExit(f"the job has ended:\n{run.log.read_text()[-3000:]}")

            flow.recovers(5, alive)
            for fault in [*FAULTS, "cancel and submit"] * options.faults:
                if fault == "cancel and submit":
                    run.process.terminate()
                    run.process.wait(60)
                    run.start()
                else:
                    inflict(fault, cluster, broker)
                recovery.setdefault(fault, []).append(round(flow.recovers(10, alive), 1))
                print(fault, recovery[fault][-1], "s", flush=True)
            flow.finish()
            flow.close()
        found = differences(broker.servers, run.source, run.target)
    return {
        "messages": found["in"],
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "state_growth_mb": round(growth, 2),
        "lost": found["lost"],
        "duplicated": found["doubled"],
        "recovery_s": {fault: max(seconds) for fault, seconds in recovery.items()},
    }


def live_mb(cluster: FlinkCluster) -> float:
    """Size of all live objects in the task managers' JVMs, after a full collection, in 10^6 bytes."""
    total = 0
    for name, process in cluster.processes.items():
        if name.startswith("taskmanager"):
            histogram = subprocess.run(
                ["jcmd", str(process.pid), "GC.class_histogram"], capture_output=True, text=True, check=True
            ).stdout
            total += int(histogram.strip().splitlines()[-1].split()[2])  # "Total, objects, bytes"
    return total / 1e6


def wait_for_slots(cluster: FlinkCluster) -> None:
    cluster.wait(lambda: cluster.flink.slots()[1] == cluster.task_managers, "free slots")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    (folder / "cluster").mkdir()
    (folder / "kafka").mkdir()
    cluster = FlinkCluster(folder / "cluster", lasting=True, staging=True)
    broker = KafkaBroker(folder / "kafka", lasting=True)
    try:
        broker.start()
        cluster.start()
        rates: dict[str, float] = {}
        for parallelism in (1, 2):
            rates[f"bulk_{parallelism}"] = bulk_rate(cluster, folder, parallelism, options.rows)
            wait_for_slots(cluster)
            print(rates, flush=True)
        time.sleep(1)
        found = steady(cluster, broker, folder, options)
    finally:
        cluster.stop()
        broker.close()
    return {
        "scaling": round(rates["bulk_2"] / rates["bulk_1"], 2),
        "rows_per_s": {name: round(rate) for name, rate in rates.items()},
        "rows": options.rows,
        "rate": options.rate,
        "seconds": options.seconds,
        "faults": options.faults,
        **found,
    }


def table(found: dict[str, Any]) -> list[str]:
    rates = found["rows_per_s"]
    bulk = f"{found['scaling']} ({rates['bulk_1']:,} to {rates['bulk_2']:,} rows/s)"
    load = f"{found['rate']:g} messages/s for {found['seconds']:g} s"
    lines = [
        "| | |",
        "|---|---|",
        f"| bulk, two task managers over one, {MS_PER_ROW:g} ms a row | {bulk} |",
        f"| latency at {load} | p50 {found['p50_ms']} ms, p99 {found['p99_ms']} ms |",
    ]
    lines.append(f"| live objects of the task managers after that load | {found['state_growth_mb']:+.2f} MB |")
    lines += [f"| labels again after kill -9: {fault} | {s} s |" for fault, s in found["recovery_s"].items()]
    lines.append(f"| of {found['messages']:,} messages | {found['lost']} lost, {found['duplicated']} twice |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=40_000, help="of each scaling run")
    parser.add_argument("--rate", type=float, default=300.0, help="messages a second of the steady load")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the steady load")
    parser.add_argument("--faults", type=int, default=1, help="how often each part is killed; 0: never")
    parser.add_argument("--record", action="store_true", help="write benchmarks/RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tagstream-") as folder:
        found = measure(options, Path(folder))
    packages = versions("apache-beam", "kafka-python", "pyarrow")
    save("flink", found, table(found), packages, options.json, record=options.record)
    print(json.dumps({k: found[k] for k in ("scaling", "p50_ms", "p99_ms", "lost", "duplicated")}))


if __name__ == "__main__":
    main()
