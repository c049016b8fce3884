"""Which files are data: every file of a folder is read, is a marker, or is named."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from tagstream.schemas.errors import SourceError
from tagstream.transforms.io.parquet.discovery import find_files
from tagstream.transforms.io.parquet.source import ParquetFilesSource
from tests.pipelines.bulk_jobs import BulkJob
from tests.transforms.io.parquet.test_source import ids, source, write

DATA = [
    "a.parquet", "B.PARQUET", "c.parquet.snappy", "d.Parq", "e.pq", "f.snappy.parquet", "g.parquet.gz", "000000_0",
    "part-00000-1a2b", "h.parquet.bak", "sub/i.parquet", "_day=1/j.parquet",
]  # fmt: skip
MARKERS = [
    "_SUCCESS", "_metadata", "_common_metadata", "_temporary/0/x.parquet", ".a.parquet.crc", "a.parquet.crc",
    ".hidden.parquet", "_z.parquet", ".cache/z.parquet", "sub/_SUCCESS", "b.parquet._COPYING_",
]  # fmt: skip
OTHERS = ["README.txt", "empty", "sub/x.csv", "x.parquet.txt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten rows in each data file; markers hold rows too, which must not be read."""
    for number, name in enumerate(DATA):
        write(tmp_path / "in" / name, number * 10)
    for name in MARKERS:
        write(tmp_path / "in" / name, 10_000)
    for name in OTHERS:
        (tmp_path / "in" / name).write_text("" if name == "empty" else "a,b\n1,2\n")
    return tmp_path / "in"


def opened(path: object) -> ParquetFilesSource:
    found = source(path)
    assert isinstance(found, ParquetFilesSource)
    return found


def test_folder(folder: Path) -> None:
    """Data by suffix or by content is read, markers are not, and all other files are named."""
    found = opened(folder)
    assert sorted(ids(found)) == list(range(10 * len(DATA)))
    assert found.counts.skipped == tuple(sorted(OTHERS))
    assert (found.counts.files, found.counts.rows) == (len(DATA), 10 * len(DATA))
    assert found.notes == ["4 files are not Parquet and not read: README.txt, empty, sub/x.csv, …"]


@pytest.mark.parametrize("pattern", ["*", "**", "**/*", "[!z]*"])
def test_glob(folder: Path, pattern: str) -> None:
    """A glob finds what it matches of the same files."""
    deep = pattern.startswith("**")
    names = [name for name in DATA if deep or "/" not in name]
    found = opened(f"{folder}/{pattern}")
    assert sorted(ids(found)) == sorted(
        row for n in names for row in range(DATA.index(n) * 10, DATA.index(n) * 10 + 10)
    )
    assert found.counts.skipped == tuple(sorted(name for name in OTHERS if deep or "/" not in name))


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("_z*.parquet", ["_z.parquet"]),
        (".hidden.parq*", [".hidden.parquet"]),
        ("*/_SUCCESS", ["sub/_SUCCESS"]),
        ("_temp*/*/x.parquet", ["_temporary/0/x.parquet"]),
        ("a*", ["a.parquet"]),
        ("*/*.parquet", ["_day=1/j.parquet", "sub/i.parquet"]),
        ("*.CRC", []),
    ],
)
def test_glob_that_spells_a_marker(folder: Path, pattern: str, files: list[str]) -> None:
    """As in a shell: a hidden file is found only by a pattern that spells its first character."""
    found = find_files(fsspec.filesystem("file"), f"{folder}/{pattern}")
    assert [os.path.relpath(path, found.root) for path in found.files] == files


def test_file_named_without_a_wildcard(folder: Path) -> None:
    """A file that is named is data: it is read, or an error, and never left out."""
    assert ids(opened(folder / "_metadata")) == list(range(10_000, 10_010))
    with pytest.raises(SourceError, match=r"README\.txt: not a Parquet file"):
        opened(folder / "README.txt")
    with pytest.raises(SourceError, match=r"x\.csv: not a Parquet file"):
        opened(f"{folder}/*/x.csv")


@pytest.mark.parametrize("name", ["", "*"])
def test_nothing_but_other_files(tmp_path: Path, name: str) -> None:
    """Says what was found in place of Parquet."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SourceError, match=r"holds no Parquet file.*; 1 file is not Parquet and not read: notes\.txt"):
        opened(f"{tmp_path}/{name}")


def test_symlinked_folders(tmp_path: Path) -> None:
    """They are followed, by globs too; loops end; a file that is reached twice is read once, by its own name."""
    write(tmp_path / "else/a.parquet", 0)
    write(tmp_path / "in/2024/b.parquet", 10)
    (tmp_path / "in/linked").symlink_to(tmp_path / "else")
    (tmp_path / "in/again").symlink_to(tmp_path / "in/2024")
    (tmp_path / "in/2024/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/c.parquet").symlink_to(tmp_path / "else/../in/2024/b.parquet")
    found = opened(tmp_path / "in")
    assert sorted(ids(found)) == list(range(20))
    assert {file.name for file in found._files} == {"2024/b.parquet", "linked/a.parquet"}
    assert "again/b.parquet (the same file as 2024/b.parquet)" in found.counts.skipped
    assert sorted(ids(opened(f"{tmp_path}/in/*/*.parquet"))) == list(range(20))
    assert ids(opened(f"{tmp_path}/in/ag*/*.parquet")) == list(range(10, 20))


def test_linked_file_keeps_its_id(tmp_path: Path) -> None:
    """A link to a file that is not in the folder itself is data as before."""
    write(tmp_path / "else/a.parquet")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.parquet").symlink_to(tmp_path / "else/a.parquet")
    assert [s.id for s in opened(tmp_path / "in").splits()] == [s.id for s in opened(tmp_path / "else").splits()]


def test_link_to_nothing_and_pipe(tmp_path: Path) -> None:
    """A dangling link is an error by name; a pipe is never opened."""
    write(tmp_path / "in/a.parquet")
    os.mkfifo(tmp_path / "in/pipe.parquet")
    assert opened(tmp_path / "in").counts.skipped == ("pipe.parquet",)
    (tmp_path / "in/b.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(SourceError, match=r"b\.parquet: .*No such file"):
        opened(tmp_path / "in")


@pytest.mark.skipif(os.getuid() == 0, reason="root may list every folder")
def test_folder_that_can_not_be_listed(tmp_path: Path) -> None:
    """Its rows would be lost: an error."""
    write(tmp_path / "in/a.parquet")
    write(tmp_path / "in/b/b.parquet")
    (tmp_path / "in/b").chmod(0)
    with pytest.raises(SourceError, match="Permission denied"):
        opened(tmp_path / "in")


def test_store(tmp_path: Path) -> None:
    """The same rules on an object store."""
    fs, root = fsspec.filesystem("memory"), f"/{tmp_path.name}-{os.getpid()}"
    write(tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    for name in [*DATA, *MARKERS]:
        fs.pipe(f"{root}/{name}", content)
    for name in OTHERS:
        fs.pipe(f"{root}/{name}", b"x")
    for path in (root, f"{root}/**"):
        found = find_files(fs, path)
        assert found.files == tuple(sorted(f"{root}/{name}" for name in DATA))
        assert found.skipped == tuple(sorted(OTHERS))


def test_encrypted_footer(tmp_path: Path) -> None:
    """An encrypted file is Parquet; it can't be read, and the message says why."""
    write(tmp_path / "in/a.parquet")
    (tmp_path / "in/data-1").write_bytes(b"PARE" + bytes(100) + b"PARE")
    with pytest.raises(SourceError, match="data-1: its footer is encrypted"):
        opened(tmp_path / "in")


def test_job_says_what_it_leaves_out(tmp_path: Path) -> None:
    """On the console and in the report."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["x", "y"])
    (tmp_path / "in/README.txt").write_text("x")
    report = job.run()
    assert "1 file is not Parquet and not read: README.txt" in job.said
    written = report.to_dict()
    assert (written["files"], written["skipped_files"], written["skipped"]) == (1, 1, ["README.txt"])
    assert written["rows_total"] == written["rows_in"] == 2
