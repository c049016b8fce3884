"""Sorts texts by length and pads batches of 32 to their longest text, as sentence-transformers' `encode` does.

`seconds`: reading the Parquet file, labelling and writing a file, without loading the model.

    python sorted_batches.py MODEL INPUT.parquet OUTPUT.parquet
"""

import json
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

BATCH = 32


def probabilities(network, tokenizer, texts, batch_rows, limit):
    """Scores, float32 [rows, labels], in the order of the texts. `limit`: most tokens of a text."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    found = np.zeros((len(texts), network.config.num_labels), np.float32)
    with torch.inference_mode():
        for at in range(0, len(order), batch_rows):
            rows = order[at : at + batch_rows]
            batch = tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=limit, return_tensors="pt"
            )
            found[rows] = network(**batch.to(network.device)).logits.float().softmax(-1).cpu().numpy()
    return found


def main(model, source, output):
    logging.set_verbosity_error()
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    limit = min(tokenizer.model_max_length, network.config.max_position_embeddings)
    loaded = time.perf_counter()
    table = pq.read_table(source)
    texts = table["text"].to_pylist()
    scores = probabilities(network, tokenizer, texts, BATCH, limit)
    labels = [network.config.id2label[i] for i in scores.argmax(1).tolist()]
    result = pa.table({"id": table["id"], "label": labels, "score": scores.max(1).astype(np.float64)})
    pq.write_table(result, output)
    print(json.dumps({"seconds": time.perf_counter() - loaded, "load_seconds": loaded - started}))


if __name__ == "__main__":
    main(*sys.argv[1:])
