"""Commands for jobs on a cluster: show a job, stop it, and run the worker pool beside a task manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tagstream.pipelines.cli.options import DebugOption, ReportOption, SetOption, command, consoles, load

if TYPE_CHECKING:
    from tagstream.pipelines.jobs.submissions import Target

JobOption = Annotated[str, typer.Argument(metavar="SPEC|JOB", help="Job specification, or a job's name on Flink.")]
RestOption = Annotated[str, typer.Option("--rest", help="Flink's REST address, if JOB is a name or id.")]


def _target(job: str, rest: str, overrides: list[str] | None) -> Target:
    from tagstream.pipelines.jobs.submissions import Target
    from tagstream.pipelines.runners.flink_rest import Flink

    if job.endswith((".yaml", ".yml")):
        return Target.of(load({"spec": job, "set_": overrides}))
    return Target(Flink(rest), job)


@command
def status(
    *,
    job: JobOption,
    rest: RestOption = "http://localhost:8081",
    set_: SetOption = None,
    report: ReportOption = None,
    debug: DebugOption = False,
) -> None:
    """Show a job on Flink: its state and latest failure. With its specification, also the committed rows."""
    from tagstream.pipelines.jobs.submissions import print_status
    from tagstream.pipelines.report.report import write_json

    found = _target(job, rest, set_).status()
    print_status(consoles()[0], found)
    if report:
        write_json(report, {"jobs": found})


@command
def stop(
    *, job: JobOption, rest: RestOption = "http://localhost:8081", set_: SetOption = None, debug: DebugOption = False
) -> None:
    """Stop a job on Flink. Its workers commit the rows that they have read, and the next run continues from there."""
    out, err = consoles()
    for stopped in _target(job, rest, set_).stop(err):
        out.print(f"stopped {stopped.name}", highlight=False, soft_wrap=True)


@command
def workers(
    *,
    port: Annotated[int, typer.Option("--port", help="Port on which task managers ask for workers.")] = 50000,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", help="Serve all workers' Prometheus metrics on this port.")
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Run the worker pool that Flink's task managers use with `environment: {type: EXTERNAL}`, until SIGTERM."""
    import logging

    from tagstream.pipelines.runners.worker_pool import serve_pool

    logging.getLogger("pipelines").setLevel(logging.INFO)
    serve_pool(port, metrics_port)
