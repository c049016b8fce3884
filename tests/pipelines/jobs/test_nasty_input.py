"""2,000 rows of the worst texts of real data. Each is labelled, or dead for the right reason. None stops the job."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.models import make_model, random_texts
from tests.pipelines.bulk_jobs import BulkJob

SURROGATE = b"\xed\xa0\x80"
"""U+D800 as some systems write it, which is not valid UTF-8."""

KINDS: dict[str, list[bytes | None]] = {
    "null": [None],
    "empty": [b"", b" ", b"\n\t\r", "\u00a0\u200b\ufeff".encode()],
    "surrogate": [SURROGATE, b"a " + SURROGATE, SURROGATE + b"\xed\xb0\x80", b"x" * 1_000_000 + SURROGATE],
    "bytes": [b"\xff", b"\xc0\x80", b"caf\xe9", b"\xf0\x9f\x98", bytes(range(128, 256)), b"\xf8\x88\x80\x80\x80"],
    "nul": [b"\x00", b"a\x00b", b"\x00" * 100, b"free \x00 prize"],
    "control": [bytes(range(1, 32)), b"\x7f\x1b[31m", "\u0085\u2028\u2029".encode()],
    "emoji": ["😀".encode(), "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪".encode(), "😀".encode() * 500],
    "right to left": ["שלום עולם".encode(), "مرحبا \u202eabc\u202c".encode()],
    "combining": ["Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢".encode(), b"a" + "\u0301".encode() * 5_000],
    "unassigned": ["\U0010ffff\ufffe\uffff\ue000".encode(), "𝒻𝓇𝑒𝑒".encode(), "你好，世界".encode()],  # noqa: RUF001
    "megabyte": [b"x" * 1_000_000, b"free prize " * 90_000, "é".encode() * 500_000, b"!" * 50_000],
    "100,000 tokens": [b"free " * 100_000],
    "special tokens": [b"[CLS] [SEP] [PAD] [UNK] [MASK]", b"<s> </s> <|endoftext|>", b"##a ##b"],
    "markup": [b"<script>alert(1)</script>", b"'; DROP TABLE x; --", b'{"a": [1, "\\ud800"]}', b"%s %n {0} ${HOME}"],
}


def expected(value: bytes | None) -> str | None:
    """The code that a row must die with. None for a row that must get a label."""
    if value is None:
        return "null_text"
    try:
        value.decode()
    except UnicodeDecodeError:
        return "bad_encoding"
    return None


@pytest.fixture(scope="module")
def rows() -> list[bytes | None]:
    """Each nasty text among ordinary texts. The short ones come often."""
    chooser = random.Random(0)
    texts: list[bytes | None] = [value for values in KINDS.values() for value in values]
    small = [value for value in texts if value is None or len(value) < 10_000]
    texts += chooser.choices(small, k=800)
    texts += [text.encode() for text in random_texts(2_000 - len(texts), seed=1)]
    chooser.shuffle(texts)
    assert len(texts) == 2_000
    return texts


@pytest.mark.parametrize("long_text", ["truncate", "dead_letter"])
def test_every_row_ends_labelled_or_dead(tmp_path: Path, rows: list[bytes | None], long_text: str) -> None:
    """Python's own decoder and the model's window decide which rows die. Texts keep every byte."""
    job = BulkJob(tmp_path)
    (tmp_path / "in").mkdir()
    table = pa.table({"id": pa.array(range(2_000), pa.int64()), "text": pa.array(rows, pa.binary()).view(pa.string())})
    pq.write_table(table, tmp_path / "in/nasty.parquet", row_group_size=300)
    model = make_model(tmp_path / "model")
    infer = [{"model": str(model), "as": "tag", "long_text": long_text, "provenance": ["tokens", "truncated"]}]
    report = job.run(infer=infer, max_dead=1, source__split_rows=700)
    assert (report.state, report.counts.rows_in) == ("done", 2_000)

    codes = {i: code for i, value in enumerate(rows) if (code := expected(value))}
    dead = dict(job.dead('"row".id, code'))
    labels = {id_: (tag, tokens, cut) for id_, tag, tokens, cut in job.labels("id, tag, tag_tokens, tag_truncated")}
    too_long = {id_ for id_, code in dead.items() if code == "too_long"}
    assert {id_: code for id_, code in dead.items() if code != "too_long"} == codes
    assert sorted([*labels, *dead]) == list(range(2_000))
    assert {tag for tag, *_ in labels.values()} <= {"ham", "spam"}
    of_long = rows.index(KINDS["100,000 tokens"][0])
    if long_text == "truncate":
        assert not too_long
        assert labels[of_long] == (labels[of_long][0], 100_002, True)
        assert all(cut == (tokens > 64) for _, tokens, cut in labels.values())
    else:
        assert of_long in too_long
        assert not any(cut for *_, cut in labels.values())
        assert all(len(rows[i]) > 60 for i in too_long)
    payloads = dict(job.dead('"row".id, payload'))
    assert payloads == {i: rows[i] for i in dead}


def test_same_rows_without_a_model(tmp_path: Path, rows: list[bytes | None]) -> None:
    """The constant backend labels the same rows as a model, and a binary column may hold the text."""
    job = BulkJob(tmp_path)
    (tmp_path / "in").mkdir()
    table = pa.table({"id": pa.array(range(2_000), pa.int64()), "text": pa.array(rows, pa.binary())})
    pq.write_table(table, tmp_path / "in/nasty.parquet")
    job.run(max_dead=1, source__split_rows=2_000, blocks__bytes=100_000)
    codes = {i: code for i, value in enumerate(rows) if (code := expected(value))}
    assert dict(job.dead('"row".id, code')) == codes
    assert job.labels() == [i for i in range(2_000) if i not in codes]
