"""A wrong specification is answered with file, line, field and what would be accepted; secrets stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagstream.schemas.errors import SpecError
from tagstream.schemas.spec import JobSpec
from tagstream.schemas.spec_file import load_spec, parse_override

GOOD = """\
source:
  type: parquet
  path: in/
  text: body
infer:
  - model: tagstream/spam
    as: spam
  - as: dry
    backend: {type: constant, label: ham}
sink: {type: parquet, path: out/}
"""


@pytest.fixture
def load(tmp_path: Path):
    """Write text into a file and read it as a specification."""

    def read(text: str, name: str = "job.yaml", **overrides) -> JobSpec:
        path = tmp_path / name
        path.write_text(text)
        return load_spec(str(path), {field.replace("__", "."): value for field, value in overrides.items()})

    return read


@pytest.fixture
def refused(load):
    """The lines of the error for a text, each without its folder."""

    def read(text: str, **overrides) -> list[str]:
        with pytest.raises(SpecError) as caught:
            load(text, **overrides)
        assert caught.value.exit_code == 2
        return [
            line[line.rindex("/job.yaml") + 1 :] if "/job.yaml" in line else line
            for line in str(caught.value).splitlines()
        ]

    return read


def test_reads_what_is_right(load) -> None:
    """Every given field arrives, the others have their defaults, the file gives the name."""
    spec = load(GOOD)
    assert (spec.name, spec.source.text, spec.source.kept) == ("job", "body", ())
    assert [c.as_ for c in spec.infer] == ["spam", "dry"]
    assert spec.infer[0].backend.type == "pytorch"
    assert spec.infer[1].backend.label == "ham"
    assert spec.blocks.rows == 2048


@pytest.mark.parametrize(
    ("name", "job"),
    [("sms.yaml", "sms"), ("my job.yml", "my-job"), ("_x.yaml", "x"), ("...yaml", "job"), ("é.yaml", "job")],
)
def test_any_file_name_gives_a_name(load, name: str, job: str) -> None:
    """A file's name never makes a specification wrong."""
    assert load(GOOD, name).name == job


def test_unknown_field_suggests_the_near_one(refused) -> None:
    """File, line, dotted field, suggestion, list of what there is; the discriminator's tag is no part of the field."""
    (line,) = refused(GOOD.replace("text: body", "txet: body"))
    assert line.startswith("job.yaml:4: source.txet: unknown field; did you mean 'text'? accepted: text, id, keep")


def test_unknown_field_inside_lists_and_unions(refused) -> None:
    """Depth changes nothing: the suggestion comes from the model that the field would belong to."""
    (line,) = refused(GOOD.replace("label: ham", "lable: ham"))
    assert line.startswith("job.yaml:9: infer.1.backend.lable: unknown field; did you mean 'label'?")
    (line,) = refused(GOOD.replace("model: tagstream", "modle: tagstream"))
    assert line.startswith("job.yaml:6: infer.0.modle: unknown field; did you mean 'model'?")
    assert "as, scores" in line


def test_unknown_field_at_the_top(refused) -> None:
    """Also for the job itself."""
    (line,) = refused(GOOD + "classify: []\n")
    assert line == "job.yaml:11: classify: was renamed: write infer"


def test_several_errors_at_once(refused) -> None:
    """All of them are told, each with its line."""
    lines = refused("source: {type: parquet}\ninfer:\n  - {as: x, backend: {type: constant, ms_per_row: -1}}\n")
    assert lines == [
        "job.yaml:1: source.path: is missing; for example in/*.parquet",
        "job.yaml:3: infer.0.backend.ms_per_row: must be a number, at least 0",
        "job.yaml:1: sink: is missing; for example sink: {type: parquet, path: out/labels}",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("type: parquet\n", "type: parquett\n"), "job.yaml:2: source: type must be one of 'parquet'"),
        (GOOD.replace("  type: parquet\n", ""), "job.yaml:1: source: type is missing; it must be one of 'parquet'"),
        (
            GOOD.replace("type: constant, ", ""),
            "job.yaml:9: infer.1.backend: type is missing; it must be one of 'pytorch'",
        ),
        (GOOD.replace("type: constant", "type: none"), "job.yaml:9: infer.1.backend: type must be one of 'pytorch'"),
        (GOOD.replace("type: parquet, path: out/", "type: pq"), "job.yaml:10: sink: type must be one of 'parquet'"),
    ],
)
def test_wrong_or_missing_type(refused, text: str, expected: str) -> None:
    """Names the types that there are."""
    (line,) = refused(text)
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("text: body", "split_rows: 0", "job.yaml:4: source.split_rows: must be a whole number, at least 1"),
        ("text: body", "split_rows: many", "job.yaml:4: source.split_rows: must be a whole number"),
        ("text: body", "on_bad_file: skip", "job.yaml:4: source.on_bad_file: must be one of 'fail', 'dead_letter'"),
        ("as: spam", "as: spam-label", "job.yaml:7: infer.0.as: must be letters, digits and _ only"),
        ("model: tagstream/spam", "scores: all", "job.yaml:6: infer.0: model is missing: give a bundled name"),
        ("as: spam", "thresholds: {x: 2}", "job.yaml:7: infer.0.thresholds.x: must be a number, at most 1"),
        ("as: dry", "as: spam_score", "job.yaml:1: column 'spam_score' of infer.1.as is already taken by"),
        ("as: dry", "as: spam_model", "job.yaml:1: column 'spam_model' of infer.1.as is already taken by"),
        ("text: body", "keep: [dry_truncated]", "job.yaml:1: column 'dry_truncated' of infer.1.as is"),
        ("text: body", "keep: [__x]", "job.yaml:1: column '__x': names that begin with __ can't be kept"),
        ("path: out/", "path: out/, commit_every: 0", "job.yaml:10: sink.commit_every: must be a number, more than 0"),
        ("text: body", "text: [a]", "job.yaml:4: source.text: must be text"),
    ],
)  # fmt: skip
def test_wrong_values(refused, old: str, new: str, expected: str) -> None:
    """Names what is wrong with a value, where it stands."""
    (line,) = refused(GOOD.replace(old, new))
    assert line.startswith(expected)


def test_position_columns_can_not_be_kept_twice(refused) -> None:
    """sink.position adds two columns; a kept one of that name would be there twice."""
    text = GOOD.replace("text: body", "keep: [split]").replace("path: out/", "path: out/, position: true")
    (line,) = refused(text)
    assert "column 'split' of source.id or source.keep is already taken by sink.position" in line


def test_certificates_in_one_folder(refused, load) -> None:
    """A folder holds one certificate: another model, or other settings, would overwrite it."""
    same = "  - {model: tagstream/spam, as: %s, backend: {type: auto, certificate: fast%s}%s}\n"
    job = "source: {type: parquet, path: x}\ninfer:\n%ssink: {type: parquet, path: y}\n"
    (line,) = refused(job % (same % ("a", "", "") + same % ("b", "/", ", max_length: 64")))
    assert "infer.1.backend.certificate: 'fast/' is that of infer.0" in line
    assert load(job % (same % ("a", "", "") + same % ("b", "", "")))
    assert load(job % (same % ("a", "", "") + same % ("b", "2", ", max_length: 64")))


def test_no_classifier(refused) -> None:
    """A job without an entry is none."""
    (line,) = refused("source: {type: parquet, path: x}\ninfer: []\nsink: {type: parquet, path: y}\n")
    assert line.startswith("job.yaml:2: infer: ")


def test_duplicate_key(refused) -> None:
    """YAML would let the second one win in silence."""
    assert refused(GOOD.replace("  path: in/\n", "  path: in/\n  path: other/\n")) == [
        "job.yaml:4: source.path is given twice"
    ]
    assert refused(GOOD.replace("as: dry\n", "as: dry\n    as: wet\n")) == ["job.yaml:9: infer.1.as is given twice"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("source: {type: parquet\nsink: x\n", "job.yaml:2: not valid YAML"),
        ("source: [\n", "job.yaml:2: not valid YAML"),
        ("a: \x00\n", "job.yaml: not valid YAML"),
        ("a: 1\n---\nb: 1\n", "job.yaml:2: not valid YAML"),
        ("name: !!python/object:os.system x\n", "job.yaml:1: not valid YAML"),
        ("name: 2024-13-45\n", "job.yaml: a value looks like a date or number and is none"),
        ("source: &a {x: *a}\n", "job.yaml: an alias (*name) refers to itself"),
        ("{[a]: 1}: 2\n", "job.yaml:1: not valid YAML"),
        ("- a\n", "job.yaml:1: must hold fields; for example {source: "),
        ("just text\n", "job.yaml:1: must hold fields; for example {source: "),
        ("1: x\n" + GOOD, "job.yaml:1: 1: unknown field; accepted: name, source"),
    ],
)
def test_what_is_no_specification(refused, text: str, expected: str) -> None:
    """Broken or foreign YAML: the line where YAML can tell it, never a traceback."""
    lines = refused(text)
    assert lines[0].startswith(expected)


def test_empty_file_misses_everything(refused) -> None:
    """An empty file is an empty specification."""
    lines = refused("# nothing yet\n")
    fields = ("source", "infer", "sink")
    assert [line.partition("; ")[0] for line in lines] == [f"job.yaml:1: {f}: is missing" for f in fields]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    """Says how to go on."""
    with pytest.raises(SpecError, match=r"none\.yaml: no such file\. .*--source"):
        load_spec(str(tmp_path / "none.yaml"))


def test_file_that_is_no_text(tmp_path: Path) -> None:
    """A folder, or bytes that are not UTF-8."""
    with pytest.raises(SpecError, match="can't be read as text"):
        load_spec(str(tmp_path))
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(SpecError, match="can't be read as text"):
        load_spec(str(tmp_path / "x.yaml"))


def test_environment_is_filled_in(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anywhere in a value, several times, in lists, and with defaults; also in overrides."""
    monkeypatch.setenv("BUCKET", "b")
    monkeypatch.setenv("ROWS", "77")
    monkeypatch.delenv("NOT_THERE", raising=False)
    text = GOOD.replace("path: in/", "path: s3://${BUCKET}/${BUCKET}/${NOT_THERE:-x}/").replace(
        "text: body", 'split_rows: ${ROWS}\n  keep: ["${BUCKET}"]'
    )
    spec = load(text, sink__path="${BUCKET}/out")
    assert spec.source.path == "s3://b/b/x/"
    assert (spec.source.split_rows, spec.source.keep, spec.sink.path) == (77, ("b",), "b/out")


def test_missing_variable(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names variable, file, line and field, and the way out."""
    monkeypatch.delenv("NOT_THERE", raising=False)
    (line,) = refused(GOOD.replace("as: spam", "as: ${NOT_THERE}"))
    assert line.startswith("job.yaml:7: infer.0.as: environment variable NOT_THERE is not set")
    assert "${NOT_THERE:-value}" in line


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("text: body", "split_rows: ${SECRET}"),
        ("text: body", "on_bad_file: ${SECRET}"),
        ("type: constant", "type: ${SECRET}"),
        ("as: spam", "as: ${SECRET}"),
        ("as: spam", "thresholds: ${SECRET}"),
        ("as: spam", "thresholds: {spam: ${SECRET}}"),
        ("as: spam", "provenance: [${SECRET}]"),
        ("as: spam", "backend: {type: pytorch, device: ${SECRET}}"),
        ("path: out/", "path: out/, position: ${SECRET}"),
        ("path: in/", "path: {key: ${SECRET}}"),
        ("source:", "max_dead: ${SECRET}\nsource:"),
        ("source:", "name: ${SECRET}\nsource:"),
        ("source:", "blocks: ${SECRET}\nsource:"),
        ("source:", "nonsense: ${SECRET}\nsource:"),
    ],
)
def test_secrets_are_never_echoed(refused, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Whatever is wrong with a value from the environment, the message does not repeat it."""
    monkeypatch.setenv("SECRET", "/hunter2/")
    assert GOOD.replace(old, new) != GOOD
    assert "hunter2" not in "\n".join(refused(GOOD.replace(old, new)))


def test_overrides_reach_everything(load) -> None:
    """By dotted path, into lists by number, and where nothing was."""
    spec = load(
        GOOD,
        source__path="other/",
        infer__1__backend__label="eggs",
        blocks__rows=5,
        dead_letters={"type": "parquet", "path": "dead/"},
    )
    assert (spec.source.path, spec.infer[1].backend.label, spec.blocks.rows) == ("other/", "eggs", 5)
    assert spec.dead_letters is not None
    assert spec.dead_letters.path == "dead/"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("infer__2__as", "--set infer.2.as: '2' is no number from 0 to 1"),
        ("infer__x__as", "--set infer.x.as: 'x' is no number from 0 to 1"),
        ("infer__-1", "--set infer.-1: '-1' is no number"),
        ("source__path__x", "--set source.path.x: source.path has no fields"),
        ("source__path__x__y", "--set source.path.x.y: source.path.x has no fields"),
    ],
)
def test_overrides_that_lead_nowhere(refused, field: str, expected: str) -> None:
    """Names the override, not a line of the file."""
    (line,) = refused(GOOD, **{field: "v"})
    assert line.startswith(expected)


def test_errors_without_a_file() -> None:
    """A specification made of flags is called that."""
    with pytest.raises(SpecError, match=r"^specification: source\.path: is missing"):
        load_spec(None, {"source.type": "parquet", "sink": {"type": "parquet", "path": "y"}, "infer": [{"model": "m"}]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", ("a.b", 1)),
        ("a=", ("a", "")),
        ("a=x=y", ("a", "x=y")),
        ("a=in/*.parquet", ("a", "in/*.parquet")),
        ("a=*.parquet", ("a", "*.parquet")),
        ("a=[x, y]", ("a", ["x", "y"])),
        ("a={type: constant}", ("a", {"type": "constant"})),
        ("a={type: ", ("a", "{type: ")),
        ("a=2024-13-45", ("a", "2024-13-45")),
        ("a=null", ("a", None)),
        (" a =1", ("a", 1)),
    ],
)
def test_override_syntax(text: str, expected: tuple) -> None:
    """The value is YAML where it can be, text where it can't."""
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["a", "=1", ""])
def test_wrong_override_syntax(text: str) -> None:
    """Shows an example."""
    with pytest.raises(SpecError, match="write it as FIELD=VALUE"):
        parse_override(text)


@given(st.text(max_size=40))
def test_any_override_is_read_or_refused(text: str) -> None:
    """Nothing typed after --set gives anything but a value or a SpecError."""
    try:
        field, _ = parse_override(text)
    except SpecError:
        return
    assert field == text.partition("=")[0].strip()
