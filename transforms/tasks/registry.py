"""Which tasks there are, by the `task` that an entry names, and which one a model does by itself."""

from __future__ import annotations

import importlib
from typing import Any

from tagstream.schemas import plugins
from tagstream.schemas.errors import ModelError, SpecError
from tagstream.schemas.infer_spec import OF_TASKS, default_of
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks import text_classification
from tagstream.transforms.tasks.contracts import ChoosyModule, TaskModule
from tagstream.transforms.tasks.head import Head
from tagstream.transforms.tasks.model import Model

_TASKS = {
    "text-classification": "tagstream.transforms.tasks.text_classification",
    "token-classification": "tagstream.transforms.tasks.token_classification",
    "question-answering": "tagstream.transforms.tasks.question_answering",
    "zero-shot-classification": "tagstream.transforms.tasks.zero_shot_classification",
    "text-generation": "tagstream.transforms.tasks.text_generation",
    "text2text-generation": "tagstream.transforms.tasks.text2text_generation",
    "translation": "tagstream.transforms.tasks.text2text_generation",
    "summarization": "tagstream.transforms.tasks.text2text_generation",
    "feature-extraction": "tagstream.transforms.tasks.feature_extraction",
}


def task_module(name: str) -> TaskModule:
    """The module of a task. Raises SpecError."""
    module: TaskModule = (
        importlib.import_module(_TASKS[name]) if name in _TASKS else plugins.required(plugins.TASKS, name, "head")
    )
    return module


def open_head(entry: InferEntry, model: Model) -> Head:
    """The head of an entry. Raises as `task_of`, and SpecError for settings that do not fit the task or the model."""
    task = task_of(entry, model)
    module = task_module(task)
    used = getattr(module, "SETTINGS", text_classification.SETTINGS)
    if model.architectures is None and used is not text_classification.SETTINGS:
        raise SpecError(f"{entry.as_}: task: backend {entry.backend.type} gives labels only; {task} needs a model")
    given = {name for name in OF_TASKS if getattr(entry, name) != default_of(name)}
    if unused := sorted(given - set(used)):
        raise SpecError(f"{entry.as_}: {unused[0]}: has no effect on {task}; remove it")
    if entry.pair is not None and not getattr(module, "PAIRS", used is text_classification.SETTINGS):
        raise SpecError(f"{entry.as_}: text: {task} takes one text, not a pair")
    return module.head(entry, model)


def identity_of(entry: InferEntry, model: Model) -> dict[str, Any]:
    """The task as a part of the fingerprint; nothing for text-classification, which is older than its name here."""
    task = task_of(entry, model)
    return {} if task == "text-classification" else {"task": task}


def task_of(entry: InferEntry, model: Model) -> str:
    """The entry's task or, if it names none, the one that follows from the model's config.

    Raises ModelError if the model can't do the task, or none at all.
    """
    if model.architectures is None:
        return entry.task or next(iter(_TASKS))
    does = _task_of(model)
    if entry.task is None:
        if does is None:
            raise ModelError(f"{model.name}: its config says {_said(model)}, which no task takes. A model is {_all()}")
        return does
    module = task_module(entry.task)
    if not _fits(module, model, named=True):
        fit = (
            f"a model for {does}: write task: {does}, or leave task out" if does else "a model for no task that is here"
        )
        raise ModelError(
            f"{model.name}: task: {entry.task} needs a {module.KIND} (…{module.ARCHITECTURE}); "
            f"its config says {_said(model)}, which is {fit}"
        )
    return entry.task


def _task_of(model: Model) -> str | None:
    """The first task that takes the model; those of entry points are asked when none of ours does."""
    for name in _TASKS:
        if _fits(task_module(name), model):
            return name
    return next((name for name in sorted(plugins.installed(plugins.TASKS)) if _fits(task_module(name), model)), None)


def _fits(module: TaskModule, model: Model, *, named: bool = False) -> bool:
    if isinstance(module, ChoosyModule):
        return module.takes(model, named=named)
    return any(name.endswith(module.ARCHITECTURE) for name in model.architectures or ())


def _said(model: Model) -> str:
    return ", ".join(model.architectures or ()) or "no architecture"


def _all() -> str:
    modules = {name: task_module(name) for name in [*_TASKS, *sorted(plugins.installed(plugins.TASKS))]}
    return ", or ".join(f"a {m.KIND} (…{m.ARCHITECTURE}) for {name}" for name, m in modules.items())
