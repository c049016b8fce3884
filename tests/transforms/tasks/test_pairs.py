"""Pairs of texts: scores equal transformers' pipeline, segment ids included; a job takes them from two columns."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagstream import load, run
from tagstream.schemas.errors import SpecError
from tagstream.transforms.tasks.parts import join_parts, split_parts
from tests.models import make_model, random_texts

FIRST = [*random_texts(20, seed=1, longest=10), "5:free", "", "中文 😀"]
SECOND = [text or "!" for text in random_texts(20, seed=2, longest=80)] + ["now", "a", ":é"]
"""None is empty, because the pipeline takes that for a single text, other than transformers' tokenizer in batches."""


@given(st.lists(st.tuples(st.text(), st.text())))
def test_two_texts_in_one_string(pairs: list[tuple[str, str]]) -> None:
    """They come out again, whatever they hold."""
    pairs = [pair for pair in pairs if "\ud800" <= max("".join(pair), default="") <= "\udfff" or _valid(*pair)]
    pairs = [pair for pair in pairs if _valid(*pair)]
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    joined = join_parts(pa.array(first, pa.string()), pa.array(second, pa.large_string()))
    assert split_parts(joined) == (first, second)


def _valid(*texts: str) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def theirs(folder: Path) -> list[tuple[str, float]]:
    from transformers import pipeline

    made = pipeline("text-classification", str(folder), device="cpu")
    found = [made({"text": a, "text_pair": b}, truncation=True) for a, b in zip(FIRST, SECOND, strict=True)]
    return [(one["label"], one["score"]) for one in found]


def with_segments(folder: Path) -> Path:
    """BERT's own ids: the second text is segment 1."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("backend", ["pytorch", "onnx"])
@pytest.mark.parametrize("segments", [False, True])
def test_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, *, segments: bool) -> None:
    """NLI, reranking and the like: two columns of a file, of which one may be null, and rows that are cut."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    folder = make_model(tmp_path / "model", labels=("a", "b", "c"))
    if segments:
        with_segments(folder)
    columns = {"id": range(len(FIRST) + 1), "text": [*FIRST, "x"], "other": [*SECOND, None]}
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "in.parquet")
    report = run(
        {
            "name": "job",
            "source": {"type": "parquet", "path": str(tmp_path / "in.parquet"), "id": "id", "keep": ["other"]},
            "infer": [
                {"model": str(folder), "as": "x", "text": ["text", "other"], "backend": {"type": backend}},
                {"model": str(folder), "as": "y", "backend": {"type": backend}},
                {"model": str(folder), "as": "z", "text": "other", "backend": {"type": backend}},
            ],
            "sink": {"type": "parquet", "path": str(tmp_path / "out")},
        }
    )
    assert (report.counts.rows_out, dict(report.counts.dead)) == (len(FIRST), {"null_text": 1})
    rows = pq.read_table(tmp_path / "out").sort_by("id")
    expected = theirs(folder)
    assert rows["x"].to_pylist() == [label for label, _ in expected]
    assert rows["x_score"].to_pylist() == pytest.approx([score for _, score in expected], abs=1e-5)
    assert any(rows["x_truncated"].to_pylist())
    with load(str(folder), as_="x", backend=backend) as model:
        for column, texts in (("y", FIRST), ("z", SECOND)):
            alone = model.predict(texts)["x_score"].to_pylist()
            assert rows[f"{column}_score"].to_pylist() == pytest.approx(alone, abs=1e-5)
    dead = pq.read_table(tmp_path / "out-dead")
    assert dead["message"].to_pylist() == ["column 'other': the text is null"]


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    """Refused when the specification is read, or when the source is known."""
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "in.parquet")
    source = {"type": "parquet", "path": str(tmp_path / "in.parquet")}
    entry = {"model": str(make_model(tmp_path / "model")), "as": "x", "text": ["text", "n"]}
    job = {"name": "j", "infer": [entry], "sink": {"type": "parquet", "path": str(tmp_path / "out")}}
    with pytest.raises(SpecError, match=r"infer\.0\.text: no column 'n': name source\.text"):
        run({**job, "source": source})
    with pytest.raises(SpecError, match="x: text: column 'n' is int64, not text"):
        run({**job, "source": {**source, "keep": ["n"]}})
    with pytest.raises(SpecError, match="load: text, n: only a job has columns to name"):
        load(entry["model"], text=["text", "n"])
