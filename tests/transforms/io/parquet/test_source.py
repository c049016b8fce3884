"""Parquet files as a source: the contract, how input is found and split, and what happens to files that are broken."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagstream.schemas.block import TEXT
from tagstream.schemas.errors import SourceError
from tagstream.transforms.io.common.parquet_rows import row_ranges
from tagstream.transforms.io.contracts import Source
from tagstream.transforms.io.registry import open_source
from tagstream.transforms.runtime.job_context import JobContext
from tests.transforms.io.source_contract import SourceContract, job, plain_table

CODECS = ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]


class TestParquetSource(SourceContract):
    def open_source(self, folder: Path, table: pa.Table, blocks: dict[str, int], **settings: Any) -> Source:
        if not (folder / "a.parquet").exists():
            half = table.num_rows // 2
            pq.write_table(table.slice(0, half), folder / "a.parquet", row_group_size=37)
            pq.write_table(table.slice(half), folder / "b.parquet", row_group_size=10_000)
        return open_source(job({"type": "parquet", "path": str(folder), **settings}, **blocks), JobContext())


class TestParquetSourceOnStore(SourceContract):
    def open_source(self, folder: Path, table: pa.Table, blocks: dict[str, int], **settings: Any) -> Source:
        url = f"memory://{folder.name}-{os.getpid()}.parquet"
        if not fsspec.filesystem("memory").exists(url):
            with fsspec.open(url, "wb") as opened:
                pq.write_table(table, opened, row_group_size=64)
        return open_source(job({"type": "parquet", "path": url, **settings}, **blocks), JobContext())


def write(path: Path, first: int = 0, rows: int = 10, **options: Any) -> None:
    """Rows with ids from `first` on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = range(first, first + rows)
    texts = pa.array([f"text {i} {uuid.UUID(int=i)}" for i in ids], pa.string())
    table = pa.table({"id": pa.array(ids, pa.int64()), "text": texts})
    pq.write_table(table, path, **options)


def source(path: object, rows: int = 4, **more: Any) -> Source:
    return open_source(job({"type": "parquet", "path": str(path), "id": "id", **more}, rows=rows), JobContext())


def ids(opened: Source) -> list[int]:
    return [
        id_ for split in opened.splits() for b in opened.read(split, split.start) for id_ in b.batch["id"].to_pylist()
    ]


def test_folder_with_hidden_and_other_files(tmp_path: Path) -> None:
    """All Parquet files below it, in order of path; hidden ones, temporary ones and other kinds are skipped."""
    write(tmp_path / "in/b.parquet", 10)
    write(tmp_path / "in/a/x.pq", 0)
    write(tmp_path / "in/c.parq", 20)
    for hidden in ("_tmp/z.parquet", ".cache/z.parquet", "_z.parquet", ".z.parquet", "a/_SUCCESS/z.parquet"):
        write(tmp_path / "in" / hidden, 1_000)
    (tmp_path / "in/readme.txt").write_text("x")
    (tmp_path / "in/a.parquet.crc").write_text("x")
    assert ids(source(tmp_path / "in")) == list(range(30))
    assert ids(source(f"{tmp_path}/in/")) == list(range(30))


def test_folder_that_is_hidden_itself(tmp_path: Path) -> None:
    """A hidden folder is read if the user names it. Only names below the source's root are checked."""
    write(tmp_path / "_in/a.parquet")
    assert ids(source(tmp_path / "_in")) == list(range(10))


def test_glob(tmp_path: Path) -> None:
    """A glob gives matching files, also in subfolders. A matching folder is not a file."""
    write(tmp_path / "in/2024/a.parquet", 0)
    write(tmp_path / "in/2025/a.parquet", 10)
    write(tmp_path / "in/2025/b.parquet", 20)
    (tmp_path / "in/2025/a-folder.parquet").mkdir()
    assert ids(source(f"{tmp_path}/in/*/a*.parquet")) == list(range(20))
    assert ids(source(f"{tmp_path}/in/**/*.parquet")) == list(range(30))
    assert ids(source(f"{tmp_path}/in/2025/[b].parquet")) == list(range(20, 30))


def test_single_file_of_any_name(tmp_path: Path) -> None:
    """A named file needs no ending. Brackets in the name of an existing file are not a glob."""
    write(tmp_path / "data[1].bin")
    assert ids(source(tmp_path / "data[1].bin")) == list(range(10))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "none: no such file"),
        ("none/*.parquet", r"none/\*\.parquet: no such file"),
        ("empty", r"empty: holds no Parquet file \(\.parquet, \.parq, \.pq\)"),
        ("hidden", "hidden: holds no Parquet file"),
        ("nope://x", "nope://x: Protocol not known: nope"),
    ],
)
def test_nothing_to_read(tmp_path: Path, path: str, message: str) -> None:
    """Names the path and what was looked for."""
    (tmp_path / "empty").mkdir()
    write(tmp_path / "hidden/_tmp/a.parquet")
    with pytest.raises(SourceError, match=message):
        source(path if "://" in path else tmp_path / path)


def test_copied_input_is_the_same_and_changed_input_is_new(tmp_path: Path) -> None:
    """Ids depend on the path below the root and on the content, not on the root's place."""
    write(tmp_path / "one/a.parquet")
    write(tmp_path / "two/a.parquet")
    write(tmp_path / "changed/a.parquet", 1)
    write(tmp_path / "renamed/b.parquet")
    of = {name: source(tmp_path / name).splits()[0].id for name in ("one", "two", "changed", "renamed")}
    assert of["one"] == of["two"] == source(tmp_path / "one/a.parquet").splits()[0].id
    assert of["one"] == source(f"{tmp_path}/one/*.parquet").splits()[0].id
    assert len(set(of.values())) == 3


@given(st.lists(st.integers(0, 50), max_size=12), st.integers(1, 40))
def test_ranges_cover_all_rows(groups: list[int], most: int) -> None:
    """Ranges have no gaps or overlaps, are not empty and not too large. Row groups that fit together are not cut."""
    ranges = list(row_ranges(tuple(groups), most))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(sum(groups)))
    assert all(0 < stop - start <= most for start, stop in ranges)
    assert len(ranges) <= sum(-(-rows // most) for rows in groups)


def test_row_groups_are_merged_and_cut(tmp_path: Path) -> None:
    """Small ones share a split, a large one is cut into even parts."""
    write(tmp_path / "small.parquet", rows=100, row_group_size=10)
    write(tmp_path / "large.parquet", rows=100, row_group_size=100)
    spans = {
        p: [(s.start, s.stop) for s in source(tmp_path / f"{p}.parquet", split_rows=35).splits()]
        for p in ("small", "large")
    }
    assert spans == {"small": [(0, 30), (30, 60), (60, 90), (90, 100)], "large": [(0, 33), (33, 66), (66, 100)]}


def test_empty_row_groups_and_files(tmp_path: Path) -> None:
    """A file without rows and a row group without rows are no splits and no errors."""
    write(tmp_path / "in/a.parquet", rows=0)
    with pq.ParquetWriter(tmp_path / "in/b.parquet", pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        writer.write_table(pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}))
        writer.write_table(pa.table({"id": [7], "text": ["x"]}))
    assert ids(source(tmp_path / "in")) == [7]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_text_columns_of_every_type(tmp_path: Path, kind: pa.DataType) -> None:
    """A text may have any text type and is read from any position. Nulls stay."""
    values = ["a", None, "üü", "a", "", "a text of more than twelve bytes", None, "b"] * 5
    pq.write_table(
        pa.table({"text": pa.array(values).cast(kind), "id": range(40)}), tmp_path / "x.parquet", row_group_size=11
    )
    opened = source(tmp_path / "x.parquet", rows=3)
    assert opened.splits()[0].rows == 40
    for start in (0, 5, 11, 39):
        assert [t for b in opened.read(opened.splits()[0], start) for t in b.batch[TEXT].to_pylist()] == values[start:]


def test_text_column_of_nulls_only(tmp_path: Path) -> None:
    """A writer that saw only nulls gives the column the null type. Its rows are null texts like others."""
    write(tmp_path / "in/a.parquet")
    pq.write_table(pa.table({"id": [10, 11], "text": pa.nulls(2)}), tmp_path / "in/b.parquet")
    opened = source(tmp_path / "in")
    blocks = [b for split in opened.splits() for b in opened.read(split, split.start)]
    assert blocks[-1].batch[TEXT].to_pylist() == [None, None]
    assert ids(opened) == list(range(12))


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec(tmp_path: Path, codec: str) -> None:
    """Any compression that pyarrow reads."""
    write(tmp_path / "x.parquet", rows=50, compression=codec)
    assert ids(source(tmp_path / "x.parquet")) == list(range(50))


@pytest.mark.parametrize(
    "options",
    [{"data_page_version": "2.0"}, {"version": "1.0"}, {"use_dictionary": False}, {"write_page_index": True}],
    ids=str,
)
def test_every_layout(tmp_path: Path, options: dict) -> None:
    """Old and new page formats."""
    write(tmp_path / "x.parquet", rows=300, row_group_size=77, data_page_size=500, **options)
    assert ids(source(tmp_path / "x.parquet", split_rows=50)) == list(range(300))


def test_column_twice(tmp_path: Path) -> None:
    """Two columns with the same name are an error, because either could be meant."""
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array([1])], names=["text", "text", "id"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"x\.parquet: has several columns named 'text'"):
        source(tmp_path / "x.parquet")


def broken(folder: Path, kind: str) -> None:
    """A folder of three good files and a bad one; the bad one is third in order of name."""
    for number, name in enumerate(("a", "b", "d")):
        write(folder / f"{name}.parquet", number * 10)
    bad = folder / "c.parquet"
    if kind == "truncated":
        bad.write_bytes((folder / "a.parquet").read_bytes()[:-20])
    elif kind == "empty":
        bad.touch()
    elif kind == "text":
        bad.write_text("this is not Parquet " * 10)
    elif kind == "footer":
        data = bytearray((folder / "a.parquet").read_bytes())
        length = int.from_bytes(data[-8:-4], "little")
        data[-8 - length : -8] = bytes(length)
        bad.write_bytes(data)
    elif kind == "footer length":
        data = (folder / "a.parquet").read_bytes()
        bad.write_bytes(data[:-8] + b"\xff\xff\xff\x7fPAR1")
    elif kind == "missing column":
        pq.write_table(pa.table({"id": [1], "txt": ["x"]}), bad)
    elif kind == "type of text":
        pq.write_table(pa.table({"id": [1], "text": [2.5]}), bad)


BROKEN = {
    "truncated": "not a Parquet file, or cut off: the footer is missing",
    "empty": "not a Parquet file, or cut off: the footer is missing",
    "text": "not a Parquet file, or cut off: the footer is missing",
    "footer": "",
    "footer length": "",
    "missing column": r"no column 'text' \(source\.text\); did you mean 'txt'\?",
    "type of text": "column 'text' is double, not text",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_file_is_named_before_work_starts(tmp_path: Path, kind: str) -> None:
    """The message names the file and the fault. How to go on is said only of a file that can't be read at all."""
    broken(tmp_path / "in", kind)
    readable = kind in ("missing column", "type of text")
    advice = "mend it, or take it out" if readable else "on_bad_file: dead_letter to go on without it"
    with pytest.raises(SourceError, match=rf"c\.parquet: .*{BROKEN[kind]}.*{advice}") as raised:
        source(tmp_path / "in")
    assert ("on_bad_file" in str(raised.value)) is not readable


@pytest.mark.parametrize("kind", BROKEN)
def test_bad_file_as_a_dead_letter(tmp_path: Path, kind: str) -> None:
    """One dead letter for the file, whose rows can't be counted; all other rows are read."""
    broken(tmp_path / "in", kind)
    opened = source(tmp_path / "in", on_bad_file="dead_letter")
    assert ids(opened) == list(range(30))
    (letter,) = [r for s in opened.splits() for b in opened.read(s, s.start) for r in b.dead.to_pylist()]
    assert letter["code"] == "bad_file"
    assert "c.parquet" in letter["message"]
    assert len({s.id for s in opened.splits()}) == 4


def test_only_bad_files(tmp_path: Path) -> None:
    """If all files are bad, even `on_bad_file: dead_letter` raises an error."""
    (tmp_path / "x.parquet").write_text("no")
    for what in ("fail", "dead_letter"):
        with pytest.raises(SourceError, match=r"x\.parquet: not a Parquet file"):
            source(tmp_path / "x.parquet", on_bad_file=what)


def test_several_bad_files_are_counted(tmp_path: Path) -> None:
    """The first is named, the others are counted."""
    broken(tmp_path / "in", "empty")
    (tmp_path / "in/e.parquet").touch()
    with pytest.raises(SourceError, match=r"c\.parquet: .* \(and 1 more files\)"):
        source(tmp_path / "in")


def corrupt_page(path: Path, group: int, codec: str = "snappy") -> None:
    """Write 1,000 rows in ten row groups and spoil the pages of one of them."""
    write(path, rows=1_000, row_group_size=100, compression=codec, use_dictionary=False)
    column = pq.read_metadata(path).row_group(group).column(1)
    data = bytearray(path.read_bytes())
    start = column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xa5" * column.total_compressed_size
    path.write_bytes(data)


@pytest.mark.parametrize("codec", ["none", "snappy", "zstd"])
def test_page_broken_in_the_middle(tmp_path: Path, codec: str) -> None:
    """Rows before the broken page are read. Then an error names file and row."""
    corrupt_page(tmp_path / "x.parquet", 5, codec)
    opened = source(tmp_path / "x.parquet", rows=64)
    (split,) = opened.splits()
    blocks = opened.read(split, 0)
    read = []
    with pytest.raises(SourceError, match=r"x\.parquet: can't be read from row 500 on: .*on_bad_file"):
        read.extend(id_ for block in blocks for id_ in block.batch["id"].to_pylist())
    assert ids_before_error(opened, split) == list(range(500))


def ids_before_error(opened: Source, split: Any) -> list[int]:
    found: list[int] = []
    try:
        for block in opened.read(split, split.start):
            found += block.batch["id"].to_pylist()
    except SourceError:
        return found
    raise AssertionError("no error")


@pytest.mark.parametrize("group", [0, 5, 9])
@pytest.mark.parametrize("split_rows", [150, 5_000])
def test_broken_page_keeps_exact_counts(tmp_path: Path, group: int, split_rows: int) -> None:
    """With dead_letter, each unreadable row of a split becomes a dead letter. Every other row is read."""
    corrupt_page(tmp_path / "x.parquet", group)
    opened = source(tmp_path / "x.parquet", rows=64, on_bad_file="dead_letter", split_rows=split_rows)
    alive, dead = [], []
    for split in opened.splits():
        at = split.start
        for block in opened.read(split, split.start):
            assert block.span.start == at
            assert block.num_rows == block.span.stop - block.span.start
            at = block.span.stop
            alive += block.batch["id"].to_pylist()
            dead += block.dead["position"].to_pylist()
            assert set(block.dead["code"].to_pylist()) <= {"bad_file"}
        assert at == split.stop
    assert sorted(alive + dead) == list(range(1_000))
    assert set(range(group * 100, group * 100 + 100)) <= set(dead)
    assert len(dead) == (1_000 - group * 100 if split_rows == 5_000 else 100)


def test_file_that_goes_away(tmp_path: Path) -> None:
    """A file that disappears after the start of the job is an error that says so."""
    write(tmp_path / "x.parquet")
    opened = source(tmp_path / "x.parquet")
    splits = opened.splits()
    (tmp_path / "x.parquet").unlink()
    with pytest.raises(SourceError, match=r"x\.parquet: can't be read from row 0 on"):
        list(opened.read(splits[0], 0))


@pytest.mark.parametrize("what", ["fail", "dead_letter"])
@pytest.mark.parametrize("rows", [30, 80])
def test_file_that_is_replaced_while_the_job_runs(tmp_path: Path, rows: int, what: str) -> None:
    """A replaced file is not read under the old ids. Its rows are new input for the next run."""
    write(tmp_path / "x.parquet", rows=50)
    opened = source(tmp_path / "x.parquet", split_rows=20, on_bad_file=what)
    first, second, _ = opened.splits()
    list(opened.read(first, 0))
    write(tmp_path / "x.parquet", first=1_000, rows=rows)
    with pytest.raises(SourceError, match=r"x\.parquet: was replaced while the job ran"):
        list(opened.read(second, second.start))


def test_required_columns(tmp_path: Path) -> None:
    """A column that is required in one file may be null in another file, or in unreadable rows."""
    required = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])
    for name, first in (("a", 0), ("c", 20)):
        texts = pa.array(["x"] * 10)
        table = pa.Table.from_arrays([pa.array(range(first, first + 10), pa.int64()), texts], schema=required)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"id": pa.array([None, 11]), "text": ["x", "y"]}), tmp_path / "b.parquet")
    (tmp_path / "d.parquet").write_text("no")
    opened = source(tmp_path, on_bad_file="dead_letter")
    out = pa.BufferOutputStream()
    blocks = [block for split in opened.splits() for block in opened.read(split, split.start)]
    assert [id_ for block in blocks for id_ in block.batch["id"].to_pylist()] == [*range(10), None, 11, *range(20, 30)]
    (dead,) = (block.dead for block in blocks if block.dead.num_rows)
    pq.write_table(pa.Table.from_batches([dead]), out)


def test_store_that_fails_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failure, reading continues from the row reached. Only a file that keeps failing is bad."""
    url = f"memory://{tmp_path.name}-{os.getpid()}.parquet"
    with fsspec.open(url, "wb") as opened_file:
        pq.write_table(pa.table({"id": range(50), "text": ["x"] * 50}), opened_file)
    opened = source(url, on_bad_file="dead_letter")
    (split,) = opened.splits()
    opens, failures = opened.fs.open, iter([OSError("timed out"), OSError("timed out")])

    def fail(*args: Any, **more: Any) -> Any:
        for error in failures:
            raise error
        return opens(*args, **more)

    monkeypatch.setattr(opened.fs, "open", fail)
    monkeypatch.setattr("tagstream.transforms.io.parquet.source._WAITS", (0.0, 0.0))
    blocks = list(opened.read(split, 0))
    assert [id_ for block in blocks for id_ in block.batch["id"].to_pylist()] == list(range(50))
    failures = iter([OSError("timed out")] * 3)
    (block,) = opened.read(split, 0)
    assert block.dead["code"].to_pylist() == ["bad_file"] * 50


@pytest.mark.parametrize(
    ("compression", "at", "noise"),
    [("snappy", 1665, b"\x80"), ("none", 4824, b"\x03\x00\x00\x17")],  # a column's name; the rows of a row group
)
def test_damage_that_was_found(tmp_path: Path, compression: str, at: int, noise: bytes) -> None:
    assert_error_or_rows(tmp_path / "x.parquet", compression, at, noise)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_damage_is_an_error_or_rows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """With bytes changed anywhere, reading raises SourceError or gives as many rows as the footer says."""
    path = tmp_path_factory.mktemp("fuzz") / "x.parquet"
    compression = data.draw(st.sampled_from(["none", "snappy"]))
    assert_error_or_rows(
        path, compression, data.draw(st.integers(4, 6000)), data.draw(st.binary(min_size=1, max_size=20))
    )


def assert_error_or_rows(path: Path, compression: str, at: int, noise: bytes) -> None:
    write(path, rows=60, row_group_size=20, compression=compression)
    content = bytearray(path.read_bytes())
    at = min(at, len(content) - 1)
    content[at : at + len(noise)] = noise
    path.write_bytes(content)
    try:
        opened = source(path, on_bad_file="dead_letter")
        rows = sum(split.rows for split in opened.splits())
        assert sum(b.num_rows for split in opened.splits() for b in opened.read(split, split.start)) == rows
    except SourceError:
        return


MEMORY = """
import resource, sys
import pyarrow as pa
from tests.transforms.io.parquet.test_source import source
pa.set_memory_pool(pa.system_memory_pool())
opened = source(sys.argv[1], rows=2048, split_rows=100_000)
splits = opened.splits()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(b.num_rows for split in splits for b in opened.read(split, split.start))
print(rows, len(splits), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_large_row_group_is_never_held_whole(tmp_path: Path) -> None:
    """A row group of 240 MB is read split by split, with only a small part of it in memory."""
    text = pa.array([f"{i:0600d}" for i in range(1_000)])
    table = pa.table({"id": pa.array(range(400_000), pa.int64()), "text": pa.concat_arrays([text] * 400)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=400_000, use_dictionary=False, compression="snappy")
    size = pq.read_metadata(tmp_path / "x.parquet").row_group(0).total_byte_size
    assert size > 200 << 20
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "x.parquet")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows, splits, grown = map(int, done.stdout.split())
    assert (rows, splits) == (400_000, 4)
    assert grown < size / 4


def test_plain_table_is_what_it_says() -> None:
    """The contract's table has null, empty and long texts, which the contract relies on."""
    texts = plain_table()["text"].to_pylist()
    assert None in texts
    assert "" in texts
    assert max(len(t) for t in texts if t) > 100
