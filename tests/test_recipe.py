"""The training recipe, as far as it can be tested without the data."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification  # noqa: E402

from models.train import export, loop, shrink, teacher, tokenizer  # noqa: E402
from models.train.loop import Lessons, Settings  # noqa: E402
from models.train.rounding import rounded  # noqa: E402


@pytest.fixture
def model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    return BertForSequenceClassification(config)


def test_a_student_learns_from_labels_and_scores(model: BertForSequenceClassification) -> None:
    encoded = [[2, 5, 6, 3], [2, 7, 3], [2, 8, 9, 10, 3]]
    lessons = Lessons()
    lessons.add("labelled", [0.0, 0.0, 1.0])
    lessons.add("of two labels only", [1.0, 0.0, 0.0], (1.0, 0.0, 1.0))
    scores = torch.tensor(loop.score(model, encoded)).softmax(dim=-1).tolist()
    soft = teacher.soften(model, encoded, lessons, ["unlabelled"], trust=0.25)
    assert soft.texts == ["labelled", "of two labels only", "unlabelled"]
    assert soft.targets[0] == pytest.approx([0.25 * scores[0][0], 0.25 * scores[0][1], 0.75 + 0.25 * scores[0][2]])
    assert soft.targets[1][1] == 0.0  # what the row cannot speak about stays out
    assert soft.targets[2] == pytest.approx(scores[2])
    assert [sum(target) for target in soft.targets] == pytest.approx([1.0] * 3)
    assert soft.masks == [[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
    assert soft.states is not None
    with torch.inference_mode():
        pooled = model.bert(input_ids=torch.tensor([encoded[1]])).pooler_output
    assert torch.allclose(torch.tensor(soft.states[1]).float(), pooled[0], atol=0.02)


def test_some_lessons_keep_what_belongs_together() -> None:
    lessons = Lessons()
    for number in range(100):
        lessons.add(str(number), [number, 0.0], (1.0, number))
    some = lessons.some(0.2, random.Random(1))
    assert some.texts == [str(int(target)) for target, _ in some.targets] == [str(int(mask)) for _, mask in some.masks]
    assert len(set(some.texts)) == 20
    assert lessons.some(1.0, random.Random(1)) == lessons


def test_training_learns(model: BertForSequenceClassification) -> None:
    rng = random.Random(3)
    lessons, encoded = Lessons(), []
    for number in range(240):
        label = number % 3
        lessons.add("", [float(label == one) for one in range(3)])
        encoded.append([2, 10 + label, *(rng.randrange(20, 40) for _ in range(rng.randrange(1, 6))), 3])
    loop.train(model, encoded, lessons, Settings(learning_rate=5e-3, tokens=128), epochs=8)
    right = loop.score(model, encoded, exact=True).argmax(axis=1) == [number % 3 for number in range(240)]
    assert right.mean() > 0.95


def test_a_student_comes_to_its_teachers_states(model: BertForSequenceClassification) -> None:
    """Where the target says nothing, the states still do."""
    encoded = [[2, 10 + number % 3, 3] for number in range(60)]
    lessons = Lessons()
    for _ in encoded:
        lessons.add("", [0.0, 0.0, 0.0])
    wanted = np.eye(16, dtype=np.float16)[[number % 3 for number in range(60)]]
    lessons.states = wanted
    before = np.abs(loop.score_with_states(model, encoded)[1] - wanted).mean()
    loop.train(model, encoded, lessons, Settings(learning_rate=5e-3, tokens=64), epochs=40)
    assert np.abs(loop.score_with_states(model, encoded)[1] - wanted).mean() < before / 4


@pytest.mark.parametrize("kept_as", [torch.float16, torch.float8_e4m3fn])
def test_a_folder_loads_as_it_was_measured(
    model: BertForSequenceClassification, words: Tokenizer, tmp_path: Path, kept_as: torch.dtype
) -> None:
    """Whatever its matrices are kept as, a plain loader computes in float32 and gets the scores of `stored`."""
    export.stored(model, kept_as)
    encoded = [[2, 5, 6, 3], [2, 7, 3]]
    logits = loop.score(model, encoded, exact=True)
    export.export(model, words, 2.0, tmp_path, 32, kept_as)
    kept = load_file(tmp_path / "model.safetensors")
    assert kept["bert.embeddings.word_embeddings.weight"].dtype == kept_as
    assert kept["classifier.weight"].dtype == torch.float16
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.dtype == torch.float32
    assert np.allclose(loop.score(loaded, encoded, exact=True), logits / 2, atol=1e-4)


def test_training_computes_with_what_is_kept(model: BertForSequenceClassification) -> None:
    """Rounding weights and embeddings beforehand changes nothing more."""
    model.eval()
    ids = torch.arange(2, 14)[None]

    def pooled(kept_as: torch.dtype) -> torch.Tensor:
        with torch.inference_mode(), rounded(model, kept_as):
            return model.bert(input_ids=ids).pooler_output

    kept_as = torch.float8_e4m3fn
    fine, coarse = pooled(torch.float16), pooled(kept_as)
    export.stored(model, kept_as)
    assert (pooled(kept_as) - coarse).abs().max() < (fine - coarse).abs().max() / 5


def test_rounding_is_small_and_ends_with_its_block(model: BertForSequenceClassification) -> None:
    model.eval()
    ids = torch.arange(2, 14)[None]
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        with rounded(model):
            coarse = model(input_ids=ids).logits
        again = model(input_ids=ids).logits
    assert torch.equal(plain, again)
    assert not torch.equal(plain, coarse)
    assert torch.allclose(plain, coarse, atol=0.1)


@pytest.fixture
def words() -> Tokenizer:
    pieces = [*tokenizer.SPECIAL, "a", "film", "awful", "lovely", "odd", "##ly", "http", "website", "link", "number"]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, "code", "phone"])}
    made = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = BertPreTokenizer()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.add_special_tokens(tokenizer.SPECIAL)
    return made


def test_a_student_keeps_its_teachers_weights(words: Tokenizer) -> None:
    config = BertConfig(
        vocab_size=words.get_vocab_size(), hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, num_labels=3, id2label={0: "negative", 1: "neutral", 2: "positive"},
    )  # fmt: skip
    whole = BertForSequenceClassification(config)
    kept = [*tokenizer.SPECIAL, *tokenizer.STAND_INS, "film", "lovely", "a"]
    shape = shrink.Shape(layers=(0, 2), intermediate=8, vocabulary=len(kept), positions=32)
    student = shrink.cut(whole, words, kept, shape, ["a lovely film", "a film"])
    assert student.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert (student.config.num_hidden_layers, student.config.intermediate_size) == (2, 8)
    table, theirs = student.bert.embeddings.word_embeddings.weight, whole.bert.embeddings.word_embeddings.weight
    assert torch.equal(table[kept.index("lovely")], theirs[words.token_to_id("lovely")])
    links = [words.token_to_id(piece) for piece in tokenizer.STAND_INS[tokenizer.LINK]]
    assert torch.allclose(table[kept.index(tokenizer.LINK)], theirs[links].mean(dim=0))
    second, last = student.bert.encoder.layer[1], whole.bert.encoder.layer[2]
    assert torch.equal(second.attention.self.query.weight, last.attention.self.query.weight)
    rows = {tuple(row) for row in last.intermediate.dense.weight.tolist()}
    assert all(tuple(row) in rows for row in second.intermediate.dense.weight.tolist())
    assert torch.equal(student.classifier.weight, whole.classifier.weight)
