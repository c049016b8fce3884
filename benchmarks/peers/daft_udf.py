"""Daft around `transformers.pipeline`, as its guide to class UDFs shows it: a `daft.cls` with a batch method.

`seconds`: from the first batch to the end of the last one, without loading the model and without writing.

    python daft_udf.py MODEL INPUT.parquet OUTPUT_FOLDER
"""

import json
import sys
import time

import daft
import pyarrow.parquet as pq
import torch
from daft import DataType, col
from transformers import pipeline
from transformers.utils import logging

BATCH_ROWS = 256
RESULT = DataType.struct(
    {
        "label": DataType.string(),
        "score": DataType.float64(),
        "began": DataType.float64(),
        "ended": DataType.float64(),
    }
)


@daft.cls
class TextClassifier:
    def __init__(self, model):
        logging.set_verbosity_error()
        self.model = pipeline("text-classification", model=model, device="cpu", dtype=torch.float32)

    @daft.method.batch(return_dtype=RESULT, unnest=True, batch_size=BATCH_ROWS)
    def classify(self, text):
        began = time.time()
        predictions = self.model(text.to_pylist(), truncation=True)
        ended = time.time()
        return [{**prediction, "began": began, "ended": ended} for prediction in predictions]


def main(model, source, output):
    classifier = TextClassifier(model)
    daft.read_parquet(source).select(col("id"), classifier.classify(col("text"))).write_parquet(output)
    times = pq.read_table(output, columns=["began", "ended"])
    print(json.dumps({"seconds": max(times["ended"].to_pylist()) - min(times["began"].to_pylist())}))


if __name__ == "__main__":
    main(*sys.argv[1:])
