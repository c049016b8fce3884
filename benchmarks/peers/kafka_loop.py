"""A plain kafka-python loop around `transformers.pipeline`: poll, label what was polled, send, flush, commit.

Delivers at least once, without transactions, as a first version would. Value, key, timestamp and partition stay; the
label goes into a header.

    python kafka_loop.py MODEL SERVERS SOURCE TARGET
"""

import signal
import sys

import torch
from kafka import KafkaConsumer, KafkaProducer
from transformers import pipeline
from transformers.utils import logging


def main(model, servers, source, target):
    logging.set_verbosity_error()
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    classify = pipeline("text-classification", model=model, device="cpu", dtype=torch.float32)
    consumer = KafkaConsumer(
        source, bootstrap_servers=servers, group_id=target, auto_offset_reset="earliest", enable_auto_commit=False
    )
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True)
    while not stopping:
        records = [r for batch in consumer.poll(timeout_ms=100).values() for r in batch]
        if not records:
            continue
        texts = [r.value.decode() for r in records]
        for record, found in zip(records, classify(texts, batch_size=len(texts), truncation=True), strict=True):
            producer.send(
                target,
                record.value,
                record.key,
                headers=[("label", found["label"].encode())],
                partition=record.partition,
                timestamp_ms=record.timestamp,
            )
        producer.flush()
        consumer.commit()
    consumer.close()
    producer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
