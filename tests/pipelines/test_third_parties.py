"""Sources, sinks and backends of another distribution: found by entry points, validated, run as a real job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.plugins import install

SOURCE = '''
"""Lines of a text file."""

from typing import Literal

import pyarrow as pa
from pydantic import Field

from tagstream.schemas.block import Split, split_id
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec_base import SourcePart
from tagstream.transforms.io.common.block_cutter import BlockCutter, check_columns


class Specification(SourcePart):
    type: Literal["lines"] = "lines"
    file: str = Field(examples=["notes.txt"])
    at_least: int = Field(default=0, ge=0)


class LineSource:
    def __init__(self, spec):
        try:
            with open(spec.source.file) as lines:
                texts = [line.rstrip("\\n") for line in lines]
        except OSError as error:
            raise SourceError(f"source.file {spec.source.file}: {error}") from None
        self.table = pa.table({"number": pa.array(range(len(texts)), pa.int64()), "text": texts})
        self.kept = check_columns(self.table.schema, spec.source, spec.source.file)
        self.cutter = BlockCutter(spec.source, self.kept, spec.blocks)
        self.name = split_id("lines", path=spec.source.file)

    def splits(self):
        return [Split(self.name, 0, self.table.num_rows)]

    def read(self, split, start):
        for batch in self.table.slice(start).to_batches():
            yield from self.cutter.cut(split.id, batch, start)
            start += batch.num_rows


def open_source(spec, context):
    return LineSource(spec)
'''
SINK = '''
"""One JSON file a commit: its name holds split and start, and is made exclusively."""

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from tagstream.schemas.errors import ChainMovedError, LedgerError
from tagstream.schemas.spec_base import DeadLettersPart, SinkPart
from tagstream.transforms.io.common.chain_writer import ChainWriter
from tagstream.transforms.io.contracts import Progress


class Specification(SinkPart):
    type: Literal["jsonfiles"] = "jsonfiles"
    path: str = Field(examples=["out"])


class DeadLetters(DeadLettersPart):
    type: Literal["jsonfiles"] = "jsonfiles"
    path: str = Field(examples=["dead"])


class Writer(ChainWriter):
    def __init__(self, sink, split, position):
        super().__init__(split, position, 60.0)
        self.sink, self.rows, self.letters = sink, [], []

    def _stage(self, block):
        names = [name for name in block.batch.schema.names if not name.startswith("__")]
        self.rows += block.batch.select(names).to_pylist()
        self.letters += [letter["code"] for letter in block.dead.to_pylist()]

    def _append(self, commit, seconds):
        name = f"{commit.span.split}--{commit.span.start}.json"
        text = json.dumps({"stop": commit.span.stop, "rows": self.rows, "dead": self.letters})
        temporary = self.sink.folder / f".{os.getpid()}"
        temporary.write_text(text)
        try:
            os.link(temporary, self.sink.folder / name)
        except FileExistsError:
            raise ChainMovedError(self.sink.progress()[commit.span.split].stop) from None
        finally:
            temporary.unlink()

    def _discard(self):
        self.rows, self.letters = [], []


class FolderSink:
    def __init__(self, spec):
        self.folder = Path(spec.sink.path)

    def prepare(self, fingerprint, *, overwrite):
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / "job"
        if mark.exists() and mark.read_text() != fingerprint.hash:
            raise LedgerError(f"{self.folder} holds the output of another job")
        mark.write_text(fingerprint.hash)

    def progress(self):
        ends = {}
        for file in self.folder.glob("*.json"):
            split = file.name.rpartition("--")[0]
            ends[split] = max(ends.get(split, 0), json.loads(file.read_text())["stop"])
        return {split: Progress(end) for split, end in ends.items()}

    def open(self, split, known=None):
        found = self.progress().get(split.id)
        return Writer(self, split, found.stop if found else split.start)


def open_sink(spec, context):
    return FolderSink(spec)
'''
BACKEND = '''
"""Counts the words of a text: no model."""

from typing import Literal

import numpy as np
import pyarrow.compute as pc

from tagstream.schemas.spec_base import BackendPart
from tagstream.transforms.inference.backends import constant
from tagstream.transforms.tasks.model import NoModel
from tagstream.transforms.tasks.registry import open_head


class Specification(BackendPart):
    type: Literal["words"] = "words"
    many: int = 3
    needs_model = False


class Words(constant._Constant):
    def __init__(self, entry):
        filled = entry.model_copy(update={"backend": constant.ConstantBackend()})
        super().__init__(filled)
        self.head, self.many = describe(entry)[0], entry.backend.many

    def forward(self, parts):
        texts = [text for encoded, picked in parts for text in encoded.texts.take(picked).to_pylist()]
        many = np.array([len(text.split()) >= self.many for text in texts])
        return np.stack([~many, many], axis=1).astype(np.float32)


def describe(entry):
    return open_head(entry, NoModel("words", ["few", "many"])), {"backend": "words", "many": entry.backend.many}


def load(entry):
    return Words(entry)


def identity(entry):
    return {}
'''.replace("    needs_model = False", "    needs_model: ClassVar[bool] = False").replace(
    "import Literal", "import ClassVar, Literal"
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the distribution `toys` in `site`, and a text file."""
    points = {
        "tagstream.sources": "lines = toy_source",
        "tagstream.sinks": "jsonfiles = toy_sink\nbroken = toy_broken",
        "tagstream.backends": "words = toy_backend",
    }
    modules = {"toy_source": SOURCE, "toy_sink": SINK, "toy_backend": BACKEND, "toy_broken": "import nowhere\n"}
    install(tmp_path / "site", "toys", "1.2", points, **modules)
    (tmp_path / "notes.txt").write_text("".join(f"line {i}{' and more' * (i % 2)}\n" for i in range(300)))
    return tmp_path


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tagstream` in a process that finds the toy distribution."""
    return subprocess.run(
        [sys.executable, "-m", "tagstream", *arguments],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home / "site"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def put(home: Path, text: str) -> None:
    (home / "job.yaml").write_text(dedent(text))


def rows(home: Path) -> list[dict]:
    files = [json.loads(file.read_text()) for file in (home / "out").glob("*.json")]
    return sorted((row for file in files for row in file["rows"]), key=lambda row: row["number"])


def test_a_job_of_foreign_parts(home: Path) -> None:
    """Every line arrives once, with its label; a second run finds nothing left to do."""
    put(
        home,
        """\
        source: {type: lines, file: notes.txt, id: number, keep: '*'}
        infer:
          - {as: length, backend: {type: words, many: 4}}
        sink: {type: jsonfiles, path: out}
        dead_letters: {type: jsonfiles, path: dead}
        """,
    )
    done = command(home, "run", "job.yaml")
    assert done.returncode == 0, done.stderr
    found = rows(home)
    assert [row["number"] for row in found] == list(range(300))
    assert [row["length"] for row in found] == ["many" if i % 2 else "few" for i in range(300)]
    files = {file.name: file.read_bytes() for file in (home / "out").iterdir()}
    again = command(home, "run", "job.yaml")
    assert again.returncode == 0, again.stderr
    assert {file.name: file.read_bytes() for file in (home / "out").iterdir()} == files


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("file: notes.txt", "flie: notes.txt", "job.yaml:1: source.flie: unknown field; did you mean 'file'?"),
        ("file: notes.txt", "file: 5", "job.yaml:1: source.file: must be text; put quotes around"),
        ("{type: lines,", "{type: lines, at_least: -1,", "job.yaml:1: source.at_least: must be a whole number"),
        ("type: lines", "type: line", "not 'line', did you mean 'lines'?"),
        ("jsonfiles, path: out", "jsonfiles", "job.yaml:3: sink.path: is missing; for example out"),
        ("jsonfiles, path: out", "broken, path: out", "job.yaml:3: sink: type 'broken' comes from toy_broken"),
        ("jsonfiles, path: dead", "parquet, path: dead", "job.yaml:1: dead_letters.type must be 'jsonfiles'"),
        ("type: words", "type: words, many: [1]", "job.yaml:2: infer.0.backend.many: must be a whole number"),
    ],
)  # fmt: skip
def test_wrong_foreign_parts(home: Path, old: str, new: str, expected: str) -> None:
    """Told like those of our own: file, line, field, what is accepted."""
    text = (
        "source: {type: lines, file: notes.txt, id: number}\n"
        "infer: [{as: length, backend: {type: words}}]\n"
        "sink: {type: jsonfiles, path: out}\n"
        "dead_letters: {type: jsonfiles, path: dead}\n"
    )
    assert old in text
    put(home, text.replace(old, new))
    done = command(home, "plan", "job.yaml")
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr


def test_schema_lists_what_is_installed(home: Path) -> None:
    """Editors complete and check the fields of foreign parts; a broken distribution is named, not hidden."""
    broken = command(home, "schema")
    assert broken.returncode == 2
    assert "'broken' comes from toy_broken of toys 1.2, which can't be imported" in broken.stderr
    points = home / "site" / "toys-1.2.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("broken = toy_broken\n", ""))
    done = command(home, "schema")
    assert done.returncode == 0, done.stderr
    schema = json.loads(done.stdout)
    reference = schema["properties"]["source"]["discriminator"]["mapping"]["lines"]
    part = schema["$defs"][reference.removeprefix("#/$defs/")]
    assert {"file", "text", "keep"} <= part["properties"].keys()
    assert "jsonfiles" in schema["properties"]["sink"]["discriminator"]["mapping"]
    assert "words" in schema["$defs"]["InferEntry"]["properties"]["backend"]["discriminator"]["mapping"]
    assert len(schema["properties"]["source"]["oneOf"]) == len(
        schema["properties"]["source"]["discriminator"]["mapping"]
    )


def test_entry_points_are_looked_up_for_unknown_types_only() -> None:
    """Reading the metadata of all that is installed takes time: jobs of our own parts don't pay for it."""
    code = (
        "import importlib.metadata\n"
        "real = importlib.metadata.entry_points\n"
        "def refuse(group, **_): assert not group.startswith('tagstream'), group; return real(group=group)\n"
        "importlib.metadata.entry_points = refuse\n"
        "from tagstream.schemas.spec_file import load_spec\n"
        "load_spec('examples/sms.yaml')\n"
        "from tagstream.transforms.io.registry import sink_module, source_module\n"
        "sink_module('parquet'), source_module('parquet')\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
