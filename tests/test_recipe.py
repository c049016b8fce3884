"""The training recipe, as far as it can be tested without the data."""

from __future__ import annotations

import random

import pytest

torch = pytest.importorskip("torch")
from transformers import BertConfig, BertForSequenceClassification  # noqa: E402

from models.train import loop, teacher  # noqa: E402
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
