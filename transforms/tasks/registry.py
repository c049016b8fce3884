"""Which tasks there are, by the `task` that an entry names, and which one a model does by itself."""

from __future__ import annotations

import importlib
from typing import Any

from tagstream.schemas import plugins
from tagstream.schemas.errors import ModelError
from tagstream.schemas.spec import InferEntry
from tagstream.transforms.tasks.contracts import TaskModule
from tagstream.transforms.tasks.model import Model
from tagstream.transforms.tasks.text_classification import Head

_TASKS = {"text-classification": "tagstream.transforms.tasks.text_classification"}


def task_module(name: str) -> TaskModule:
    """The module of a task. Raises SpecError."""
    module: TaskModule = (
        importlib.import_module(_TASKS[name]) if name in _TASKS else plugins.required(plugins.TASKS, name, "head")
    )
    return module


def open_head(entry: InferEntry, model: Model) -> Head:
    """What becomes of the model's logits. Raises as `task_of`, and SpecError for settings that do not fit the model."""
    return task_module(task_of(entry, model)).head(entry, model)


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
            raise ModelError(
                f"{model.name}: its config says {_said(model)}, which is not a {_all('KIND')}; choose a model whose "
                f"architecture ends in {_all('ARCHITECTURE')}"
            )
        return does
    module = task_module(entry.task)
    if not _fits(module, model):
        fit = (
            f"a model for {does}: write task: {does}, or leave task out" if does else "a model for no task that is here"
        )
        raise ModelError(
            f"{model.name}: task: {entry.task} needs a model whose architecture ends in {module.ARCHITECTURE}; "
            f"its config says {_said(model)}, which is {fit}"
        )
    return entry.task


def _task_of(model: Model) -> str | None:
    """The first task that takes the model; those of entry points are asked when none of ours does."""
    for name in _TASKS:
        if _fits(task_module(name), model):
            return name
    return next((name for name in sorted(plugins.installed(plugins.TASKS)) if _fits(task_module(name), model)), None)


def _fits(module: TaskModule, model: Model) -> bool:
    return any(name.endswith(module.ARCHITECTURE) for name in model.architectures or ())


def _said(model: Model) -> str:
    return ", ".join(model.architectures or ()) or "no architecture"


def _all(attribute: str) -> str:
    names = [*_TASKS, *sorted(plugins.installed(plugins.TASKS))]
    return " or ".join(dict.fromkeys(str(getattr(task_module(name), attribute)) for name in names))
