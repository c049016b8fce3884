"""Answers equal those of transformers' pipeline (of version 4, the last that had it), row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream import load, run
from tagstream.schemas.errors import ModelError, SpecError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import describe
from tests.models import WORDS, make_model, random_texts

QUESTION = "who is free?"
TEXTS = [
    *random_texts(30, seed=3, longest=25),
    "!",
    "ÉCOLE Zürich 中文 😀 naïve",
    *random_texts(6, seed=5, longest=150),
]
TEXTS = [text for text in TEXTS if text]


def reader(folder: Path, architecture: str = "bert", **settings) -> Path:
    return make_model(folder, architecture, head="AutoModelForQuestionAnswering", **settings)


def theirs(folder: Path, question: str, text: str, *, longest: int = 15, impossible: bool = False, stride: int = 16):
    """`QuestionAnsweringPipeline` of transformers 4: select_starts_ends, decode_spans and words made whole."""
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(
        question, text, truncation="only_second", max_length=64, stride=stride, return_overflowing_tokens=True
    )
    least, answers = 1_000_000.0, []
    for window, ids in zip(encoded.encodings, encoded["input_ids"], strict=True):
        with torch.inference_mode():
            found = model(input_ids=torch.tensor([ids]))
        mask = np.array([number != 1 for number in window.sequence_ids])
        mask[np.array(ids) == tokenizer.cls_token_id] = False
        start, end = (np.where(mask, -10000.0, side[0].numpy()) for side in (found.start_logits, found.end_logits))
        start, end = (np.exp(side - side.max()) for side in (start, end))
        start, end = start / start.sum(), end / end.sum()
        if impossible:
            least = min(least, float(start[0] * end[0]))
        start[0] = end[0] = 0.0
        outer = np.tril(np.triu(np.outer(start, end)), longest - 1)
        s, e = np.unravel_index(outer.argmax(), outer.shape)
        first, last = window.token_to_word(int(s)), window.token_to_word(int(e))
        a, b = window.word_to_chars(first, sequence_index=1)[0], window.word_to_chars(last, sequence_index=1)[1]
        answers.append((text[a:b], float(outer[s, e]), a, b))
    best = max(answers, key=lambda answer: answer[1])
    return (None, least, None, None) if impossible and least > best[1] else best


def ours(folder: Path, texts: list[str], **settings) -> list[tuple]:
    with load(str(folder), as_="a", **settings) as model:
        rows = model.predict(texts)
    assert rows["error"].null_count == len(rows)
    return list(zip(*(rows[name].to_pylist() for name in ("a", "a_score", "a_start", "a_end")), strict=True))


def check(found: list[tuple], expected: list[tuple]) -> None:
    assert [(one[0], *one[2:]) for one in found] == [(one[0], *one[2:]) for one in expected]
    assert [one[1] for one in found] == pytest.approx([one[1] for one in expected], abs=1e-5)


@pytest.mark.parametrize("impossible", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_equal_to_transformers(tmp_path: Path, architecture: str, *, impossible: bool) -> None:
    """Answer, score and characters, short texts and texts of several windows, batched."""
    folder = reader(tmp_path / "model", architecture)
    expected = [theirs(folder, QUESTION, text, impossible=impossible) for text in TEXTS]
    found = ours(folder, TEXTS, question=QUESTION, handle_impossible_answer=impossible)
    check(found, expected)
    assert len({len(answer or "") for answer, *_ in found}) > 5, "answers all alike would show nothing"
    if impossible and architecture == "bert":
        assert any(answer is None for answer, *_ in found)


def test_longest_answer(tmp_path: Path) -> None:
    """In tokens."""
    folder = reader(tmp_path / "model")
    for longest in (1, 3):
        expected = [theirs(folder, QUESTION, text, longest=longest) for text in TEXTS]
        check(ours(folder, TEXTS, question=QUESTION, max_answer_len=longest), expected)


def test_several_questions(tmp_path: Path) -> None:
    """Each gets the answer that it gets alone."""
    folder = reader(tmp_path / "model")
    questions = {"who": QUESTION, "what": "what movie?", "when": "when later now?"}
    with load(str(folder), as_="a", questions=questions) as model:
        rows = model.predict([*TEXTS, None])
    assert rows["error"].to_pylist()[-1].startswith("null_text")
    for name, question in questions.items():
        found = list(
            zip(*(rows[f"a_{name}{end}"].to_pylist() for end in ("", "_score", "_start", "_end")), strict=True)
        )
        check(found[:-1], ours(folder, TEXTS, question=question))


def test_truncated_text(tmp_path: Path) -> None:
    """`long_text: truncate` reads the beginning only, and says so; `dead_letter` refuses."""
    folder = reader(tmp_path / "model")
    long = " ".join(WORDS[i % len(WORDS)] for i in range(200))
    with load(str(folder), as_="a", question=QUESTION, long_text="truncate") as model:
        row = model.predict([long, "free"])
        assert row["a_truncated"].to_pylist() == [True, False]
        assert row["a_end"][0].as_py() < len(long) // 2
    with load(str(folder), as_="a", question=QUESTION, long_text="dead_letter") as model:
        assert model.predict([long])["error"][0].as_py().startswith("too_long")


def test_question_that_fills_the_window(tmp_path: Path) -> None:
    """No room is left for the text: said at start, or by the row whose own question it is."""
    folder = reader(tmp_path / "model")
    with pytest.raises(ModelError, match=r"a: the question 'free free .*' has 70 tokens, which leaves no room"):
        load(str(folder), as_="a", question="free " * 70)
    asked = [QUESTION, "free " * 70, QUESTION, "free " * 39]
    pq.write_table(pa.table({"id": range(4), "text": TEXTS[:4], "q": asked}), tmp_path / "in.parquet")
    report = run(
        {
            "name": "job",
            "source": {"type": "parquet", "path": str(tmp_path / "in.parquet"), "id": "id", "keep": ["q"]},
            "infer": [{"model": str(folder), "as": "a", "text": ["q", "text"]}],
            "sink": {"type": "parquet", "path": str(tmp_path / "out")},
        }
    )
    assert dict(report.counts.dead) == {"too_long": 1}
    assert pq.read_table(tmp_path / "out-dead")["message"].to_pylist() == [
        "a: the question has 70 tokens, which leaves no room for a text"
    ]
    rows = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
    check(
        [(row["a"], row["a_score"], row["a_start"], row["a_end"]) for row in rows],
        [theirs(folder, asked[row["id"]].strip(), TEXTS[row["id"]]) for row in rows],
    )


def test_onnx_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported question-answering model."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    folder = reader(tmp_path / "model")
    check(ours(folder, TEXTS, question=QUESTION, backend="onnx"), ours(folder, TEXTS, question=QUESTION))


@pytest.mark.parametrize(
    "settings", [{}, {"question": "a", "questions": {"b": "c"}}, {"question": "a", "text": ["q", "t"]}]
)
def test_one_way_to_ask(tmp_path: Path, settings: dict) -> None:
    """None and several are refused."""
    entry = InferEntry.model_validate({"model": str(reader(tmp_path / "model")), "as": "a", **settings})
    with pytest.raises(SpecError, match="say what to ask, in one way"):
        describe(entry)
