"""Source and sink in memory keep every promise that real ones keep."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from pydantic import ValidationError

from tagstream.schemas.block import TEXT
from tagstream.schemas.errors import SourceError, SpecError
from tagstream.schemas.memory_spec import _OBJECTS
from tagstream.transforms.io.contracts import Sink, Source
from tagstream.transforms.io.memory import Memory
from tagstream.transforms.io.registry import open_sink, open_source
from tagstream.transforms.runtime.job_context import JobContext
from tests.transforms.io.sink_contract import SinkContract
from tests.transforms.io.source_contract import SourceContract, job

OUTPUTS: defaultdict[Path, Memory] = defaultdict(Memory)


class TestMemorySource(SourceContract):
    held: ClassVar[dict[Path, Memory]] = {}

    def open_source(self, folder: Path, table: pa.Table, blocks: dict[str, int], **settings: Any) -> Source:
        if folder not in self.held or not self.held[folder].table.equals(table):
            self.held[folder] = Memory(table)
        rows = self.held[folder]
        return open_source(job({"type": "memory", "rows": rows, **settings}, **blocks), JobContext())


class TestMemorySink(SinkContract):
    def open_sink(self, folder: Path, **settings: Any) -> Sink:
        return open_sink(self.job({"type": "memory", "rows": OUTPUTS[folder], **settings}), JobContext())

    def labels(self, folder: Path) -> pa.Table:
        return OUTPUTS[folder].labels()

    def dead(self, folder: Path) -> pa.Table:
        return OUTPUTS[folder].dead_letters()


def test_a_source_without_rows() -> None:
    """Says how to give it some."""
    with pytest.raises(SourceError, match=r"source.rows is an empty Memory: give it rows"):
        open_source(job({"type": "memory", "rows": Memory()}), JobContext())


def test_a_file_can_not_name_rows() -> None:
    with pytest.raises(ValidationError, match="which a file can't name: run the job from Python"):
        job({"type": "memory", "rows": "mine"})


def test_another_process_can_not_have_the_rows() -> None:
    """A pickled object is its key; where there is no such object, that is said."""
    memory = Memory({"text": ["x"]})
    pickled = pickle.dumps(memory)
    assert pickle.loads(pickled) is memory
    memory.key, _OBJECTS[memory.key] = "gone", memory
    del _OBJECTS["gone"]
    with pytest.raises(SpecError, match=r"use runner\.type local"):
        pickle.loads(pickle.dumps(memory))


ROW = pa.table({"text": ["a"]})


@pytest.mark.parametrize("rows", [{"text": ["a"]}, [{"text": "a"}], ROW, ROW.to_reader(), ROW.to_batches()[0]])
def test_rows_of_any_kind(rows: Any) -> None:
    assert Memory(rows).table.to_pylist() == [{"text": "a"}]


def test_rows_that_are_none() -> None:
    with pytest.raises(SourceError, match="rows of type int can't be read by Arrow"):
        Memory(3)


def test_table_of_many_chunks(tmp_path: Path) -> None:
    """Chunks of a table are no blocks, and no rows get lost between them."""
    table = pa.concat_tables([pa.table({"text": pa.array([str(i)] * (i % 4), pa.string())}) for i in range(40)])
    source = open_source(job({"type": "memory", "rows": Memory(table), "split_rows": 11}, rows=7), JobContext())
    texts = [t for split in source.splits() for b in source.read(split, split.start) for t in b.batch[TEXT].to_pylist()]
    assert texts == table["text"].to_pylist()
