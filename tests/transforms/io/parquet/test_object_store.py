"""A Parquet output in a real object store: the contract, and uploads that are cut off in the middle."""

from __future__ import annotations

import gc
from pathlib import Path

import fsspec
import pytest

from tagstream.schemas.errors import SinkError
from tagstream.transforms.io.common.atomic_folder import Folder
from tests.pipelines.bulk_jobs import BulkJob
from tests.services.s3 import Cut
from tests.transforms.io.parquet.test_sink import ParquetContract, random_block, read_all
from tests.transforms.io.sink_contract import SPLIT

MB = 1 << 20


@pytest.mark.usefixtures("s3")
class TestParquetSinkOnS3(ParquetContract):
    """Requests go to a server of S3's interface."""

    def url(self, folder: Path) -> str:
        return f"s3://bucket/{folder.name}"

    test_any_order_of_things = None
    """The in-memory store runs it, which takes no requests."""


class BrokenFile:
    """A file that can't be read to its end."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int) -> bytes:
        if self.left <= 0:
            raise OSError("the disk is gone")
        self.left -= size
        return bytes(size)


@pytest.mark.parametrize("size", [1 * MB, 8 * MB, 60 * MB], ids=["one request", "larger", "several parts"])
def test_a_source_that_fails_publishes_nothing(s3: Cut, tmp_path: Path, size: int) -> None:
    """Neither at once nor when the garbage collector closes the remote file. No part of an upload stays."""
    del s3
    folder = Folder(f"s3://bucket/{tmp_path.name}")
    folder.create()
    with pytest.raises(OSError, match="the disk is gone"):
        folder._upload(BrokenFile(size), folder.at("a.parquet"), "xb")
    gc.collect()
    assert not folder.exists("a.parquet")
    assert not fsspec.asyn.sync(folder.fs.loop, folder.fs._call_s3, "list_multipart_uploads", Bucket="bucket").get(
        "Uploads"
    )


def test_requests_that_are_cut_off(s3: Cut, tmp_path: Path) -> None:
    """The commit fails with a clear error, no reader sees a part of it, and the next run commits it."""
    contract = TestParquetSinkOnS3()
    writer = contract.ready(tmp_path).open(SPLIT)
    writer.write(random_block(0, 100))
    writer.commit()
    writer.write(random_block(100, 20_000))
    s3.limit, s3.broken = 100_000, 0
    try:
        with pytest.raises(SinkError, match=r"committing: .*Committed output is kept"):
            writer.commit()
    finally:
        s3.limit = None
    assert s3.broken
    writer.close()
    gc.collect()
    assert read_all(f"{contract.url(tmp_path)}/out").num_rows == 90
    writer = contract.ready(tmp_path).open(SPLIT)
    assert writer.position == 100
    writer.write(random_block(100, 200))
    writer.commit()
    assert read_all(f"{contract.url(tmp_path)}/out").num_rows == 180


def test_a_job_whose_input_and_output_are_there(s3: Cut, tmp_path: Path) -> None:
    """From files in the store to files in the store, twice."""
    del s3
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["text"] * 250)
    where = f"s3://bucket/{tmp_path.name}"
    store = fsspec.filesystem("s3")
    store.put(f"{tmp_path}/in/a.parquet", f"bucket/{tmp_path.name}/in/a.parquet")
    paths = {"source__path": f"{where}/in", "sink__path": f"{where}/out", "dead_letters__path": f"{where}/dead"}
    assert job.run(**paths).counts.rows_out == 250
    assert job.run(**paths).counts.rows_in == 0
    assert sorted(read_all(f"{where}/out")["id"].to_pylist()) == list(range(250))
