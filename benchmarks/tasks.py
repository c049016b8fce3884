"""Compares rows/s of each task with the library that its users would call, on the same texts and the same weights.

The models are random, of MiniLM's size (generation: a small Llama), because speed does not depend on the weights; the
texts are generated, of 46 tokens on average. Both sides run in this process and take turns; the median of their
rounds counts. Answers are compared: vectors and scores by the largest difference, spans and texts by the share that is
equal. Loading is not timed.

    python -m benchmarks.tasks [--json FILE] [--rows N] [--rounds N] [--record]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import generated
from benchmarks.results import save, versions
from tagstream import load

LABELS = ["sports", "business", "politics", "science"]
SPANS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG")
NLI = ("contradiction", "neutral", "entailment")
PEER_BATCH = 32
NEW_TOKENS = 24


class Compared(NamedTuple):
    """One task. `ours`, `theirs`: answers of texts. `same`: what is said of the two. `rows`: how many texts to take."""

    name: str
    peer: str
    ours: Callable[[list[str]], Any]
    theirs: Callable[[list[str]], Any]
    same: Callable[[Any, Any], str]
    share: float = 1.0


def with_head(base: Path, folder: Path, auto: str, labels: tuple[str, ...]) -> Path:
    """The encoder of `base` with another head, which is random."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    named = {"id2label": dict(enumerate(labels)), "num_labels": len(labels)}
    config = transformers.AutoConfig.from_pretrained(base, **named)
    model = getattr(transformers, auto).from_pretrained(base, config=config, ignore_mismatched_sizes=True)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def language_model(base: Path, folder: Path) -> Path:
    """A Llama of 6 layers with the tokenizer of `base`."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=6,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def vectors(base: Path, folder: Path) -> Compared:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    encoder = with_head(base, folder / "plain", "AutoModel", NLI)
    transformer = Transformer(str(encoder))
    parts = [transformer, Pooling(transformer.get_embedding_dimension()), Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "vectors"))
    peer, model = SentenceTransformer(str(folder / "vectors"), device="cpu"), load(str(folder / "vectors"), as_="x")
    return Compared(
        "feature-extraction",
        f"sentence-transformers' encode, batches of {PEER_BATCH}",
        lambda texts: np.stack(model.predict(texts)["x"].to_numpy()),
        lambda texts: peer.encode(texts, batch_size=PEER_BATCH),
        lambda a, b: f"largest difference {np.abs(a - b).max():.1e}",
    )


def spans(base: Path, folder: Path) -> Compared:
    from transformers import pipeline

    tagger = with_head(base, folder / "spans", "AutoModelForTokenClassification", SPANS)
    peer = pipeline(
        "token-classification", str(tagger), aggregation_strategy="first", device="cpu", batch_size=PEER_BATCH
    )
    model = load(str(tagger), as_="x", aggregation_strategy="first")

    def mine(texts: list[str]) -> list[list[tuple[Any, ...]]]:
        rows = model.predict(texts)["x"].to_pylist()
        return [[(one["label"], one["start"], one["end"]) for one in row] for row in rows]

    def other(texts: list[str]) -> list[list[tuple[Any, ...]]]:
        return [[(one["entity_group"], one["start"], one["end"]) for one in row] for row in peer(texts)]

    return Compared("token-classification", f"transformers' pipeline, batches of {PEER_BATCH}", mine, other, _equal)


def labels_in_words(base: Path, folder: Path) -> Compared:
    from transformers import pipeline

    nli = with_head(base, folder / "nli", "AutoModelForSequenceClassification", NLI)
    peer = pipeline("zero-shot-classification", str(nli), device="cpu", batch_size=PEER_BATCH)
    model = load(str(nli), as_="x", task="zero-shot-classification", labels=LABELS, scores="all")

    def other(texts: list[str]) -> np.ndarray:
        found = [dict(zip(one["labels"], one["scores"], strict=True)) for one in peer(texts, candidate_labels=LABELS)]
        return np.array([[one[label] for label in LABELS] for one in found])

    return Compared(
        "zero-shot-classification",
        f"transformers' pipeline, batches of {PEER_BATCH}",
        lambda texts: np.array([list(row.values()) for row in model.predict(texts)["x_scores"].to_pylist()]),
        other,
        lambda a, b: f"largest difference {np.abs(a - b).max():.1e}",
        share=0.25,
    )


def new_texts(base: Path, folder: Path) -> Compared:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    made = language_model(base, folder / "llama")
    tokenizer = AutoTokenizer.from_pretrained(made, padding_side="left")
    peer = AutoModelForCausalLM.from_pretrained(made).eval()
    model = load(str(made), as_="x", max_new_tokens=NEW_TOKENS)

    def other(texts: list[str]) -> list[str]:
        found: list[str] = []
        for at in range(0, len(texts), PEER_BATCH):
            batch = [f"{text} " for text in texts[at : at + PEER_BATCH]]
            inputs = tokenizer(
                batch, return_tensors="pt", padding=True, add_special_tokens=False, return_token_type_ids=False
            )
            with torch.inference_mode():
                ids = peer.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            found += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return found

    return Compared(
        f"text-generation, {NEW_TOKENS} new tokens",
        f"transformers' generate, batches of {PEER_BATCH}",
        lambda texts: model.predict(texts)["x"].to_pylist(),
        other,
        _equal,
        share=0.1,
    )


def _equal(ours: list[Any], theirs: list[Any]) -> str:
    return f"{np.mean([a == b for a, b in zip(ours, theirs, strict=True)]):.2%} equal"


def measure(made: Compared, texts: list[str], rounds: int, threads: int) -> dict[str, Any]:
    """Rows/s of both, in turns, and whether they agree. `threads`: of PyTorch, for the peer."""
    import torch

    mine = texts[: max(8, int(len(texts) * made.share))]
    said = made.same(made.ours(mine), made.theirs(mine))  # warm, too
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for name, run in (("ours", made.ours), ("theirs", made.theirs)):
            torch.set_num_threads(threads)  # an engine's passes have fewer each
            started = time.perf_counter()
            run(mine)
            seconds[name].append(time.perf_counter() - started)
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return {
        "task": made.name,
        "peer": made.peer,
        "rows": len(mine),
        "rows_per_s": round(len(mine) / statistics.median(seconds["ours"]), 1),
        "peer_rows_per_s": round(len(mine) / statistics.median(seconds["theirs"]), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "same": said,
    }


def table(found: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    lines = ["| task | rows | rows/s | peer | its rows/s | ratio (each round) | answers |", "|---" * 7 + "|"]
    for one in found:
        each = ", ".join(f"{ratio}" for ratio in one["ratios"])
        lines.append(
            f"| {one['task']} | {one['rows']:,} | {one['rows_per_s']:,} | {one['peer']} | {one['peer_rows_per_s']:,} | "
            f"{one['ratio']} ({each}) | {one['same']} |"
        )
    return lines


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    texts = generated.texts(given.rows)
    found = []
    with tempfile.TemporaryDirectory(prefix="tagstream-") as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = Path(name) / "base"
        threads = torch.get_num_threads()
        generated.write_model(base)
        torch.set_num_threads(threads)  # it makes the model with one, for the same result everywhere
        for make in (vectors, spans, labels_in_words, new_texts):
            found.append(measure(make(base, Path(name)), texts, given.rounds, threads))
            print(json.dumps(found[-1]), flush=True)
    packages = versions("torch", "transformers", "sentence-transformers")
    save("tasks", {"tasks": found}, table(found), packages, given.json, record=given.record)


if __name__ == "__main__":
    main()
