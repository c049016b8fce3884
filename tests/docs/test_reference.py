"""The pages of docs/reference/ say what the code says, and their examples are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from docs.make_reference import pages
from docs.specification_page import COMMAND, EXAMPLES, Specification
from tagstream.schemas.spec_file import load_spec
from tests.docs.specs import complete

PAGE = Specification()
PAGES = pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_is_what_the_code_says(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == PAGES[page], (
        f"{page.name} is not what the code says: run .venv/bin/{COMMAND}"
    )


def test_every_field_is_on_the_page() -> None:
    """Fields of every part, at whatever depth."""
    text = PAGE.page()
    for name, part in [("JobSpec", PAGE.schema), *PAGE.parts.items()]:
        assert name == "JobSpec" or f"# {PAGE.titles[name]}\n" in text
        for field, content in part["properties"].items():
            assert f"| `{field}` |" in text or "const" in content, f"{name}.{field}"


@pytest.mark.parametrize("field", ["source", "sink", "backend"])
def test_every_source_sink_and_backend_has_an_example(field: str) -> None:
    members = [PAGE.titles[name] for group, names in PAGE.sections if group == field for name in names]
    assert members
    missing = {title.rpartition(": ")[2] for title in members} - set(EXAMPLES[field])
    missing -= {"memory"}  # holds a Python object, which no file can name
    assert not missing, f"docs/reference/examples.yaml has no example of {field} {', '.join(sorted(missing))}"


@pytest.mark.parametrize(("field", "kind"), [(f, k) for f, examples in EXAMPLES.items() for k in examples])
def test_example_is_valid(field: str, kind: str, tmp_path: Path, monkeypatch) -> None:
    """With the rest of a job around it; and it is of the type that it is an example of."""
    complete(EXAMPLES[field][kind], tmp_path / "job.yaml", monkeypatch)
    spec = load_spec(str(tmp_path / "job.yaml"))
    part = spec.infer[0].backend if field == "backend" else getattr(spec, field)
    assert part.type == kind
    assert yaml.safe_load(EXAMPLES[field][kind])
