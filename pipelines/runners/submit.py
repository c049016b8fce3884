"""Runs a pipeline on a cluster: checks it, submits it, and follows it to its end.

An error of a worker that comes every time would make Flink restart the job for ever. So the failures that Flink reports
are searched for such an error, and the job ends with the worker's own message.
"""

from __future__ import annotations

import importlib.metadata
import re
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from tagstream.pipelines.runners.flink_rest import ENDED, Flink, FlinkJob, Stage
from tagstream.schemas import errors
from tagstream.schemas.errors import RunnerError, TagstreamError
from tagstream.schemas.runner_spec import FlinkRunner, OptionsRunner
from tagstream.transforms.runtime.job_context import TRANSIENT_NOTE
from tagstream.transforms.runtime.stop import Stop

POLL_SECONDS = 1.0
SUBMIT_SECONDS = 180.0
"""A healthy job runs 15 to 30 s after submission, most of which is staging of jars. A busy cluster takes longer."""
CONNECT_SECONDS = 5.0
JOB_SERVER_SECONDS = 20
WORKER_SECONDS = {"EXTERNAL": 180.0, "PROCESS": 180.0, "DOCKER": 600.0}
"""How long a running job may lack its first Python worker. After an installation the first worker compiles the Python
files of PyTorch and Beam, a minute on a slow machine. For a container, the image may have to be fetched."""
NO_WORKER = {
    "EXTERNAL": "does `tagstream workers` run beside each task manager, at environment.config ({config})? See its log",
    "DOCKER": "can the task managers run containers of {config}? See their logs",
    "PROCESS": "can the task managers start {config}? See their logs",
}
PATIENCE_SECONDS = 20.0
"""Seconds without a worker after which the user is told why the job waits."""
SILENCE_SECONDS = 60.0
"""How long a cluster with a running job may give no answer, because its JobManager restarts or its machine is busy."""
NEVER_MS = 10**13
"""Flink's checkpoint interval for live jobs, so long that no checkpoint ever comes. None is needed, because positions
come from the sink. None would succeed either: a slot answers a checkpoint only while all its seats are idle, and after
an expired checkpoint Flink restarts the job. Without any interval Flink may not restart failed jobs at all."""
GONE = "GONE"
"""The state of a job that the cluster has forgotten."""
Build = Callable[[beam.Pipeline], None]
Report = Callable[[str], None]
"""Called about once a second with the job's state, and the reason if it restarts."""


def submit_flink(
    spec: FlinkRunner, name: str, build: Build, stop: Stop, *, live: bool, say: Callable[[str], None]
) -> FlinkJob:
    """Start the job, and wait for its first worker or until `stop` is requested.

    Addresses and free slots are checked before the submission. `say`: tells the user a sentence. Raises RunnerError.
    """
    flink = Flink(spec.rest)
    _reachable("runner.job_server", spec.job_server, "start Beam's Flink job server")
    total, free = flink.slots()
    if free < spec.parallelism:
        raise RunnerError(
            f"Flink has {total} task slots, {free} free; runner.parallelism asks for {spec.parallelism}. "
            "Lower it, add task managers, or cancel another job"
        )
    here = {"localhost", "127.0.0.1"}  # a pool runs beside its task manager, so it can be checked only if both are here
    pool = spec.environment.config.rpartition(":")[0]
    if spec.environment.type == "EXTERNAL" and pool in here and urlsplit(spec.rest).hostname in here:
        _reachable(
            "runner.environment.config", spec.environment.config, "start `tagstream workers` beside each task manager"
        )
    unique = f"{name}-{uuid.uuid4().hex[:8]}"
    options = [
        "--runner=PortableRunner",
        f"--job_endpoint={spec.job_server}",
        f"--job_server_timeout={JOB_SERVER_SECONDS}",
        f"--environment_type={spec.environment.type}",
        f"--environment_config={spec.environment.config}",
        f"--parallelism={spec.parallelism}",
        f"--job_name={unique}",
        "--no_save_main_session",
    ]
    if live:
        # A bundle is one call for a seat and lasts for the call's quantum. A time limit for bundles does not end it.
        # But Flink sends the task a message twice in each such time, and all of them wait for the end of the bundle.
        # With a limit of 10 ms they took 15 MB in a quantum.
        options += ["--streaming", "--max_bundle_size=1", "--max_bundle_time_mills=1000"]
        options += [f"--checkpointing_interval={NEVER_MS}"]
    result = _run(options, build)
    say(f"submitted {unique}")
    return _wait_for_workers(spec, unique, result, say, stop, live=live)


def follow_flink(spec: FlinkRunner, job: FlinkJob, report: Report, stop: Stop) -> str:
    """Wait until the job ends. When it is asked to stop, cancel it. Returns its last state, or GONE.

    Raises the TagstreamError that made the job fail.
    """
    flink = Flink(spec.rest, SILENCE_SECONDS)
    while True:
        now = flink.job(job.id)
        state = now.state if now else GONE
        why = ""
        if now is not None and state in {"FAILED", "FAILING", "RESTARTING"}:
            why = _raise_known(flink, now, final=state == "FAILED")
        if state in ENDED or state == GONE:
            return state
        if stop.is_set():
            flink.cancel(job)
        report(state.lower() + (why and f" ({why[:160]})"))
        time.sleep(POLL_SECONDS)


def run_beam(spec: OptionsRunner, name: str, build: Build, stop: Stop) -> None:
    """Submit to any other runner and wait for the end. When asked to stop, cancel the job. Raises RunnerError."""
    result = _run([*spec.arguments, f"--job_name={name}-{uuid.uuid4().hex[:8]}", "--no_save_main_session"], build)
    try:
        while not PipelineState.is_terminal(result.state):
            if stop.is_set():
                result.cancel()
                return
            time.sleep(POLL_SECONDS)
        state = result.wait_until_finish()  # raises the runner's error if the job has failed
    except Exception as error:
        raise known_error(str(error)) or RunnerError(f"the runner ended the job: {_last_line(_text(error))}") from error
    if state not in {PipelineState.DONE, None}:
        raise RunnerError(f"the runner ended the job in state {state}; see the runner's own logs")


def _run(options: list[str], build: Build) -> Any:
    pipeline = beam.Pipeline(options=PipelineOptions(options))
    build(pipeline)
    try:
        return pipeline.run()
    except Exception as error:
        raise RunnerError(f"the runner refused the job: {_last_line(_text(error))}") from error


def _text(error: BaseException) -> str:
    return str(error) or f"{type(error).__name__}. Do the options name the right kind of runner, and its address?"


def _wait_for_workers(
    spec: FlinkRunner, name: str, result: Any, say: Callable[[str], None], stop: Stop, *, live: bool
) -> FlinkJob:
    flink = Flink(spec.rest, SILENCE_SECONDS)
    patience = WORKER_SECONDS[spec.environment.type]
    hint = NO_WORKER[spec.environment.type].format(config=spec.environment.config)
    submitted, running, failure, said = time.monotonic(), None, "", False
    while True:
        now = time.monotonic()
        job = flink.job(name)
        if job is not None and job.state in {"FAILED", "RESTARTING"}:
            failure = _raise_known(flink, job, final=job.state == "FAILED", starting=True) or failure
            running = None
        if job is None and str(result.state) == "FAILED":
            raise RunnerError(
                f"Beam's job server could not submit the job to Flink at {spec.rest}. Is it for the same version of "
                "Flink, and was it started with this cluster's --flink-master? The job server's log says more"
            )
        if job is not None and (
            stop.is_set() or job.state in ENDED or (job.state == "RUNNING" and _begun(flink.stages(job), live=live))
        ):
            return job
        if job is not None and job.state == "RUNNING":
            running = running or now
            if not said and now - running > PATIENCE_SECONDS:
                say(f"waiting up to {patience:.0f} s for the first Python worker to connect to Flink; {hint}")
                said = True
            if now - running > patience:
                flink.cancel(job)
                raise RunnerError(f"no Python worker has connected to Flink within {patience:.0f} s; {hint}")
        if now - submitted > SUBMIT_SECONDS + patience:
            if job is not None:
                flink.cancel(job)
            state = f"its state is {job.state}" if job else "Flink does not know it"
            raise RunnerError(
                f"job {name} does not run after {now - submitted:.0f} s: {state}{failure and f', {failure}'}; "
                f"see {spec.rest}"
            )
        time.sleep(0.3)


def _begun(stages: list[Stage], *, live: bool) -> bool:
    """Whether a Python worker has connected.

    A live stage runs only after its worker has connected. A bulk stage may run before; it writes records after.
    """
    if live:
        return bool(stages) and all(stage.state == "RUNNING" for stage in stages)
    return any(stage.written or stage.state == "FINISHED" for stage in stages[1:])


def _raise_known(flink: Flink, job: FlinkJob, *, final: bool, starting: bool = False) -> str:
    """Cancel the job and raise its error, if the error will come again. Else return the latest failure's last line.

    `final`: whether Flink has given up. `starting`: whether the job has not run yet. A worker that can't be reached, or
    that fails on what it is sent, is then not an accident but a mistake in the set-up.
    """
    failures = flink.failures(job)
    if not failures and not final:
        return ""  # Flink writes them down a moment after the state has changed
    last = _last_line(failures[0]) if failures else "no reason given"
    found: TagstreamError | None = next(filter(None, map(known_error, failures)), None)
    unreachable = [text for text in failures if "UNAVAILABLE" in text]
    defects = [text for text in failures if "Error received from SDK harness" in text and TRANSIENT_NOTE not in text]
    if found is None and unreachable and (starting or final):
        found = RunnerError(
            "a task manager can't reach a Python worker. Does `tagstream workers` run at the address in "
            "runner.environment? " + _last_line(unreachable[0])
        )
    if found is None and (final or (starting and defects)):
        why = _last_line(defects[0]) if defects else last
        found = RunnerError(f"the job failed on Flink: {why}{_version_hint(why)}")
    if found is not None:
        current = flink.job(job.id)
        if current is not None and current.state not in ENDED:
            flink.cancel(job)
        raise found
    return last


def _version_hint(failure: str) -> str:
    """A hint for errors of unpickling: a worker with another version of tagstream may fail before it can say so."""
    if re.match(r"(Attribute|Import|ModuleNotFound|Type|\w*Unpickling|Key)Error\b", failure):
        return f". Do the workers have this tagstream, {importlib.metadata.version('tagstream')}, and its extras?"
    return ""


def known_error(trace: str) -> TagstreamError | None:
    """The TagstreamError at the end of a worker's traceback. None if there is none, or if trying again may help."""
    if TRANSIENT_NOTE in trace:
        return None
    for name, message in re.findall(r"^(?:tagstream\.schemas\.errors\.)?(\w+Error): (.+)$", trace, re.MULTILINE):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, TagstreamError):
            return kind(re.sub(r" \[while running .*", "", message))
    return None


def _reachable(field: str, address: str, hint: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise RunnerError(f"{field} {address} does not answer ({error}); {hint}") from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("\tat ", "\t... "))]
    return (lines[-1] if lines else text)[:500]
