"""Models that read text at scale: from a file, a topic or a table to labels, with every row accounted for.

    import tagstream

    report = tagstream.run("job.yaml")                  # what the command `tagstream run` does
    with tagstream.load("tagstream/spam") as model:
        labels = model.predict(["You won a prize"])     # an Arrow table

Whatever is named in `__all__` is the public interface. Names below that (`tagstream.transforms`, ...) may change.
Importing this package imports nothing heavy: each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from tagstream.beam import FailedRow as FailedRow
    from tagstream.beam import Infer as Infer
    from tagstream.jobs import evaluate as evaluate
    from tagstream.jobs import plan as plan
    from tagstream.jobs import run as run
    from tagstream.model import Model as Model
    from tagstream.model import load as load
    from tagstream.pipelines.jobs.plan import Plan as Plan
    from tagstream.pipelines.report.report import Report as Report
    from tagstream.schemas.errors import TagstreamError as TagstreamError
    from tagstream.transforms.io.memory import Memory as Memory

_HOMES = {
    "run": "jobs",
    "plan": "jobs",
    "evaluate": "jobs",
    "load": "model",
    "Model": "model",
    "Infer": "beam",
    "FailedRow": "beam",
    "Memory": "transforms.io.memory",
    "Report": "pipelines.report.report",
    "Plan": "pipelines.jobs.plan",
    "TagstreamError": "schemas.errors",
}
__all__ = [  # noqa: RUF022  in the order in which they are met; all of them are in _HOMES
    "run", "plan", "evaluate", "load", "Model", "Memory", "Infer", "FailedRow", "Report", "Plan", "TagstreamError",
    "__version__",
]  # fmt: skip


if not TYPE_CHECKING:  # a type checker would take any name, misspelt ones too

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            return version("tagstream")
        if name not in _HOMES:
            raise AttributeError(f"module 'tagstream' has no attribute {name!r}")
        found = getattr(importlib.import_module(f"tagstream.{_HOMES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted(__all__)
