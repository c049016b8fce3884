"""Spans equal those of transformers' pipeline, row by row, whatever the tokenizer does to the text."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream import load, run
from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import InferEntry, JobSpec
from tagstream.transforms.inference.backends.registry import describe
from tests.models import WORDS, make_model, random_texts

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
ODD = ["", "!", "ÉCOLE Zürich 中文 😀👨‍👩‍👧 naïve", "e\u0301a free\u00a0prize", "ﬁne ½ Ⅷ ﷺ now", "a\tb\nc  d ", " free"]
TEXTS = [*random_texts(30, seed=3, longest=25), *ODD]
STRATEGIES = ["none", "simple", "first", "average", "max"]


def tagger(folder: Path, architecture: str = "bert", labels: tuple[str, ...] = LABELS, **settings) -> Path:
    seed = {"roberta": 4}.get(architecture, 0)  # gives several labels
    return make_model(
        folder, architecture, head="AutoModelForTokenClassification", labels=labels, seed=seed, **settings
    )


def theirs(folder: Path, texts: list[str], strategy: str) -> list[list[tuple]]:
    """What transformers' pipeline gives, one text at a time."""
    import warnings

    from transformers import pipeline

    made = pipeline("token-classification", str(folder), aggregation_strategy=strategy, device="cpu")
    name = "entity" if strategy == "none" else "entity_group"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [made(text) if text else [] for text in texts]
    return [[(one[name], one["start"], one["end"], float(one["score"])) for one in row] for row in found]


def ours(folder: Path, texts: list[str], strategy: str, **settings) -> list[list[tuple]]:
    with load(str(folder), as_="found", aggregation_strategy=strategy, **settings) as model:
        rows = model.predict(texts)
    assert rows["error"].null_count == len(rows)
    for text, row in zip(texts, rows["found"].to_pylist(), strict=True):
        assert [one["text"] for one in row] == [text[one["start"] : one["end"]] for one in row]
    return [[tuple(one[n] for n in ("label", "start", "end", "score")) for one in r] for r in rows["found"].to_pylist()]


def check(folder: Path, texts: list[str], strategy: str, **settings) -> None:
    found, expected = ours(folder, texts, strategy, **settings), theirs(folder, texts, strategy)
    assert [[one[:3] for one in row] for row in found] == [[one[:3] for one in row] for row in expected]
    scores = [[one[3] for row in rows for one in row] for rows in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert len({one[0] for row in found for one in row}) > 1, "spans all alike would show nothing"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta"])
def test_equal_to_transformers(tmp_path: Path, architecture: str, strategy: str) -> None:
    """Labels, characters and scores, batched and padded."""
    check(tagger(tmp_path / "model", architecture), TEXTS, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pieces_that_do_not_say_where_words_begin(tmp_path: Path, strategy: str) -> None:
    """A tokenizer of bytes: words are told by spaces, and several tokens make one character."""
    check(tagger(tmp_path / "model", "roberta", bytewise={"pad": "<|pad|>"}), [t for t in TEXTS if t], strategy)


@pytest.mark.parametrize(
    "normalizer",
    ["BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Strip", "StripAccents", "Replace", "Prepend"],
)
@pytest.mark.parametrize("strategy", ["simple", "first"])
def test_normalisers(tmp_path: Path, normalizer: str, strategy: str) -> None:
    """Spans count the characters of the text as it came, although the model sees another."""
    from tokenizers import normalizers
    from transformers import PreTrainedTokenizerFast

    folder = tagger(tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    made = {"Replace": ("free", "prize"), "Prepend": ("a ",)}.get(normalizer, ())
    steps = [getattr(normalizers, normalizer)(*made)]
    if normalizer == "StripAccents":
        steps = [normalizers.NFD(), *steps]
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.save_pretrained(folder)
    check(folder, TEXTS, strategy)


def test_labels_without_prefixes(tmp_path: Path) -> None:
    """As of part-of-speech taggers: every token has a tag, and neighbours of one tag are a span."""
    check(tagger(tmp_path / "model", labels=("NOUN", "VERB", "ADJ-X")), TEXTS, "simple")


def test_windows_give_each_token_once(tmp_path: Path) -> None:
    """A text longer than the model's window: the spans tile it, none twice, none of a token missing."""
    folder = tagger(tmp_path / "model", labels=("NOUN", "VERB", "ADJ"))
    text = " ".join(WORDS[i % len(WORDS)] for i in range(300))
    for length in (16, 17, 63, 64):
        (row,) = ours(folder, [text], "none", long_text="window", max_length=length)
        covered = [letter for _, start, stop, _ in row for letter in text[start:stop]]
        assert "".join(covered) == text.replace(" ", "")
        (cut,) = ours(folder, [text], "none", max_length=length)
        assert [one[:3] for one in row[: length // 2]] == [one[:3] for one in cut[: length // 2]]


def test_redaction(tmp_path: Path) -> None:
    """Spans are replaced by their label; kept labels and the spaces around stay; the spans do not repeat the text."""
    folder = tagger(tmp_path / "model")
    texts = [text for text in TEXTS if text]
    spans = ours(folder, texts, "first")
    with load(
        str(folder), as_="x", aggregation_strategy="first", redact={"with": "<{label}>", "keep": ["LOC"]}
    ) as model:
        rows = model.predict(texts)
    assert [field.name for field in rows.schema.field("x").type.value_type] == ["label", "start", "end", "score"]
    for text, found, redacted in zip(texts, spans, rows["x_text"].to_pylist(), strict=True):
        expected = text
        for label, start, stop, _ in reversed(found):
            if label == "PER" and text[start:stop].strip():
                expected = expected[:start] + "<PER>" + expected[stop:]
        assert redacted == expected


def test_thresholds_and_names(tmp_path: Path) -> None:
    """Spans below the threshold of their label are left out, and labels may have names of the user's."""
    folder = tagger(tmp_path / "model")
    every = ours(folder, TEXTS, "simple")
    scores = sorted(score for row in every for label, *_, score in row if label == "PER")
    least = scores[len(scores) // 2]
    found = ours(folder, TEXTS, "simple", labels={"PER": "person"}, thresholds={"person": least})
    expected = [[(label.replace("PER", "person"), *rest) for label, *rest in row] for row in every]
    assert found == [[one for one in row if one[0] != "person" or one[3] >= least] for row in expected]


def test_remembered_answers(tmp_path: Path) -> None:
    """With `memory_bytes`, texts that come again have the same spans."""
    folder = tagger(tmp_path / "model")
    with load(str(folder), as_="x", memory_bytes=1 << 20) as model:
        first, second = model.predict(TEXTS), model.predict([*TEXTS[::-1], "free now"])
        assert first["x"].to_pylist() == second["x"].to_pylist()[: len(TEXTS)][::-1]
    with load(str(folder), as_="x", memory_bytes=2000) as model:  # room for two or three answers
        for _ in range(2):
            assert model.predict(TEXTS)["x"].to_pylist() == first["x"].to_pylist()


def test_onnx_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported token classifier."""
    monkeypatch.setenv("TAGSTREAM_CACHE", str(tmp_path / "cache"))
    check(tagger(tmp_path / "model"), [text for text in TEXTS if text], "first", backend="onnx")


def test_columns(tmp_path: Path) -> None:
    """A list of structs; the task follows from the model."""
    head, said = describe(InferEntry(model=str(tagger(tmp_path / "model")), as_="x"))
    assert said["task"] == "token-classification"
    assert [str(field) for field in head.fields] == [
        "pyarrow.Field<x: list<item: struct<label: string, start: int32, end: int32, score: float, text: string>>>",
        "pyarrow.Field<x_truncated: bool>",
    ]
    counted = pa.array(
        [[{"label": "PER"}, {"label": "LOC"}], [], [{"label": "PER"}]], pa.list_(head.fields[0].type.value_type)
    )
    assert head.tally(counted) == {"PER": 2, "LOC": 1}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"thresholds": {"ORG": 0.5}}, "thresholds: no label 'ORG'; there are PER, LOC"),
        ({"labels": {"B-PER": "x"}}, "labels: the model has no 'B-PER'; it has PER, LOC"),
        ({"redact": {"keep": ["DATE"]}}, r"redact\.keep: no label 'DATE'; there are PER, LOC"),
        ({"redact": {}, "aggregation_strategy": "none"}, "redact: needs whole spans"),
        ({"abstain": "x"}, "abstain: has no effect on token-classification"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, settings: dict, said: str) -> None:
    """Refused when the job is planned."""
    with pytest.raises(SpecError, match=said):
        describe(InferEntry.model_validate({"model": str(tagger(tmp_path / "model")), "as": "x", **settings}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"payload": True}, "payload: dead letters would hold the text that 'x' redacts"),
        (
            {"source": {"type": "parquet", "path": "in", "text": "body", "keep": ["body"]}},
            r"source\.keep: has the text",
        ),
        (
            {
                "source": {"type": "parquet", "path": "in", "text": "body", "keep": ["other"]},
                "infer": [{"model": "m", "as": "x", "redact": {}, "text": "other"}],
            },
            r"source\.keep: has the text 'other', which 'x' redacts; leave it out, and make it source\.text: other",
        ),
        (
            {
                "source": {"type": "kafka", "servers": "k:9092", "topics": "in", "text": "value"},
                "sink": {"type": "kafka", "topic": "out", "mode": "headers"},
            },
            r"sink\.mode: headers passes the message on",
        ),
    ],
)
def test_text_stays_nowhere_else(change: dict, said: str) -> None:
    """A job that redacts keeps the text in no dead letter, no column and no message."""
    job = {
        "source": {"type": "parquet", "path": "in", "text": "body"},
        "infer": [{"model": "m", "as": "x", "redact": {}}],
        "sink": {"type": "parquet", "path": "out"},
        "payload": False,
    }
    assert JobSpec.model_validate(job).infer[0].redact is not None
    with pytest.raises(ValueError, match=said):
        JobSpec.model_validate({**job, **change})


def test_other_entries_may_not_copy_what_is_redacted(tmp_path: Path) -> None:
    """Spans with their words, answers and new texts are refused beside a redacted text."""
    pq.write_table(pa.table({"id": [1], "text": ["free"]}), tmp_path / "in.parquet")
    folder = str(tagger(tmp_path / "model"))
    job = {
        "name": "job",
        "source": {"type": "parquet", "path": str(tmp_path / "in.parquet"), "id": "id"},
        "infer": [{"model": folder, "as": "x", "redact": {}}, {"model": folder, "as": "y"}],
        "sink": {"type": "parquet", "path": str(tmp_path / "out")},
        "payload": False,
    }
    with pytest.raises(SpecError, match="y would write words of the text that x redacts"):
        run(job)


def test_long_text_is_redacted_whole(tmp_path: Path) -> None:
    """In windows, unless a long text is to be a dead letter: never cut, which would leave its end as it is."""
    folder = tagger(tmp_path / "model", labels=("NAME", "NAME-2"))
    text = " ".join(WORDS[i % len(WORDS)] for i in range(300))
    with load(str(folder), as_="x", redact={"with": ""}) as model:
        assert model.predict([text])["x_text"][0].as_py().strip() == ""
    with pytest.raises(SpecError, match="redact: long_text: truncate would leave the end of a long text as it is"):
        load(str(folder), as_="x", redact={}, long_text="truncate")


def test_windows_beside_texts_without_tokens(tmp_path: Path) -> None:
    """A text in two windows and one without any token are as many sequences as texts: nothing is mixed up."""
    folder = tagger(tmp_path / "model", "roberta", bytewise={"pad": "<|pad|>"})
    text = "abcdefghij " * 9
    alone = ours(folder, [text], "none", long_text="window")
    with load(str(folder), as_="found", aggregation_strategy="none", long_text="window") as model:
        rows = model.predict(["", text])
    assert rows["error"][0].as_py().startswith("tokenisation_failed")
    assert [tuple(one[n] for n in ("label", "start", "end")) for one in rows["found"].to_pylist()[1]] == [
        one[:3] for one in alone[0]
    ]
