"""Source and sink in memory keep every promise that real ones keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tagstream.schemas.block import TEXT
from tagstream.schemas.errors import SourceError
from tagstream.transforms.io.contracts import Sink, Source
from tagstream.transforms.io.memory import output, put_table
from tagstream.transforms.io.registry import open_sink, open_source
from tests.transforms.io.sink_contract import SinkContract
from tests.transforms.io.source_contract import SourceContract, job


class TestMemorySource(SourceContract):
    def open_source(self, folder: Path, table: pa.Table, blocks: dict[str, int], **settings: Any) -> Source:
        put_table(str(folder), table)
        return open_source(job({"type": "memory", "table": str(folder), **settings}, **blocks))


class TestMemorySink(SinkContract):
    def open_sink(self, folder: Path, **settings: Any) -> Sink:
        return open_sink(self.job({"type": "memory", "name": str(folder), **settings}))

    def labels(self, folder: Path) -> pa.Table:
        return output(str(folder)).labels()

    def dead(self, folder: Path) -> pa.Table:
        return output(str(folder)).dead()


def test_table_that_is_not_there() -> None:
    """Says how to register it."""
    with pytest.raises(SourceError, match=r"no table 'nowhere' in memory; register it with put_table"):
        open_source(job({"type": "memory", "table": "nowhere"}))


def test_table_of_many_chunks(tmp_path: Path) -> None:
    """Chunks of a table are no blocks, and no rows get lost between them."""
    table = pa.concat_tables([pa.table({"text": pa.array([str(i)] * (i % 4), pa.string())}) for i in range(40)])
    put_table(str(tmp_path), table)
    source = open_source(job({"type": "memory", "table": str(tmp_path), "split_rows": 11}, rows=7))
    texts = [t for split in source.splits() for b in source.read(split, split.start) for t in b.batch[TEXT].to_pylist()]
    assert texts == table["text"].to_pylist()
