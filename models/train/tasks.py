"""The bundled classifiers by name."""

from __future__ import annotations

from models.train import sentiment, spam

TASKS = {task.name: task for task in (sentiment.TASK, spam.TASK)}
