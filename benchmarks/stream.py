"""Live tagging of a Kafka topic: latency at a steady rate, and saturation against the bulk rate of the same model.

    python -m benchmarks.stream --json FILE

Latency is from a message's timestamp to the moment when a read_committed consumer holds its label. Broker, load
generator, consumer and job share the machine. Saturation is what the job does with a backlog, beside what
`tagstream run` does with the same texts in a Parquet file.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from kafka import KafkaConsumer, KafkaProducer

from tests.services.kafka import KafkaBroker
from tests.services.kafka_faults import differences

ROOT = Path(__file__).resolve().parents[1]
PARTITIONS = 2
SPEC = """
name: {name}
source: {{type: kafka, servers: "{servers}", topics: {source}}}
classify: [{classify}]
sink: {{type: kafka, topic: {target}, mode: headers}}
blocks: {{rows: 512}}
"""
BULK = """
source: {{type: parquet, path: {folder}/bulk.parquet}}
classify: [{classify}]
sink: {{type: parquet, path: {folder}/bulk}}
"""


class Job:
    """`tagstream run` on a pair of topics, as its own process."""

    def __init__(self, broker: KafkaBroker, folder: Path, name: str, classify: str) -> None:
        self.source = broker.create_topic(f"{name}-in", PARTITIONS)
        self.target = broker.create_topic(f"{name}-out", PARTITIONS)
        broker.create_topic(f"{name}-out-dead", PARTITIONS)
        spec = folder / f"{name}.yaml"
        spec.write_text(
            SPEC.format(name=name, servers=broker.servers, source=self.source, target=self.target, classify=classify)
        )
        self.command = [sys.executable, "-m", "pipelines.cli", "run", str(spec)]
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


class Watcher(threading.Thread):
    """Reads a topic committed-only from the start and notes when each message became visible, and its timestamp."""

    def __init__(self, servers: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, float]] = []
        self.stopping = False
        self._consumer = KafkaConsumer(
            topic,
            bootstrap_servers=servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            group_id=None,
            fetch_max_wait_ms=100,
        )
        self.start()

    def run(self) -> None:
        while not self.stopping:
            for records in self._consumer.poll(timeout_ms=100, max_records=5000).values():
                now = time.time()
                self.seen += [(now, record.timestamp / 1000) for record in records]
        self._consumer.close()

    def wait_for(self, count: int, deadline: float) -> None:
        end = time.monotonic() + deadline
        while len(self.seen) < count:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(self.seen)} of {count} messages after {deadline} s")
            time.sleep(0.02)


def send(servers: str, topic: str, texts: list[str], rate: float | None, count: int, first: int = 0) -> None:
    """`count` messages at `rate` a second, or as fast as it goes, to the partitions in turn, numbered from `first`."""
    producer = KafkaProducer(bootstrap_servers=servers, linger_ms=0 if rate else 20)
    began = time.monotonic()
    for i in range(count):
        if rate:
            time.sleep(max(0.0, began + i / rate - time.monotonic()))
        producer.send(topic, f"{texts[i % len(texts)]} {first + i}".encode(), key=b"%d" % i, partition=i % PARTITIONS)
    producer.flush(60)
    producer.close()


def latency(broker: KafkaBroker, folder: Path, classify: str, texts: list[str], rate: float, seconds: float) -> dict:
    """p50 and p99 in ms over the messages after a warm-up, and what was lost or doubled among all."""
    job = Job(broker, folder, f"latency-{rate:g}", classify)
    watcher = Watcher(broker.servers, job.target)
    job.start()
    try:
        warm = int(rate * 3)
        send(broker.servers, job.source, texts, rate, warm)
        watcher.wait_for(warm, 90)
        count = int(rate * seconds)
        send(broker.servers, job.source, texts, rate, count, warm)
        watcher.wait_for(warm + count, 60)
    finally:
        job.stop()
        watcher.stopping = True
    values = np.array([seen - sent for seen, sent in watcher.seen[warm:]]) * 1000
    found = differences(broker.servers, job.source, job.target)
    return {
        "rate": rate,
        "p50_ms": round(float(np.percentile(values, 50)), 1),
        "p99_ms": round(float(np.percentile(values, 99)), 1),
        "lost": found["lost"],
        "duplicated": found["doubled"],
    }


def saturation(broker: KafkaBroker, folder: Path, classify: str, texts: list[str], count: int) -> dict:
    """Messages a second through a backlog, from first to last output, and rows a second of the bulk job."""
    pq.write_table(pa.table({"text": [f"{texts[i % len(texts)]} {i}" for i in range(count)]}), folder / "bulk.parquet")
    report = folder / "bulk.json"
    spec = folder / "bulk.yaml"
    spec.write_text(BULK.format(folder=folder, classify=classify))
    subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "run", str(spec), "--report", str(report)],
        cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    job = Job(broker, folder, "saturation", classify)
    send(broker.servers, job.source, texts, None, count)
    watcher = Watcher(broker.servers, job.target)
    job.start()
    try:
        watcher.wait_for(count, 600)
    finally:
        job.stop()
        watcher.stopping = True
    times = sorted(seen for seen, _ in watcher.seen)
    skip = count // 10  # the first blocks hide the start
    live = (count - skip) / (times[-1] - times[skip])
    bulk = json.loads(report.read_text())["rows_per_s"]
    found = differences(broker.servers, job.source, job.target)
    return {
        "live_per_s": round(live, 1),
        "bulk_per_s": bulk,
        "saturation_share": round(live / bulk, 3),
        "lost": found["lost"],
        "duplicated": found["doubled"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="write the figures to this file")
    parser.add_argument("--model", default="tagstream/spam")
    parser.add_argument("--ms-per-row", type=float, help="no model, but this much pretended time for each message")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each latency run")
    parser.add_argument("--rates", type=float, nargs="*", default=[100.0, 300.0])
    parser.add_argument("--backlog", type=int, default=20_000, help="messages of the saturation run; 0 leaves it out")
    options = parser.parse_args()
    classify = f"{{model: {options.model}, as: label}}"
    if options.ms_per_row is not None:
        classify = f"{{backend: {{type: constant, ms_per_row: {options.ms_per_row}}}, as: label}}"
    texts = pq.read_table(ROOT / "examples" / "sms.parquet").column("text").to_pylist()
    result: dict = {"model": classify, "latency": []}
    broker = KafkaBroker()
    with tempfile.TemporaryDirectory() as folder:
        try:
            broker.start()
            for rate in options.rates:
                result["latency"].append(latency(broker, Path(folder), classify, texts, rate, options.seconds))
                print(result["latency"][-1], flush=True)
            if options.backlog:
                result["saturation"] = saturation(broker, Path(folder), classify, texts, options.backlog)
                print(result["saturation"], flush=True)
        finally:
            broker.close()
    parts = [*result["latency"], *([result["saturation"]] if options.backlog else [])]
    summary = {
        "p50_ms": result["latency"][-1]["p50_ms"] if result["latency"] else None,
        "p99_ms": result["latency"][-1]["p99_ms"] if result["latency"] else None,
        "saturation_share": result.get("saturation", {}).get("saturation_share"),
        "lost": sum(part["lost"] for part in parts),
        "duplicated": sum(part["duplicated"] for part in parts),
    }
    print(json.dumps(summary))
    if options.json:
        Path(options.json).write_text(json.dumps(result | summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
