"""A plain loop over `transformers.pipeline("text-classification", batch_size=32)`, rows in the order they arrive.

`seconds`: reading the Parquet file, labelling, writing one; without loading the model.

    python transformers_loop.py MODEL INPUT.parquet OUTPUT.parquet
"""

import json
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import pipeline
from transformers.utils import logging


def main(model, source, output):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.perf_counter()
    classify = pipeline("text-classification", model=model, device="cpu", batch_size=32, truncation=True)
    loaded = time.perf_counter()
    table = pq.read_table(source)
    found = list(classify(table["text"].to_pylist()))
    labels, scores = [f["label"] for f in found], [f["score"] for f in found]
    pq.write_table(pa.table({"id": table["id"], "label": labels, "score": pa.array(scores, pa.float64())}), output)
    print(json.dumps({"seconds": time.perf_counter() - loaded, "load_seconds": loaded - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
