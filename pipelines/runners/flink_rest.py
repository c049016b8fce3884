"""Talks to a Flink cluster through its REST interface: slots, jobs, failures. Knows nothing of Beam.

The paths are documented at https://nightlies.apache.org/flink/flink-docs-stable/docs/ops/rest_api/.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from tagstream.schemas.errors import RunnerError
from tagstream.transforms.runtime.retry import every, retrying

TIMEOUT = 5.0
ENDED = frozenset({"FINISHED", "FAILED", "CANCELED", "SUSPENDED"})


@dataclass(frozen=True)
class FlinkJob:
    """One job on the cluster. `started`, `ended`: milliseconds since 1970; `ended` is 0 while the job runs."""

    id: str
    name: str
    state: str
    started: int
    ended: int = 0


@dataclass(frozen=True)
class Stage:
    """One stage of a job on the cluster. `written`: records that it has passed on, counted at the end of bundles."""

    name: str
    state: str
    written: int


class Flink:
    """A Flink cluster. Every method raises RunnerError if the cluster does not answer."""

    def __init__(self, rest: str, patience: float = 0.0) -> None:
        """`rest`: the cluster's REST address. `patience`: seconds to wait for an answer while a JobManager restarts."""
        self.rest = rest.rstrip("/")
        self.patience = patience

    def slots(self) -> tuple[int, int]:
        """How many task slots the cluster has, and how many of them are free."""
        overview = self._call("/overview")
        return overview["slots-total"], overview["slots-available"]

    def jobs(self) -> list[FlinkJob]:
        """Every job that the cluster remembers, the latest first."""
        found = [
            FlinkJob(j["jid"], j["name"], j["state"], j["start-time"], max(0, j["end-time"]))
            for j in self._call("/jobs/overview")["jobs"]
        ]
        return sorted(found, key=lambda job: -job.started)

    def job(self, name_or_id: str) -> FlinkJob | None:
        """The latest job with this name or id."""
        return next((job for job in self.jobs() if name_or_id in {job.name, job.id}), None)

    def jobs_of(self, name: str) -> list[FlinkJob]:
        """Jobs with this name or id, and submissions of the specification with this name. The latest comes first."""
        submissions = re.compile(re.escape(name) + "-[0-9a-f]{8}")
        return [job for job in self.jobs() if name in {job.name, job.id} or submissions.fullmatch(job.name)]

    def stages(self, job: FlinkJob) -> list[Stage]:
        """The stages of a job, in the order of the data."""
        vertices = self._call(f"/jobs/{job.id}")["vertices"]
        return [Stage(v["name"], v["status"], v["metrics"]["write-records"]) for v in vertices]

    def cancel(self, job: FlinkJob) -> None:
        """End a job. No row is lost: workers commit the rows that they can, and the next run reads the others again."""
        self._call(f"/jobs/{job.id}?mode=cancel", "PATCH")

    def failures(self, job: FlinkJob) -> list[str]:
        """Stack traces of the job's failures, the latest first."""
        exceptions = self._call(f"/jobs/{job.id}/exceptions")
        entries = exceptions.get("exceptionHistory", {}).get("entries", [])
        texts = [entry.get("stacktrace", "") for entry in entries]
        return texts or [text for text in [exceptions.get("root-exception")] if text]

    def url(self, job: FlinkJob) -> str:
        """The job's page on the dashboard."""
        return f"{self.rest}/#/job/{job.id}/overview"

    def _call(self, path: str, method: str = "GET") -> Any:
        return retrying(RunnerError, every(1.0), seconds=self.patience)(self._ask, path, method)

    def _ask(self, path: str, method: str) -> Any:
        request = urllib.request.Request(self.rest + path, method=method)  # noqa: S310  the specification allows http(s) only
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise RunnerError(f"Flink at {self.rest} answers {error.code} to {method} {path}") from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise RunnerError(f"Flink at {self.rest} does not answer ({reason}). Is runner.rest right?") from error
        return json.loads(text) if text else {}
