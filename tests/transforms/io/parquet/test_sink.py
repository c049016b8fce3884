"""A folder of Parquet files as a sink: the contract on a disk and on a store, crash points, rotation, full disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tagstream.schemas.block import Split
from tagstream.schemas.errors import ChainMovedError, LedgerError, SinkError
from tagstream.schemas.fingerprint import Fingerprint
from tagstream.transforms.io.contracts import PlanKeeper, Sink
from tagstream.transforms.io.parquet.label_files import KEY
from tagstream.transforms.io.registry import open_sink
from tagstream.transforms.runtime.job_context import JobContext
from tests.pipelines.bulk_jobs import BulkJob
from tests.transforms.io.sink_contract import JOB, OTHER, SPLIT, SinkContract, block


def read_all(url: str) -> pa.Table:
    """What any Parquet reader finds in a folder; no columns if nothing is there."""
    fs, path = fsspec.core.url_to_fs(url)
    if not fs.exists(path):
        return pa.table({})
    found = ds.dataset(path, filesystem=fs, format="parquet")
    return found.to_table() if found.files else pa.table({})


class ParquetContract(SinkContract):
    """The contract, and tests for folders of files in any store."""

    def url(self, folder: Path) -> str:
        raise NotImplementedError

    def open_sink(self, folder: Path, **settings: Any) -> Sink:
        url = self.url(folder)
        return open_sink(self.job({"type": "parquet", "path": f"{url}/out", **settings}, f"{url}/dead"), JobContext())

    def labels(self, folder: Path) -> pa.Table:
        return read_all(f"{self.url(folder)}/out")

    def dead(self, folder: Path) -> pa.Table:
        return read_all(f"{self.url(folder)}/dead")

    def crashed(self, folder: Path, step: str, stop: int = 40) -> None:
        """A process that dies right before `step` of the commit of rows 0 to `stop`."""

        class Killed(BaseException):
            pass

        def die(*_: object) -> None:
            raise Killed

        sink = self.ready(folder)
        writer = sink.open(SPLIT)
        writer.write(block(0, stop))
        setattr(sink.folder if step == "publish" else sink.dead, step, die)
        with pytest.raises(Killed):
            writer.commit()

    @pytest.mark.parametrize("step", ["put_aside", "publish"])
    def test_crash_before_the_commit(self, tmp_path: Path, step: str) -> None:
        """Nothing happened: the next process does the rows again, dead letters included."""
        self.crashed(tmp_path, step)
        self.check(tmp_path, 0)
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 25))
        writer.commit()
        self.check(tmp_path, 25)

    def test_crash_before_dead_letters_move_in(self, tmp_path: Path) -> None:
        """Labels are committed; the next start of the job moves the dead letters in before anything else."""
        self.crashed(tmp_path, "move_in")
        assert self.dead_positions(tmp_path) == []
        assert self.open_sink(tmp_path).progress()[SPLIT.id].stop == 40
        self.ready(tmp_path)
        self.check(tmp_path, 40)

    def test_dead_letters_of_an_interrupted_commit_are_replayed(self, tmp_path: Path) -> None:
        """Waiting dead letters are moved in before the dead letters are listed."""
        self.crashed(tmp_path, "move_in")
        letters = self.open_sink(tmp_path).dead_letters(lambda: pa.schema([]))
        assert sum(split.rows for split in letters.splits()) == len(self.dead_positions(tmp_path)) > 0

    def test_two_outputs_do_not_share_a_folder_of_dead_letters(self, tmp_path: Path) -> None:
        """The second output is refused, even with --overwrite: its dead-letter files would have the same names."""
        self.ready(tmp_path)
        url = self.url(tmp_path)
        other = open_sink(self.job({"type": "parquet", "path": f"{url}/other"}, f"{url}/dead"), JobContext())
        for overwrite in (False, True):
            with pytest.raises(LedgerError, match=r"holds the dead letters of .*/out. Choose another folder"):
                other.prepare(JOB, overwrite=overwrite)
        self.ready(tmp_path)

    def test_worker_that_did_not_prepare(self, tmp_path: Path) -> None:
        """A worker on another machine creates its folder for temporary files itself."""
        sink = self.ready(tmp_path)
        for folder in (sink.folder, sink.dead):
            if folder.local:
                shutil.rmtree(folder._tmp)
            else:
                folder._tmp = tmp_path / "elsewhere"  # the one of this user is in use by the tests beside this
        writer = sink.open(SPLIT)
        writer.write(block(0, 40))
        writer.commit()
        self.check(tmp_path, 40)

    def test_loser_moves_in_the_dead_letters_of_a_dead_winner(self, tmp_path: Path) -> None:
        """A writer that loses a race moves in the winner's dead letters, because the winner may have died."""
        loser = self.ready(tmp_path).open(SPLIT)
        self.crashed(tmp_path, "move_in")
        loser.write(block(0, 10))
        with pytest.raises(ChainMovedError):
            loser.commit()
        self.check(tmp_path, 40)

    def test_dead_letters_of_a_dead_process_are_never_forgotten(self, tmp_path: Path) -> None:
        """This also holds if another process knew the chain's end and has appended to the chain since."""
        running = self.ready(tmp_path)
        self.crashed(tmp_path, "move_in")
        known = running.progress()[SPLIT.id].stop
        writer = running.open(SPLIT, known)
        writer.write(block(known, 70))
        writer.commit()
        self.ready(tmp_path)
        self.check(tmp_path, 70)

    def test_interrupted_overwrite_is_completed(self, tmp_path: Path) -> None:
        """If the job is killed while it removes old output, the next start does not take the rest for its own."""
        writer = self.ready(tmp_path).open(SPLIT)
        for start in range(0, 60, 10):
            writer.write(block(start, start + 10))
            writer.commit()
        sink = self.open_sink(tmp_path)
        delete, left = sink.folder.delete, iter(range(3))

        def delete_some(name: str) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            delete(name)

        sink.folder.delete = delete_some
        with pytest.raises(KeyboardInterrupt):
            sink.prepare(JOB, overwrite=True)
        sink = self.ready(tmp_path)
        stop = sink.progress()[SPLIT.id].stop if SPLIT.id in sink.progress() else 0
        self.check(tmp_path, stop)
        writer = sink.open(SPLIT, stop)
        writer.write(block(stop, 60))
        writer.commit()
        self.check(tmp_path, 60)

    def test_foreign_file_in_the_chain(self, tmp_path: Path) -> None:
        """A foreign file with the name of a chain's file is named in the error; --overwrite replaces it."""
        sink = self.ready(tmp_path)
        with fsspec.open(f"{self.url(tmp_path)}/out/{SPLIT.id}-{0:015d}.parquet", "wb") as opened:
            pq.write_table(pa.table({"a": [1]}), opened)
        with pytest.raises(LedgerError, match=r"000\.parquet: not written by tagstream, or damaged"):
            sink.progress()
        with pytest.raises(LedgerError, match="not written by tagstream"):
            sink.open(SPLIT)
        assert self.ready(tmp_path, overwrite=True).progress() == {}

    def test_other_files_are_left_alone(self, tmp_path: Path) -> None:
        """A reader's own files in the folder are neither read as ours nor removed by --overwrite."""
        sink = self.ready(tmp_path)
        with fsspec.open(f"{self.url(tmp_path)}/out/notes.txt", "wb") as opened:
            opened.write(b"mine")
        assert sink.progress() == {}
        self.ready(tmp_path, overwrite=True)
        assert fsspec.open(f"{self.url(tmp_path)}/out/notes.txt", "rb").open().read() == b"mine"

    def test_difference_of_jobs_is_explained(self, tmp_path: Path) -> None:
        """The message names the part that differs, both values, both hashes, and two ways to go on."""
        self.ready(tmp_path)
        other = type(JOB)({"model": "b"})
        with pytest.raises(LedgerError) as caught:
            self.ready(tmp_path, other)
        message = str(caught.value)
        assert JOB.hash in message
        assert other.hash in message
        assert "model: 'a' in the output, 'b' in this job" in message
        assert "--overwrite" in message
        assert "sink.path" in message

    def test_damaged_job_file(self, tmp_path: Path) -> None:
        """A damaged job file is an error. The job does not guess."""
        self.ready(tmp_path)
        with fsspec.open(f"{self.url(tmp_path)}/out/job.parquet", "wb") as opened:
            opened.write(b"{")
        with pytest.raises(LedgerError, match=r"job\.parquet: damaged; start again with --overwrite"):
            self.ready(tmp_path)
        self.ready(tmp_path, overwrite=True)

    def test_footer_says_what_the_file_holds(self, tmp_path: Path) -> None:
        """Span, counts and fingerprint in every file."""
        writer = self.ready(tmp_path).open(SPLIT)
        writer.write(block(0, 40))
        writer.commit()
        fs, path = fsspec.core.url_to_fs(f"{self.url(tmp_path)}/out")
        (name,) = [found for found in fs.ls(path, detail=False) if found.endswith("-000000000000000.parquet")]
        with fs.open(name, "rb") as opened:
            footer = json.loads(pq.read_metadata(opened).metadata[KEY])
        expected = {"split": SPLIT.id, "start": 0, "stop": 40, "rows_in": 40, "rows_out": 36, "fingerprint": JOB.hash}
        assert expected.items() <= footer.items()
        assert footer["dead"] == {"null_text": 2, "inference_failed": 2}

    def test_due_by_size(self, tmp_path: Path) -> None:
        """A file is committed when it is large enough, long before its time."""
        writer = self.ready(tmp_path, file_bytes=3_000, commit_every=3600.0).open(SPLIT)
        writer.write(block(0, 20))
        assert not writer.due
        writer.write(block(20, 200))
        assert writer.due
        writer.commit()
        assert not writer.due

    @pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "lz4", "none"])
    def test_every_compression(self, tmp_path: Path, compression: str) -> None:
        """Any reader can read every codec, and the footer names the codec."""
        writer = self.ready(tmp_path, compression=compression).open(SPLIT)
        writer.write(block(0, 40))
        writer.commit()
        self.check(tmp_path, 40)
        fs, path = fsspec.core.url_to_fs(f"{self.url(tmp_path)}/out")
        (name,) = [found for found in fs.ls(path, detail=False) if found.endswith("-000000000000000.parquet")]
        with fs.open(name, "rb") as opened:
            codec = pq.read_metadata(opened).row_group(0).column(0).compression
        assert codec == {"none": "UNCOMPRESSED"}.get(compression, compression.upper())

    def test_position_columns(self, tmp_path: Path) -> None:
        """With `position`, each row says where it came from."""
        writer = self.ready(tmp_path, position=True).open(SPLIT)
        writer.write(block(0, 20))
        writer.commit()
        rows = self.labels(tmp_path)
        assert [f"{s}/{p}" for s, p in zip(rows["split"].to_pylist(), rows["position"].to_pylist(), strict=True)] == (
            rows["id"].to_pylist()
        )


class TestParquetSinkOnDisk(ParquetContract):
    def url(self, folder: Path) -> str:
        return str(folder)

    def test_temporary_files_are_removed(self, tmp_path: Path) -> None:
        """After commits, lost races and given-up work nothing of this process is left under _tmp."""
        winner, loser, leaver = (self.ready(tmp_path).open(SPLIT) for _ in range(3))
        for writer in (winner, loser, leaver):
            writer.write(block(0, 20))
        winner.commit()
        with pytest.raises(ChainMovedError):
            loser.commit()
        leaver.close()
        assert list(tmp_path.glob("*/_tmp/*")) == []

    def test_old_temporary_files_of_killed_processes(self, tmp_path: Path) -> None:
        """Temporary files older than a day are removed. A younger one may belong to a running process."""
        self.ready(tmp_path)
        old, young = tmp_path / "out/_tmp/old.tmp", tmp_path / "out/_tmp/young.tmp"
        old.touch()
        young.touch()
        os.utime(old, (0, 0))
        self.ready(tmp_path)
        assert (old.exists(), young.exists()) == (False, True)

    def test_path_that_is_a_file(self, tmp_path: Path) -> None:
        """Names the path and what to do."""
        (tmp_path / "out").write_text("x")
        with pytest.raises(SinkError, match=r"out: opening the output: .*choose another sink\.path"):
            self.ready(tmp_path)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_folder_without_rights(self, tmp_path: Path) -> None:
        """A clear error instead of a traceback."""
        (tmp_path / "out").mkdir(mode=0o500)
        with pytest.raises(SinkError, match="permission denied"):
            self.ready(tmp_path)


class TestParquetSinkOnStore(ParquetContract):
    """fsspec's in-memory store acts like an object store: mode `xb` creates exclusively; no links, no local paths."""

    def url(self, folder: Path) -> str:
        return f"memory://{folder.name}-{os.getpid()}"

    test_many_writers_at_once = None
    """This store is not thread-safe."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a quarter of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"can't mount a small file system here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def random_block(start: int, stop: int) -> Any:
    """Rows that do not compress."""
    found = block(start, stop)
    noise = pa.array([uuid.uuid4().hex * 8 for _ in range(found.batch.num_rows)], pa.string())
    batch = found.batch.set_column(0, "id", noise)
    return type(found)(found.span, batch, found.dead)


def fill(writer: Any) -> None:
    """Commit until it fails."""
    while writer.position < 10_000:
        writer.write(random_block(writer.position, writer.position + 100))
        writer.commit()


def test_full_disk(small_disk: Path) -> None:
    """A clear error; what was committed stays, is readable, and is continued once there is room."""
    contract = TestParquetSinkOnDisk()
    writer = contract.ready(small_disk).open(Split(SPLIT.id, 0, 10_000))
    with pytest.raises(SinkError, match=r"no space left; free some and start again"):
        fill(writer)
    writer.close()
    sink = contract.open_sink(small_disk)
    stop = sink.progress()[SPLIT.id].stop
    assert 0 < stop < 10_000
    assert read_all(f"{small_disk}/out").num_rows == stop * 9 // 10
    assert contract.dead_positions(small_disk) == [p for p in range(stop) if p % 10 == 3]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    sink = contract.ready(small_disk)
    writer = sink.open(SPLIT, stop)
    writer.write(random_block(stop, stop + 100))
    writer.commit()
    assert read_all(f"{small_disk}/out").num_rows == (stop + 100) * 9 // 10


def test_read_only_disk(small_disk: Path) -> None:
    """A clear error at the start, and in the middle of a job; nothing is lost."""
    contract = TestParquetSinkOnDisk()
    writer = contract.ready(small_disk).open(SPLIT)
    writer.write(block(0, 20))
    writer.commit()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SinkError, match=r"read-only file system; choose another sink\.path"):
        writer.write(block(20, 40))
    writer.close()
    with pytest.raises(SinkError, match=r"read-only file system; choose another sink\.path"):
        contract.ready(small_disk)
    contract.check(small_disk, 20)


def test_row_groups_of_many_small_blocks(tmp_path: Path) -> None:
    """Blocks collect into large row groups: readers are not given thousands of tiny ones."""
    contract = TestParquetSinkOnDisk()
    writer = contract.ready(tmp_path).open(SPLIT)
    for start in range(0, 1_000, 5):
        writer.write(block(start, start + 5))
    writer.commit()
    (file,) = (tmp_path / "out").glob("file-*.parquet")
    assert pq.read_metadata(file).num_row_groups == 1


def test_default_place_of_dead_letters(tmp_path: Path) -> None:
    """Beside the output, under the same name with -dead."""
    sink = open_sink(SinkContract.job({"type": "parquet", "path": f"{tmp_path}/out/"}), JobContext())
    sink.prepare(JOB, overwrite=False)
    writer = sink.open(OTHER)
    writer.write(block(100, 120, OTHER))
    writer.commit()
    assert read_all(f"{tmp_path}/out-dead").num_rows == 2


def test_unknown_store() -> None:
    """Names the URL and what is missing."""
    with pytest.raises(SinkError, match=r"nope://x: Protocol not known: nope"):
        open_sink(SinkContract.job({"type": "parquet", "path": "nope://x"}), JobContext())


READERS = {
    "polars": lambda folder: pl.read_parquet(folder).to_dicts(),
    "pandas": lambda folder: pd.read_parquet(folder).to_dict("records"),
    "pyarrow": lambda folder: pq.read_table(folder).to_pylist(),
    "duckdb": lambda folder: duckdb.sql(f"FROM read_parquet('{folder}/**')").to_arrow_table().to_pylist(),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("rows", [3, 0])
def test_every_reader_takes_the_whole_folder_for_data(tmp_path: Path, reader: str, rows: int) -> None:
    """Labels and dead letters, and where there are none an empty table with the columns."""
    job = BulkJob(tmp_path)
    job.put("a.parquet", [None, *["text"] * rows] if rows else [], first=7)
    job.run(source__keep=["id"])
    labels, dead = (READERS[reader](str(tmp_path / name)) for name in ("out", "dead"))
    assert sorted(row["id"] for row in labels) == [8, 9, 10][:rows]
    assert {row["tag"] for row in labels} == ({"ham"} if rows else set())
    assert [row["code"] for row in dead] == ["null_text"] * bool(rows)
    assert pl.read_parquet(tmp_path / "out").columns[:3] == ["id", "tag", "tag_score"]
    assert "row" in pl.read_parquet(tmp_path / "dead").columns


def test_output_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    """It kept job, owner and plan as JSON files. They become files that every reader can read."""
    contract = TestParquetSinkOnDisk()
    sink = contract.ready(tmp_path)
    assert isinstance(sink, PlanKeeper)
    plan = sink.extend_plan(0, [SPLIT, OTHER])
    writer = sink.open(SPLIT)
    writer.write(block(0, 40))
    writer.commit()
    for folder, name, earlier in (
        ("out", "job.parquet", "_job.json"),
        ("out", "plan-000000000.parquet", "_plan-000000000.json"),
        ("dead", "job.parquet", "_labels.json"),
    ):
        path = tmp_path / folder / name
        path.with_name(earlier).write_bytes(pq.read_metadata(path).metadata[b"tagstream-note"])
        path.unlink()
    sink = contract.open_sink(tmp_path)
    assert (sink.plan(), sink.progress()[SPLIT.id].stop) == (plan, 40)
    with pytest.raises(LedgerError, match="holds the output of another job"):
        sink.prepare(Fingerprint({"model": "b"}), overwrite=False)
    sink = contract.ready(tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    assert (sink.plan(), sink.extend_plan(2, [SPLIT]), sink.progress()[SPLIT.id].stop) == (plan, [*plan, SPLIT], 40)
    contract.check(tmp_path, 40)
