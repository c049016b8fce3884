"""Ray Data around `transformers.pipeline`, as its guide to working with text shows it: a class in an actor pool.

There is one actor for each core, and one more slot: reading and writing are tasks too, and would wait for ever if the
actors held all slots. `seconds`: from the first batch to the end of the last one, without starting Ray and its actors,
loading the model, and writing.

    python ray_data.py MODEL INPUT.parquet OUTPUT_FOLDER
"""

import json
import logging
import os
import sys
import time

os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from transformers import pipeline
from transformers.utils import logging as transformers_logging

BATCH_ROWS = 256


class TextClassifier:
    def __init__(self, model):
        transformers_logging.set_verbosity_error()
        self.model = pipeline("text-classification", model=model, device="cpu", dtype=torch.float32)

    def __call__(self, batch):
        began = time.time()
        predictions = self.model(list(batch["text"]), truncation=True)
        rows = len(predictions)
        return {
            "id": batch["id"],
            "label": np.array([p["label"] for p in predictions]),
            "score": np.array([p["score"] for p in predictions]),
            "began": np.full(rows, began),
            "ended": np.full(rows, time.time()),
        }


def main(model, source, output):
    cores = len(os.sched_getaffinity(0))
    ray.init(num_cpus=cores + 1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    rows = ray.data.read_parquet(source).select_columns(["id", "text"]).repartition(2 * cores)
    rows.map_batches(
        TextClassifier,
        fn_constructor_args=(model,),
        batch_size=BATCH_ROWS,
        compute=ray.data.ActorPoolStrategy(size=cores),
    ).write_parquet(output)
    times = pq.read_table(output, columns=["began", "ended"])
    print(json.dumps({"seconds": max(times["ended"].to_pylist()) - min(times["began"].to_pylist())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
