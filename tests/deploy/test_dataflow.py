"""The template for Dataflow is a valid job whose options Beam knows. It has never run on Dataflow."""

from __future__ import annotations

from pathlib import Path

from apache_beam.options.pipeline_options import PipelineOptions

from tests.deploy.files import DEPLOY, check_spec


def test_options(tmp_path: Path, monkeypatch) -> None:
    """No option is misspelt, because Beam would only warn. Every file of the template says that it is untested."""
    spec = check_spec((DEPLOY / "dataflow/job.yaml").read_text(), tmp_path, monkeypatch)
    assert spec.live
    assert spec.runner.arguments[0] == "--runner=DataflowRunner"
    given = [option.removeprefix("--").partition("=")[0] for option in spec.runner.arguments]
    known = PipelineOptions([]).get_all_options()
    assert [name for name in given if name not in known] == []
    parsed = PipelineOptions(list(spec.runner.arguments)).get_all_options(drop_default=True)
    assert set(given) <= set(parsed)
    for file in ("job.yaml", "README.md", "Dockerfile"):
        assert "ntested" in (DEPLOY / "dataflow" / file).read_text()
