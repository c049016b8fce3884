"""A plain call of `transformers.pipeline("text-classification")`, with rows in their order or sorted by length.

`seconds`: reading the Parquet file, labelling and writing a file, without loading the model.

    python transformers_loop.py MODEL INPUT.parquet OUTPUT.parquet BATCH_SIZE arrival|sorted
"""

import json
import sys
import time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from transformers import pipeline
from transformers.utils import logging


def main(model, source, output, batch_size, order):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    started = time.perf_counter()
    classify = pipeline(
        "text-classification",
        model=model,
        device="cpu",
        dtype=torch.float32,
        batch_size=int(batch_size),
        truncation=True,
    )
    loaded = time.perf_counter()
    table = pq.read_table(source)
    if order == "sorted":
        table = table.take(pc.sort_indices(pc.utf8_length(table["text"])))
    found = list(classify(table["text"].to_pylist()))
    labels, scores = [f["label"] for f in found], [f["score"] for f in found]
    pq.write_table(pa.table({"id": table["id"], "label": labels, "score": pa.array(scores, pa.float64())}), output)
    print(json.dumps({"seconds": time.perf_counter() - loaded, "load_seconds": loaded - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
