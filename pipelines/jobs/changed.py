"""Input files that were rewritten since they were labelled: said, and never labelled twice in silence.

A rewritten file has other splits than before. Without a choice the job is refused, because the output would hold both
the old and the new rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from rich.console import Console

from tagstream.pipelines.jobs.job import Job
from tagstream.schemas.errors import LedgerError
from tagstream.transforms.io.contracts import Progress, ReplacingSink

Choice = Literal["replace", "keep"]
_SHOWN = 3


def refusal(changed: list[str], where: str) -> LedgerError:
    """The error for files that were rewritten, with both ways on."""
    return LedgerError(
        f"{_listed(changed)} since {where} was written; with the new rows its old rows would be there twice. "
        "--replace-changed labels the new files and takes the old rows out; --keep-changed leaves the old rows and "
        "does not read the new files"
    )


def settle(
    job: Job, progress: dict[str, Progress], choice: Choice | None, console: Console, label: Callable[[Job], None]
) -> bool:
    """Do with rewritten files what was chosen. `label`: runs a job to its end. True if the output has changed.

    Raises LedgerError if nothing was chosen, or the sink can't do it.
    """
    changed = job.changed(progress)
    if not changed:
        return False
    if choice is None:
        raise refusal(sorted(changed), job.spec.output)
    if choice == "keep":
        job.splits = [split for split in job.splits if split.payload.get("name") not in changed]
        console.print(f"{_listed(sorted(changed))}; the old rows stay and the new files are not read", highlight=False)
        return False
    if job.limit is not None:
        raise LedgerError("--replace-changed labels whole files: leave out --limit")
    sink = job.sink
    if not isinstance(sink, ReplacingSink) or job.spec.runner.type != "local" or not sink.can_replace:
        raise LedgerError(
            f"--replace-changed works from Parquet to a local Parquet folder on this machine; this output is "
            f"{job.spec.output} ({job.spec.sink.type}, runner {job.spec.runner.type}). --keep-changed leaves the old "
            f"rows of {_names(sorted(changed))}; --overwrite starts anew"
        )
    console.print(f"{_listed(sorted(changed))}; labelling them anew", highlight=False)
    splits = [split for split in job.splits if split.payload.get("name") in changed]
    old = {split for splits in changed.values() for split in splits} | {split.id for split in splits}
    part = replace(job, sink=sink.aside(job.fingerprint()), splits=splits)
    label(part)
    if not part.left(part.sink.progress()):  # else it was asked to stop: the next run goes on with what is aside
        sink.switch(old, {split.id: split.stop or 0 for split in splits})
        return True
    job.splits = [split for split in job.splits if split not in splits]
    return False


def _listed(names: list[str]) -> str:
    return f"{len(names):,} {'file was' if len(names) == 1 else 'files were'} rewritten ({_names(names)})"


def _names(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
