"""Shows the state of jobs that run on Flink, and stops them. Knows nothing of Beam."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from tagstream.pipelines.jobs.job import Job
from tagstream.pipelines.runners.flink_rest import ENDED, Flink, FlinkJob
from tagstream.schemas.errors import RunnerError, SpecError
from tagstream.schemas.runner_spec import FlinkRunner
from tagstream.schemas.spec import JobSpec

STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Target:
    """The jobs of one name or id on a cluster. `spec`: their specification, if the user gave it."""

    flink: Flink
    name: str
    spec: JobSpec | None = None

    @classmethod
    def of(cls, spec: JobSpec) -> Target:
        """The jobs that were submitted with a specification. Raises SpecError."""
        if not isinstance(spec.runner, FlinkRunner):
            raise SpecError(f"runner.type is {spec.runner.type}: only jobs on flink run on without their command")
        return cls(Flink(spec.runner.rest), spec.name, spec)

    def jobs(self) -> list[FlinkJob]:
        """The jobs, the latest first. Raises RunnerError if there are none."""
        if not (found := self.flink.jobs_of(self.name)):
            raise RunnerError(f"Flink at {self.flink.rest} knows no job named {self.name}")
        return found

    def status(self) -> list[dict[str, Any]]:
        """One entry for each job: id, name, state, seconds, url, latest failure.

        With a specification, each entry also has the rows that all of the jobs together have committed.
        """
        ledger: dict[str, int] = {}
        if self.spec is not None:
            with Job.open(self.spec) as job:
                ledger = {"committed": job.rows_done(job.sink.progress())} | ({} if job.live else {"of": job.rows})
        return [
            {
                "job": job.id,
                "name": job.name,
                "state": job.state,
                "seconds": round((job.ended or time.time() * 1000) / 1000 - job.started / 1000, 1),
                "url": self.flink.url(job),
                "failure": next((text.partition("\n")[0] for text in self.flink.failures(job)), None),
                **ledger,
            }
            for job in self.jobs()
        ]

    def stop(self, console: Console) -> list[FlinkJob]:
        """Stop the running jobs and wait for their end. The workers commit the rows that they have read.

        Raises RunnerError if a job does not end.
        """
        running = [job for job in self.jobs() if job.state not in ENDED]
        for job in running:
            self.flink.cancel(job)
        ends = time.monotonic() + STOP_SECONDS
        with console.status("stopping"):
            while any(job.state not in ENDED for job in self.jobs()):
                if time.monotonic() > ends:
                    raise RunnerError(f"{self.name} has not ended after {STOP_SECONDS:.0f} s; see {self.flink.rest}")
                time.sleep(0.3)
        return running


def print_status(console: Console, found: list[dict[str, Any]]) -> None:
    """Print the latest job in detail, and one line for each earlier job."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    latest = found[0]
    table.add_row("job", f"{latest['name']} ({latest['job']})")
    table.add_row("state", f"{latest['state'].lower()}, {latest['seconds']:,.0f} s")
    if "committed" in latest:
        of = f" of {latest['of']:,} rows" if "of" in latest else " positions"
        table.add_row("committed", f"{latest['committed']:,}{of}")
    if latest["failure"]:
        table.add_row("last failure", latest["failure"])
    table.add_row("dashboard", latest["url"])
    for earlier in found[1:]:
        table.add_row("earlier", f"{earlier['name']} {earlier['state'].lower()}")
    console.print(table, soft_wrap=True)
