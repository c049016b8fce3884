"""One contestant of `benchmarks.gpu`: tagstream's engine, plain transformers, or the tokenizer alone.

`seconds`: from the first text to the last label, after a warm-up with the first rows. Nothing is read or written.

    python -m benchmarks.peers.on_device look DEVICE           what `gpus` there are, and the name of the first
    python -m benchmarks.peers.on_device CONTESTANT MODEL INPUT.parquet DEVICE [LABELS.parquet]
        tagstream, compiled: the engine, bf16; compiled: with `compile: true`
        transformers: texts sorted by length, batches of 256 padded to their longest, bf16, on one device
        tokeniser: the engine's tokenizer on blocks as the engine gets them
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 256
WARM_UP_ROWS = 512


def look(device):
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    used = gpus if device in ("auto", "cuda") else gpus[int(device.partition(":")[2]) :][:1] if "cuda" in device else []
    return {"gpus": used}


def tagstream(model, texts, device, compiled=False):
    from tagstream.schemas.spec import Blocks, InferEntry, PyTorchBackend
    from tagstream.transforms.inference.engines import Engines
    from tagstream.transforms.runtime.job_context import JobContext
    from tagstream.transforms.runtime.metrics import JobMetrics

    backend = PyTorchBackend(device=device, precision="bf16", compile=compiled)
    engine = JobContext().resource(Engines).of(InferEntry(model=model, backend=backend))
    engine.submit(texts.slice(0, WARM_UP_ROWS)).result()
    engine.metrics = JobMetrics()
    begun = time.perf_counter()
    step = Blocks().rows
    futures = [engine.submit(texts.slice(at, step)) for at in range(0, len(texts), step)]
    found = [future.result() for future in futures]
    seconds = time.perf_counter() - begun
    tokens = np.concatenate([f.tokens for f in found]).astype(np.int64)
    said = {
        "tokens": int(tokens.sum()),
        "squares": int((tokens**2).sum()),
        "padding": engine.metrics.snapshot().padding,
    }
    return seconds, np.concatenate([f.values for f in found]), said


def compiled_tagstream(model, texts, device):
    return tagstream(model, texts, device, compiled=True)


def transformers(model, texts, device):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    from benchmarks.peers.sorted_batches import probabilities

    logging.set_verbosity_error()
    device = {"auto": "cuda:0", "cuda": "cuda:0"}.get(device, device)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.bfloat16).eval().to(device)
    texts = texts.to_pylist()

    probabilities(network, tokenizer, texts[:WARM_UP_ROWS], BATCH, 512)
    begun = time.perf_counter()
    found = probabilities(network, tokenizer, texts, BATCH, 512)
    return time.perf_counter() - begun, found, {}


def tokeniser(model, texts, _):
    from tagstream.schemas.spec import Blocks
    from tagstream.transforms.model_files import find_model
    from tagstream.transforms.tokenization.tokenizer import TextTokenizer

    tokenizer = TextTokenizer(find_model(model, None), None, "truncate")
    tokenizer.encode(texts.slice(0, WARM_UP_ROWS))
    begun = time.perf_counter()
    step = Blocks().rows
    for at in range(0, len(texts), step):
        tokenizer.encode(texts.slice(at, step))
    return time.perf_counter() - begun, None, {"parameters": parameters(model)}


def parameters(model):
    """How many parameters the model has without its embeddings."""
    from safetensors import safe_open

    with safe_open(f"{model}/model.safetensors", "np") as weights:
        names = [name for name in weights.keys() if "embeddings" not in name]  # noqa: SIM118  no mapping
        return sum(int(np.prod(weights.get_slice(name).get_shape())) for name in names)


CONTESTANTS = {
    "tagstream": tagstream,
    "compiled": compiled_tagstream,
    "transformers": transformers,
    "tokeniser": tokeniser,
}


def main(contestant, model, source="", device="", labels=""):
    if contestant == "look":
        print(json.dumps(look(model)))
        return
    table = pq.read_table(source)
    texts = table["text"].cast(pa.large_string()).combine_chunks()
    seconds, scores, said = CONTESTANTS[contestant](model, texts, device)
    if labels and scores is not None:
        best, score = pa.array(scores.argmax(1)), pa.array(scores.max(1).astype(np.float64))
        pq.write_table(pa.table({"id": table["id"], "label": best, "score": score}), labels)
    print(json.dumps({"seconds": seconds, "rows": len(texts), **said}))


if __name__ == "__main__":
    main(*sys.argv[1:])
