"""Texts equal those of transformers' `generate`, one row at a time; batched, padded and in any order."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream import load, run
from tagstream.schemas.errors import ModelError, SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import describe, identify
from tests.models import random_texts
from tests.task_models import CHAT, SEQ2SEQ, chat_model, seq2seq_model

TEXTS = [text or "!" for text in random_texts(24, seed=3, longest=12)] + ["ÉCOLE 中文 😀"]


def theirs(folder: Path, prompts: list[str], most: int, auto: str, *, special: bool) -> list[str]:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, auto).from_pretrained(folder).eval()
    found = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=special, return_token_type_ids=False)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=most, do_sample=False, pad_token_id=1)[0]
        new = ids[inputs["input_ids"].shape[1] :] if auto == "AutoModelForCausalLM" else ids[1:]
        found.append(tokenizer.decode(new, skip_special_tokens=True))
    return found


def chats(texts: list[str], system: str = "") -> list[str]:
    return [f"{system}<user> {text.strip()} <assistant>" for text in texts]


def ours(folder: Path, texts: list[str], most: int, **settings) -> list[tuple[str, str]]:
    with load(str(folder), as_="x", max_new_tokens=most, **settings) as model:
        rows = model.predict(texts)
    assert rows["error"].null_count == len(rows)
    return list(zip(rows["x"].to_pylist(), rows["x_finish"].to_pylist(), strict=True))


@pytest.mark.parametrize("architecture", sorted(CHAT))
def test_chat_model(tmp_path: Path, architecture: str) -> None:
    """The chat template is filled, the system message stands first, and the answer goes on from there."""
    folder = chat_model(tmp_path / "model", architecture)
    found = ours(folder, TEXTS, 8)
    assert [text for text, _ in found] == theirs(folder, chats(TEXTS), 8, "AutoModelForCausalLM", special=False)
    assert len({text for text, _ in found}) > 3, "answers all alike would show nothing"
    told = ours(folder, TEXTS, 8, system="call now", prompt="free: ")
    expected = chats([f"free: {text}" for text in TEXTS], "<system> call now ")
    assert [text for text, _ in told] == theirs(folder, expected, 8, "AutoModelForCausalLM", special=False)
    assert ours(folder, TEXTS[::-1], 8, memory_bytes=1 << 20) == found[::-1]


def test_finish(tmp_path: Path) -> None:
    """`stop` where the model or a stop word ended the text, `length` where it was cut off."""
    folder = chat_model(tmp_path / "model")
    long = ours(folder, TEXTS, 12)
    assert {finish for _, finish in long} <= {"stop", "length"}
    word = next(text.split()[1] for text, _ in long if len(text.split()) > 2)
    for (text, finish), (cut, ended) in zip(long, ours(folder, TEXTS, 12, stop=[word]), strict=True):
        assert cut == text.partition(word)[0]
        assert ended == ("stop" if word in text else finish)


@pytest.mark.parametrize("architecture", sorted(SEQ2SEQ))
def test_seq2seq_model(tmp_path: Path, architecture: str) -> None:
    """Each of the three tasks; the prompt stands before the text; a long text is cut and marked."""
    folder = seq2seq_model(tmp_path / "model", architecture)
    texts = [text[:40] for text in TEXTS]
    expected = theirs(folder, [f"to German: {text}" for text in texts], 6, "AutoModelForSeq2SeqLM", special=True)
    for task in ("translation", "summarization", "text2text-generation", None):
        found = ours(folder, texts, 6, task=task, prompt="to German: ")
        assert [text for text, _ in found] == expected
    assert len(set(expected)) > 3, "answers all alike would show nothing"
    with load(str(folder), as_="x", max_new_tokens=4) as model:
        assert model.predict(["free " * 200, "a"])["x_truncated"].to_pylist() == [True, False]


def test_job_fills_columns_in(tmp_path: Path) -> None:
    """A prompt with columns; a null column and a prompt that is too long are dead letters; JSON's braces stay."""
    folder = chat_model(tmp_path / "model")
    prompt = 'Say {"a": 1} of {text} to {name}!'
    texts, names = [*TEXTS, "free", "free " * 200], [*(f"n{i}" for i in range(len(TEXTS))), None, "n"]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts, "name": names}), tmp_path / "in.parquet")
    report = run(
        {
            "name": "job",
            "source": {"type": "parquet", "path": str(tmp_path / "in.parquet"), "id": "id", "keep": ["name"]},
            "infer": [{"model": str(folder), "as": "x", "prompt": prompt, "max_new_tokens": 8}],
            "sink": {"type": "parquet", "path": str(tmp_path / "out")},
        }
    )
    assert dict(report.counts.dead) == {"null_text": 1, "too_long": 1}
    rows = pq.read_table(tmp_path / "out").sort_by("id")
    filled = [f'Say {{"a": 1}} of {text} to {name}!' for text, name in zip(texts, names, strict=True)][: len(TEXTS)]
    assert rows["x"].to_pylist() == theirs(folder, chats(filled), 8, "AutoModelForCausalLM", special=False)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"long_text": "truncate"}, "a prompt is never cut"),
        ({"backend": {"type": "onnx"}}, "backend onnx can't generate text"),
        ({"tgt_lang": "deu"}, "tgt_lang: has no effect on text-generation"),
        ({"text": ["a", "b"]}, "takes one text, not a pair"),
        ({"labels": ["a", "b"]}, "labels: has no effect on text-generation"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict, said: str) -> None:
    """Refused when the job is planned."""
    with pytest.raises(SpecError, match=said):
        describe(InferEntry.model_validate({"model": str(chat_model(tmp_path / "model")), "as": "x", **settings}))


def test_what_is_refused_before_the_first_row(tmp_path: Path) -> None:
    """No chat template, no room for a text, a language that the tokenizer lacks, compile, columns of no job."""
    bare = chat_model(tmp_path / "bare", template=None)
    with pytest.raises(ModelError, match="has no chat template; choose a model that was trained"):
        load(str(bare))
    folder = chat_model(tmp_path / "model")
    with pytest.raises(ModelError, match="max_new_tokens 4096 leaves no room for a text: the model takes 128 tokens"):
        load(str(folder), max_new_tokens=4096)
    with pytest.raises(ModelError, match="compile: has no effect on a model that generates text"):
        load(str(folder), max_new_tokens=4, backend={"type": "pytorch", "compile": True})
    with pytest.raises(SpecError, match="load: name: only a job has columns to name"):
        load(str(folder), prompt="to {name}")
    writer = seq2seq_model(tmp_path / "t5")
    with pytest.raises(ModelError, match="src_lang: its tokenizer knows no languages"):
        load(str(writer), src_lang="eng_Latn")
    with pytest.raises(ModelError, match="tgt_lang: its tokenizer has no language 'deu_Latn'"):
        load(str(writer), tgt_lang="deu_Latn")
    with pytest.raises(SpecError, match="texts that are written from windows can't be joined"):
        load(str(writer), long_text="window")


def test_what_decides_answers_is_in_the_fingerprint(tmp_path: Path) -> None:
    """The chat template, the generation config and the model's config; not the version that saved it."""
    folder = chat_model(tmp_path / "model")
    seen = [identify(entry := InferEntry(model=str(folder)))]
    for name, old, new in (
        ("chat_template.jinja", "<assistant>", "<me>"),
        ("generation_config.json", "{", '{"repetition_penalty": 2.0,'),
        ("config.json", '"silu"', '"relu"'),
    ):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
        seen.append(identify(entry))
    assert len({json.dumps(one) for one in seen}) == 4
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    assert identify(entry) == seen[-1]
    with pytest.raises(ValueError, match="at least 1 character"):
        InferEntry(model=str(folder), stop=[""])
