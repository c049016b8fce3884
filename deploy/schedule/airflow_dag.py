"""A DAG for Airflow 3 that labels new rows: it calls the command line, whose exit code and report are the interface."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from airflow.exceptions import AirflowException, AirflowFailException
from airflow.sdk import dag, task

SPEC = "/opt/tagstream/enrich.yaml"
HOPELESS = {2, 4}
"""Exit codes that a retry does not mend: specification, model."""


@dag(schedule=timedelta(minutes=10), start_date=datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")), catchup=False)
def label_messages() -> None:
    @task(retries=3, retry_delay=timedelta(minutes=1))
    def run(ds_nodash: str = "") -> dict[str, int]:
        report = Path(f"/tmp/enrich-{ds_nodash}.json")  # noqa: S108
        command = ["tagstream", "run", SPEC, "--report", str(report)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            error = AirflowFailException if done.returncode in HOPELESS else AirflowException
            raise error(done.stderr[-2000:])
        counts = json.loads(report.read_text())
        return {name: counts[name] for name in ("rows_in", "rows_out", "rows_left")}

    run()


label_messages()
