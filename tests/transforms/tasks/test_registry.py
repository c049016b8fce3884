"""An entry's task follows from its model, or is named; a model that can't do it is refused with what it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tagstream.schemas.errors import ModelError, SpecError
from tagstream.schemas.infer_spec import TASKS
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.inference.backends.registry import describe
from tagstream.transforms.tasks.model import NoModel
from tagstream.transforms.tasks.registry import open_head, task_module
from tests.plugins import install


class Fake:
    """A model's config."""

    def __init__(self, *architectures: str) -> None:
        self.name, self.architectures, self.config = "acme/model", list(architectures), {}
        self.sentence = None
        self.labels, self.activation = ["ham", "spam"], "softmax"


def entry(**settings) -> InferEntry:
    return InferEntry.model_validate({"model": "acme/model", "as": "x", **settings})


def test_every_task_has_a_module() -> None:
    """What the specification lists can be opened."""
    for name in TASKS:
        module = task_module(name)
        assert module.ARCHITECTURE
        assert module.KIND


@pytest.mark.parametrize("task", [None, "text-classification"])
def test_task_follows_from_the_model(task: str | None) -> None:
    """Naming the task that the model does anyway changes nothing."""
    head = open_head(entry(task=task), Fake("BertForSequenceClassification"))
    assert (head.names, head.activation, head.model) == (("ham", "spam"), "softmax", "acme/model")
    assert open_head(entry(task=task), NoModel("constant:ham", ["ham"])).names == ("ham",)


def test_model_that_does_no_task() -> None:
    """Says what the model is, and what is accepted."""
    with pytest.raises(
        ModelError, match=r"config says BertForMaskedLM, which no task takes. A model is a sequence classifier \(…ForS"
    ):
        open_head(entry(), Fake("BertForMaskedLM"))
    with pytest.raises(ModelError, match=r"task: text-classification needs a sequence classifier \(…ForSeq"):
        open_head(entry(task="text-classification"), Fake("LlamaForCausalLM"))


def test_unknown_task() -> None:
    """Refused when the specification is read: what there is, and what was meant."""
    with pytest.raises(ValueError, match=r"there are: text-classification, .*; did you mean 'text-classification'\?"):
        entry(task="text-clasification")
    with pytest.raises(ValueError, match="no such task; there are: text-classification"):
        entry(task="fill-mask")


TASK = '''
from dataclasses import dataclass
import pyarrow as pa
from tagstream.transforms.tasks.text_classification import LabelHead

ARCHITECTURE = "ForShouting"
KIND = "shouter"

class Shouted(LabelHead):
    """Labels in capitals."""
    def columns(self, scores, tokens, truncated):
        label, *others = super().columns(scores, tokens, truncated)
        return [pa.array([text.upper() for text in label.to_pylist()]), *others]

def head(entry, model):
    return Shouted.of(entry, model.labels, model.activation, model.name)
'''


def test_task_of_another_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted by name; a model is checked against it; its head decides the columns."""
    install(tmp_path, "shout", "0.1", {"tagstream.tasks": "shouting = toy_shout"}, toy_shout=TASK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_shout", raising=False)
    told = (
        "acme/model: task: shouting needs a shouter (…ForShouting); its config says "
        "BertForSequenceClassification, which is a model for text-classification: write task: text-classification, or"
    )
    with pytest.raises(ModelError, match=re.escape(told)):
        open_head(entry(task="shouting"), Fake("BertForSequenceClassification"))
    assert type(open_head(entry(), Fake("BertForShouting"))).__name__ == "Shouted"
    with pytest.raises(ModelError, match=r"which no task takes.*, or a shouter \(…ForShouting\) for shouting"):
        open_head(entry(), Fake("BertForMaskedLM"))
    constant = InferEntry.model_validate({"task": "shouting", "backend": {"type": "constant", "label": "ham"}})
    head, identity = describe(constant)
    assert type(head).__name__ == "Shouted"
    assert identity == {"backend": "constant", "label": "ham", "task": "shouting"}  # other labels: another fingerprint
    with pytest.raises(SpecError, match=r"nothing that is installed offers 'gone' as one of tagstream.tasks"):
        task_module("gone")


@pytest.mark.parametrize("task", [name for name in TASKS if name != "text-classification"])
def test_backend_without_a_model_gives_labels_only(task: str) -> None:
    """Refused by name, whatever the task needs."""
    with pytest.raises(SpecError, match=f"task: backend constant gives labels only; {task} needs a model"):
        describe(InferEntry.model_validate({"task": task, "backend": {"type": "constant"}}))
