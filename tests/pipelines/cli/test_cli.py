"""The command line: exit codes, messages without tracebacks, reports as JSON, and a specification from flags alone."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from tagstream.pipelines.cli.main import app
from tagstream.pipelines.cli.options import column_name
from tagstream.schemas.spec import JobSpec
from tests.models import make_model
from tests.pipelines.bulk_jobs import BulkJob

ROOT = Path(__file__).parents[3]


@pytest.fixture
def job(tmp_path: Path) -> BulkJob:
    """120 rows and a specification in `job.yaml`."""
    bulk = BulkJob(tmp_path)
    bulk.put("a.parquet", [None if i == 7 else f"text {i}" for i in range(120)])
    bulk.folder.joinpath("job.yaml").write_text(
        f"source: {{type: parquet, path: {tmp_path}/in, id: id}}\n"
        "infer:\n"
        "  - as: tag\n"
        "    backend: {type: constant, label: ham}\n"
        f"sink: {{type: parquet, path: {tmp_path}/out}}\n"
        f"dead_letters: {{type: parquet, path: {tmp_path}/dead}}\n"
    )
    return bulk


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_run_and_report(job: BulkJob) -> None:
    """Exit 0, a table for people, JSON for programs; both say the same as the output."""
    report = job.folder / "report.json"
    done = call("run", job.folder / "job.yaml", "--report", report, "--show", 3)
    assert done.exit_code == 0, done.output
    assert "rows in" in done.stdout
    assert "text 1" in done.stdout
    found = json.loads(report.read_text())
    assert found["state"] == "done"
    assert (found["rows_in"], found["rows_out"], found["dead_letters"]) == (120, 119, {"null_text": 1})
    assert found["labels"] == {"tag": {"ham": 119}}
    assert found["rows_left"] == 0
    assert set(found["busy_seconds"]) == {"read", "tokenise", "infer", "write"}
    assert len(job.labels()) == 119
    again = call("run", job.folder / "job.yaml", "--report", report)
    assert again.exit_code == 0
    assert json.loads(report.read_text())["rows_in"] == 0


def test_plan_and_evaluate_report(job: BulkJob) -> None:
    """The other commands write JSON too."""
    report = job.folder / "report.json"
    assert call("plan", job.folder / "job.yaml", "--limit", 50, "--report", report).exit_code == 0
    assert json.loads(report.read_text())["rows_left"] == 50
    truth = ["--label", "text", "--set", "infer.0.backend.label=text 0"]
    done = call("evaluate", job.folder / "job.yaml", *truth, "--report", report)
    assert done.exit_code == 0, done.output
    assert 0 < json.loads(report.read_text())["entries"]["tag"]["accuracy"] < 0.1


def test_version() -> None:
    """As installed."""
    done = call("--version")
    assert (done.exit_code, done.stdout) == (0, f"tagstream {importlib.metadata.version('tagstream')}\n")


def test_keep_all_columns(job: BulkJob) -> None:
    """A star on the command line: every column but the text."""
    out = job.folder / "all"
    done = call("run", job.folder / "job.yaml", "--keep", "*", "--set", f"sink.path={out}")
    assert done.exit_code == 0, done.output
    assert pq.read_table(out).column_names == ["id", "tag", "tag_score", "tag_truncated"]


def test_replay(job: BulkJob) -> None:
    """By the same specification."""
    fail = ("--set", "infer.0.backend.fail_on=text 9$")
    assert call("run", job.folder / "job.yaml", *fail).exit_code == 0
    done = call("replay", job.folder / "job.yaml")
    assert done.exit_code == 0, done.output
    assert len(job.labels()) == 119


def test_without_a_file(job: BulkJob, tmp_path: Path) -> None:
    """Everything by flags; columns are named after the models."""
    model = make_model(tmp_path / "my-Model.v2")
    done = call(
        "run", "--source", f"{job.folder}/in/*.parquet", "--text", "text", "--id", "id", "--keep", "text",
        "--model", model, "--sink", job.folder / "out", "--dead-letters", job.folder / "dead", "--limit", 30,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(job.labels("id, text, my_model_v2, my_model_v2_score")) == 29
    assert job.dead() == [7]


@pytest.mark.parametrize(
    ("model", "column"),
    [("tagstream/spam", "spam"), ("a/B-c.d/", "b_c_d"), ("./x/7b", "label_7b"), ("///", "label"), ("é", "label")],
)
def test_column_names(model: str, column: str) -> None:
    """Any model's name gives a column name."""
    assert column_name(model) == column
    assert JobSpec.model_fields
    assert column.isidentifier()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--set", "source.pth=x"], 2, "did you mean 'path'?"),
        (["--set", "nonsense"], 2, "write it as FIELD=VALUE"),
        (["--set", "infer.0.backend.fail_on=("], 2, "not an RE2 pattern"),
        (["--set", "sink.path={folder}/in/x"], 2, "lies inside source.path"),
        (["--set", "source.path={folder}/none"], 3, "none: no such file"),
        (["--text", "txet"], 3, "no column 'txet' (source.text); did you mean 'text'?"),
        (["--set", "infer.0.backend.fail_on=."], 8, "are dead letters"),
        (["--model", "./nowhere"], 4, "./nowhere: not a folder"),
        (["--model", "tagstream/nothing"], 4, "no such bundled model"),
        (["--sink", "{folder}/job.yaml/out"], 5, "choose another sink.path"),
        (["--sink", "nope://x"], 5, "Protocol not known: nope"),
        (["--report", "{folder}/none/report.json"], 5, "can't be written"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_exit_codes(job: BulkJob, options: list[str], code: int, message: str) -> None:
    """2 the specification, 3 the input, 4 the model, 5 the output: one clear message and no traceback."""
    done = call("run", job.folder / "job.yaml", *(option.format(folder=job.folder) for option in options))
    assert done.exit_code == code, done.output
    assert done.stderr.count("error:") == 1
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert "defect" not in done.output


def test_output_of_another_job(job: BulkJob) -> None:
    """Exit 5, the part that differs, and --overwrite as the way out, which works."""
    assert call("run", job.folder / "job.yaml").exit_code == 0
    other = ("run", job.folder / "job.yaml", "--set", "infer.0.backend.label=spam")
    done = call(*other)
    assert done.exit_code == 5
    assert "infer.0.label: 'ham' in the output, 'spam' in this job" in done.stderr
    assert call(*other, "--overwrite").exit_code == 0
    assert set(job.labels("tag")) == {"spam"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "give a SPEC file, or --source, --model, --sink as well"),
        (["run", "--source", "x", "--model", "m"], "give a SPEC file, or --sink as well"),
        (["evaluate", "--label", "x", "--source", "x"], "give a SPEC file, or --model as well"),
        (["run", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
    ids=" ".join,
)
def test_what_is_missing(arguments: list[str], message: str) -> None:
    """Names what else to give."""
    done = call(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_show_is_refused_before_the_job_runs(job: BulkJob) -> None:
    """Avro in a topic can't be looked at: that is said at once, not when everything is labelled."""
    sink = "{type: kafka, servers: 'localhost:1', topic: labels, mode: avro}"
    done = call("run", job.folder / "job.yaml", "--show", 3, "--set", f"sink={sink}", "--set", "dead_letters=null")
    assert done.exit_code == 2
    assert "can't read the labels of this kafka sink" in done.stderr


FLINK = "runner={type: flink, job_server: 'localhost:1', rest: 'http://localhost:1'}"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--runner", "spark"], 2, "'local', 'flink', 'beam', 'dataflow'"),
        (["--runner", "beam"], 2, "runner.options: is missing"),
        (["--runner", "flink", "--set", "runner.job_server=localhost:1"], 6, "job_server localhost:1 does not answer"),
        (["--set", FLINK, "--metrics-port", "0"], 2, "--metrics-port does not go with this: the job runs in workers"),
        (["--set", FLINK, "--detach", "--show", "3"], 2, "--show does not go with this: --detach leaves the job"),
        (["--set", FLINK, "--detach", "--max-seconds", "3"], 2, "--max-seconds does not go with this"),
        (
            ["--set", "runner={type: flink, environment: {type: DOCKER}}"],
            2,
            "DOCKER environment needs config: the image",
        ),
        (["--set", "runner={type: flink, environment: {type: PROCESS}}"], 2, "PROCESS environment needs config: JSON"),
        (["--set", "runner={type: flink, environment: {config: 'pool:'}}"], 2, "is host:port of the worker pool"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_where_it_runs(job: BulkJob, options: list[str], code: int, message: str) -> None:
    """An option that would do nothing is refused."""
    done = call("run", job.folder / "job.yaml", *options)
    assert done.exit_code == code, done.output
    assert message in done.stderr


def test_unreachable_broker_says_why(job: BulkJob) -> None:
    """As a process: what the client only logs is in the message, and nothing else of its log."""
    live = {
        "source": {"type": "kafka", "servers": "127.0.0.1:1", "topics": "any"},
        "infer": [{"as": "tag", "backend": {"type": "constant"}}],
        "sink": {"type": "kafka", "topic": "out"},
    }
    spec = job.folder / "live.yaml"
    spec.write_text(json.dumps(live))  # JSON is YAML
    done = subprocess.run(
        [sys.executable, "-m", "tagstream", "run", str(spec)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 3, done.stderr
    assert "no Kafka broker of this protocol answers at 127.0.0.1:1" in " ".join(done.stderr.split())
    assert "ERROR:kafka" not in done.stderr
    assert "Traceback" not in done.stderr


def test_runner_of_the_command_line_comes_first(job: BulkJob) -> None:
    """Fields of another runner are left aside; rows that are left make exit code 7."""
    assert call("run", job.folder / "job.yaml", "--set", FLINK).exit_code == 6
    stopped = call("run", job.folder / "job.yaml", "--runner", "local", "--max-seconds", 0, "--must-finish")
    assert stopped.exit_code == 7, stopped.output
    spec = yaml.safe_load((job.folder / "job.yaml").read_text())
    elsewhere = job.folder / "elsewhere.yaml"
    elsewhere.write_text(yaml.safe_dump(spec | {"runner": {"type": "flink", "parallelism": 3}}))
    assert call("run", elsewhere, "--runner", "local", "--must-finish").exit_code == 0


def test_debug_shows_the_traceback(job: BulkJob) -> None:
    """For those who look for a defect."""
    done = call("run", job.folder / "job.yaml", "--text", "txet", "--debug")
    assert done.exit_code == 1
    assert type(done.exception).__name__ == "SourceError"


def test_messages_are_no_markup(job: BulkJob) -> None:
    """Square brackets of a path are shown as they are."""
    done = call("run", job.folder / "job.yaml", "--set", f"source.path={job.folder}/[bold]x[/bold]")
    assert f"{job.folder}/[bold]x[/bold]" in done.stderr


def test_schema_accepts_the_examples() -> None:
    """`tagstream schema` is JSON Schema that knows every field of the examples; they are right themselves."""
    done = call("schema")
    assert done.exit_code == 0
    schema = json.loads(done.stdout)
    examples = sorted((ROOT / "examples").glob("*.yaml"))
    assert examples
    for example in examples:
        data = yaml.safe_load(example.read_text())
        JobSpec.model_validate({"name": "x", **data})
        assert set(data) <= set(schema["properties"])
        for entry in data["infer"]:
            assert set(entry) <= set(schema["$defs"]["InferEntry"]["properties"])
        try:
            import jsonschema
        except ImportError:
            continue
        jsonschema.validate(data, schema)


def test_models_lists_what_is_bundled() -> None:
    """By name, with labels."""
    done = call("models")
    assert done.exit_code == 0
    assert "tagstream/spam" in done.stdout
    assert "ham, spam" in done.stdout


@pytest.mark.parametrize("command", ["run", "plan", "evaluate", "replay", "models", "schema"])
def test_help_of_every_command(command: str) -> None:
    """Each explains itself."""
    done = call(command, "--help")
    assert done.exit_code == 0
    assert f"Usage: tagstream {command}" in done.stdout or f"Usage: root {command}" in done.stdout


def test_as_a_process(job: BulkJob) -> None:
    """The same through a real process: help, success, failure; results on stdout, messages on stderr."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "tagstream", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
        )

    helped = run("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert all(command in helped.stdout for command in ("run", "plan", "evaluate", "replay", "models", "schema"))
    good = run("run", str(job.folder / "job.yaml"))
    assert good.returncode == 0, good.stderr
    assert "rows out" in good.stdout
    assert good.stderr == ""
    bad = run("run", str(job.folder / "job.yaml"), "--text", "txet")
    assert (bad.returncode, bad.stdout) == (3, "")
    assert bad.stderr.startswith("error: ")
    assert "Traceback" not in bad.stderr
