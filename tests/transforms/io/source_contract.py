"""What every source promises. A new source is done when its subclass of `SourceContract` passes."""

from __future__ import annotations

import datetime as dt
import decimal
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tagstream.schemas.block import POSITION, TEXT, Block
from tagstream.schemas.dead_letters import dead_schema
from tagstream.schemas.errors import SourceError
from tagstream.schemas.spec import JobSpec
from tagstream.transforms.io.contracts import Source

ROWS = 500


def job(source: dict[str, Any], **blocks: int) -> JobSpec:
    """A job that reads from `source`. The rest of its specification does not matter."""
    return JobSpec.model_validate(
        {
            "source": source,
            "infer": [{"as": "tag", "backend": {"type": "constant"}}],
            "sink": {"type": "parquet", "path": "unused"},
            "blocks": {"in_flight": 4, **blocks},
        }
    )


def plain_table(rows: int = ROWS) -> pa.Table:
    """Ids are row numbers; texts have 0 to 19 words or are null."""
    texts = [None if i % 13 == 0 else " ".join([f"word{i}"] * (i % 20)) for i in range(rows)]
    return pa.table({"id": pa.array(range(rows), pa.int64()), "text": pa.array(texts, pa.string())})


def columns_of_all_types(rows: int) -> dict[str, pa.Array]:
    """One column of each kind that Parquet can hold, nulls included."""

    def column(kind: pa.DataType, value: Any) -> pa.Array:
        return pa.array([None if i % 5 == 0 else value(i) for i in range(rows)], kind)

    day, utc = dt.date(2024, 1, 1), dt.UTC
    return {
        "bool": column(pa.bool_(), lambda i: i % 2 == 0),
        "int8": column(pa.int8(), lambda i: i % 100),
        "uint64": column(pa.uint64(), lambda i: (1 << 63) + i),
        "half": column(pa.float16(), lambda i: np.float16(i % 100)),
        "double": column(pa.float64(), lambda i: float("nan") if i % 7 == 0 else i / 3),
        "decimal": column(pa.decimal128(20, 3), lambda i: decimal.Decimal(i) / 8),
        "date": column(pa.date32(), lambda i: day + dt.timedelta(days=i)),
        "time": column(pa.time64("us"), lambda i: dt.time(i % 24, 1, 2, 3)),
        "instant": column(pa.timestamp("us", "UTC"), lambda i: dt.datetime(2024, 1, 1, i % 24, tzinfo=utc)),
        "local": column(pa.timestamp("ms"), lambda i: dt.datetime(2024, 1, 1, i % 24)),  # noqa: DTZ001
        "duration": column(pa.duration("us"), lambda i: dt.timedelta(microseconds=i)),
        "string": column(pa.string(), lambda i: f"s{i}"),
        "large": column(pa.large_string(), lambda i: f"l{i}"),
        "view": column(pa.string_view(), lambda i: f"a string of more than twelve bytes {i}"),
        "binary": column(pa.binary(), lambda i: bytes([i % 256, 255])),
        "fixed": column(pa.binary(4), lambda i: i.to_bytes(4, "big")),
        "category": column(pa.string(), lambda i: f"c{i % 3}").dictionary_encode(),
        "list": column(pa.list_(pa.int32()), lambda i: list(range(i % 4))),
        "lists": column(pa.list_(pa.list_(pa.string())), lambda i: [[f"x{i}"], None, []]),
        "struct": column(
            pa.struct([("a", pa.int64()), ("b.c", pa.list_(pa.string()))]), lambda i: {"a": i, "b.c": [None, "y"]}
        ),
        "map": column(pa.map_(pa.string(), pa.int64()), lambda i: [(f"k{i}", i)]),
        "a.b": column(pa.int64(), lambda i: -i),
        "null": pa.nulls(rows),
    }


class SourceContract:
    """Subclasses implement `open_source`; each call sees the same input for the same folder and table.

    `kept_types`: names of the columns of `columns_of_all_types` that the system can hold.
    """

    kept_types: tuple[str, ...] = tuple(columns_of_all_types(1))
    key: str | None = None
    """Column of whole numbers without which the source reads nothing."""
    id = "id"
    """What the source calls the ids of `plain_table`."""

    def open_source(self, folder: Path, table: pa.Table, blocks: dict[str, int], **settings: Any) -> Source:
        """A source of the table's rows; `folder` is empty at the first call and the test's own."""
        raise NotImplementedError

    def source(self, folder: Path, table: pa.Table | None = None, blocks: Any = None, **settings: Any) -> Source:
        """`open_source` with defaults for most tests."""
        settings = {"id": self.id, "split_rows": 120, **settings}
        return self.open_source(folder, plain_table() if table is None else table, blocks or {"rows": 50}, **settings)

    @staticmethod
    def read(source: Source, split: Any, start: int) -> list[Block]:
        """The blocks of a split. Checks each of them for the promises that hold for every block."""
        blocks = list(source.read(split, start))
        at = start
        for block in blocks:
            assert block.span.split == split.id
            assert block.span.start == at, "blocks follow each other without gap or overlap"
            at = block.span.stop
            positions = block.batch.column(POSITION).to_pylist()
            assert positions == sorted(set(positions))
            assert all(block.span.start <= p < block.span.stop for p in positions)
            assert block.batch.schema.names == [*source.kept.names, TEXT, POSITION]
            assert block.batch.schema.field(TEXT).type == pa.large_string()
            assert block.dead.schema == dead_schema(source.kept)
            block.batch.select(source.kept.names).validate(full=True)
        assert at == split.stop or start >= split.stop
        return blocks

    def rows(self, source: Source, column: str | None = None) -> list[Any]:
        """Values of a column, the ids by default, over all splits, in order."""
        blocks = [block for split in source.splits() for block in self.read(source, split, split.start)]
        return [v for b in blocks for v in (b.batch.column(column).to_pylist() if column else self.ids(b))]

    def ids(self, block: Block) -> list[int]:
        """The ids in a block, as numbers."""
        return block.batch.column(self.id).to_pylist()

    @pytest.mark.parametrize("split_rows", [1, 7, 20, 10_000])
    def test_every_row_once_and_in_order(self, tmp_path: Path, split_rows: int) -> None:
        """Each row is read once, with its own text and position, however the input is split."""
        table = plain_table(24)
        source = self.source(tmp_path, table, split_rows=split_rows)
        splits = source.splits()
        assert sum(split.rows for split in splits) == 24
        assert all(0 < split.rows <= split_rows for split in splits)
        assert self.rows(source) == list(range(24))
        assert self.rows(source, TEXT) == table["text"].to_pylist()

    def test_reads_from_any_position(self, tmp_path: Path) -> None:
        """Read from position p, a split gives exactly its rows at and above p. Read from its end, it gives nothing."""
        source = self.source(tmp_path, plain_table(30), {"rows": 7}, split_rows=13)
        for split in source.splits():
            whole = [id_ for b in self.read(source, split, split.start) for id_ in self.ids(b)]
            for start in [*range(split.start, split.start + split.rows + 1), split.stop]:
                ids = [id_ for b in self.read(source, split, start) for id_ in self.ids(b)]
                assert ids == whole[start - split.start :]

    @pytest.mark.parametrize("rows", [1, 3, 64, 4096])
    def test_blocks_have_at_most_so_many_rows(self, tmp_path: Path, rows: int) -> None:
        """The limit holds, and blocks are not needlessly small."""
        source = self.source(tmp_path, blocks={"rows": rows}, split_rows=200)
        for split in source.splits():
            sizes = [block.num_rows for block in self.read(source, split, split.start)]
            assert max(sizes) <= rows
            assert len(sizes) <= 3 * -(-split.rows // rows) + 3

    @pytest.mark.parametrize("start", [0, 11])
    def test_blocks_have_at_most_so_many_bytes(self, tmp_path: Path, start: int) -> None:
        """With very uneven texts, a block exceeds the limit by a few bytes at most, or is a single row."""
        sizes = [200_000 if i == 77 else 3_000 if 100 <= i < 120 else i % 50 for i in range(300)]
        table = pa.table({"id": range(300), "text": ["x" * size for size in sizes]})
        source = self.source(tmp_path, table, {"rows": 1_000, "bytes": 10_000}, split_rows=1_000)
        found = []
        for number, split in enumerate(source.splits()):
            blocks = self.read(source, split, split.start + (0 if number else start))
            found += [length for b in blocks for length in map(len, b.batch[TEXT].to_pylist())]
            assert all(b.num_rows == 1 or b.nbytes <= 11_000 for b in blocks)
            assert max(b.num_rows for b in blocks) > 10
        assert found == sizes[start:]

    def test_ids_are_stable_and_distinct(self, tmp_path: Path) -> None:
        """Opening the same input again gives the same splits. Their ids can be file names."""
        splits = self.source(tmp_path).splits()
        assert self.source(tmp_path).splits() == splits
        assert len({split.id for split in splits}) == len(splits) > 3
        assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]*", split.id) for split in splits)

    def test_travels_to_workers(self, tmp_path: Path) -> None:
        """A pickled copy of source and splits reads the same rows."""
        source = self.source(tmp_path)
        copy, splits = pickle.loads(pickle.dumps((source, source.splits())))
        ids = [id_ for split in splits for b in self.read(copy, split, split.start) for id_ in self.ids(b)]
        assert ids == list(range(ROWS))

    def test_kept_columns_pass_unchanged(self, tmp_path: Path) -> None:
        """Kept columns keep their types and values, in the requested order."""
        held = {name: array for name, array in columns_of_all_types(60).items() if name in self.kept_types}
        keys = {self.key: pa.array(range(60))} if self.key else {}
        table = pa.table({"text": [f"t{i}" for i in range(60)], **held, **keys})
        names = [*reversed(held), "text"]
        source = self.source(tmp_path, table, {"rows": 7}, split_rows=20, id=self.key, keep=names)
        assert source.kept.names == [*keys, *names]
        blocks = [b for split in source.splits() for b in self.read(source, split, split.start)]
        got = pa.Table.from_batches([b.batch for b in blocks])
        for name in names:
            assert got.schema.field(name).type == table.schema.field(name).type, name
            assert str(got[name].to_pylist()) == str(table[name].to_pylist()), name
        assert got[TEXT].to_pylist() == table["text"].to_pylist()

    def test_all_columns(self, tmp_path: Path) -> None:
        """`keep: '*'`: every column but the text, in the order of the input, its values unchanged."""
        keys = {self.key: pa.array(range(60))} if self.key else {}
        table = pa.table(
            {"a": range(60), "text": [f"t{i}" for i in range(60)], **keys, "Z": [f"z{i}" for i in range(60)]}
        )
        source = self.source(tmp_path, table, {"rows": 7}, split_rows=20, id=self.key, keep="*")
        assert source.kept.names == [name for name in table.column_names if name != "text"]
        blocks = [b for split in source.splits() for b in self.read(source, split, split.start)]
        got = pa.Table.from_batches([b.batch for b in blocks])
        assert got.select(source.kept.names).to_pylist() == table.select(source.kept.names).to_pylist()
        assert got[TEXT].to_pylist() == table["text"].to_pylist()

    def test_only_what_is_asked_for(self, tmp_path: Path) -> None:
        """A block holds only the columns that the specification names."""
        table = plain_table(10).append_column("other", pa.array(range(10)))
        source = self.source(tmp_path, table, id=self.key)
        assert source.kept.names == ([self.key] if self.key else [])
        assert self.rows(source, TEXT) == table["text"].to_pylist()

    def test_null_and_invalid_texts_are_kept(self, tmp_path: Path) -> None:
        """Null, empty and invalid UTF-8 texts arrive unchanged, because a source does not check texts."""
        raw = [b"ok", None, b"", b"\xff\xfe", b"nul\x00byte", "ü".encode()[:1], "😀".encode()]
        table = pa.table({"id": range(7), "text": pa.array(raw, pa.binary()).view(pa.string())})
        source = self.source(tmp_path, table)
        blocks = [b for split in source.splits() for b in self.read(source, split, split.start)]
        assert [t for b in blocks for t in b.batch[TEXT].cast(pa.large_binary()).to_pylist()] == raw

    def test_no_rows_no_splits(self, tmp_path: Path) -> None:
        """Empty input has no splits and raises no error."""
        assert self.source(tmp_path, plain_table(0)).splits() == []

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"text": "txet"}, r"no column 'txet' \(source\.text\); did you mean 'text'\? there are: id, text"),
            ({"id": "ids"}, r"no column 'ids' \(source\.id\); did you mean 'id'\?"),
            ({"keep": ["zzz"]}, r"no column 'zzz' \(source\.keep\); there are: id, text"),
            ({"text": "id"}, r"column 'id' is int64, not text; set source\.text to a text column"),
        ],
    )
    def test_wrong_columns_before_work_starts(self, tmp_path: Path, settings: dict, message: str) -> None:
        """The message names the column, the field, a suggestion and the existing columns."""
        with pytest.raises(SourceError, match=message):
            self.source(tmp_path, **settings)

    def test_can_be_left_early(self, tmp_path: Path) -> None:
        """A reader that stops after the first block does not disturb the next reader."""
        source = self.source(tmp_path)
        split = source.splits()[0]
        blocks = source.read(split, split.start)
        first = next(blocks)
        blocks.close()
        assert next(source.read(split, split.start)).batch.equals(first.batch)
