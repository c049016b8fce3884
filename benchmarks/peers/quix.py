"""Quix Streams around `transformers.pipeline`, exactly once, as its documentation shows it: one message at a time.

`commit_interval` is 50 ms instead of the default 5 s, because a message is visible only when its transaction commits,
and a user who needs low latency would not keep the default. Value, key and timestamp stay; a header holds the label.

    python quix.py MODEL SERVERS SOURCE TARGET
"""

import sys

import torch
from quixstreams import Application
from transformers import pipeline
from transformers.utils import logging


def main(model, servers, source, target):
    logging.set_verbosity_error()
    classify = pipeline("text-classification", model=model, device="cpu", dtype=torch.float32)
    application = Application(
        broker_address=servers,
        consumer_group=target,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        commit_interval=0.05,
        loglevel="WARNING",
    )
    incoming = application.topic(source, value_deserializer="bytes")
    outgoing = application.topic(target, value_serializer="bytes")

    def label(value, _key, _timestamp, _headers):
        return [("label", classify(value.decode(), truncation=True)[0]["label"].encode())]

    application.dataframe(incoming).set_headers(label).to_topic(outgoing)
    application.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
