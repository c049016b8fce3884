"""Files of one folder whose columns differ: the right value for each row, or a refusal that names two files."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagstream.schemas.block import TEXT
from tagstream.schemas.errors import SourceError, SpecError
from tagstream.transforms.io.contracts import Source
from tests.pipelines.bulk_jobs import BulkJob
from tests.transforms.io.parquet.test_source import source

D = decimal.Decimal
UUIDS = [uuid.UUID(int=1).bytes, None]
UUID_ARRAY = pa.ExtensionArray.from_storage(pa.uuid(), pa.array(UUIDS, pa.binary(16)))


def put(path: Path, column: pa.Array, texts: pa.Array | None = None, name: str = "x") -> None:
    """A file whose column is `x`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = pa.array(["t"] * len(column)) if texts is None else texts
    pq.write_table(pa.table({name: column, "text": texts}), path)


def rows(opened: Source, name: str) -> list[Any]:
    batches = [b.batch for split in opened.splits() for b in opened.read(split, split.start)]
    assert {batch.schema.field(name).type for batch in batches} <= {
        opened.kept.field(name).type if name in opened.kept.names else pa.large_string()
    }
    return [value for batch in batches for value in batch[name].to_pylist()]


TEXTS = [
    pa.array(["a", None], pa.string()),
    pa.array(["a", None], pa.large_string()),
    pa.array(["a", None], pa.string_view()),
    pa.array([b"a", None], pa.binary()),
    pa.array([b"a", None], pa.large_binary()),
    pa.array([b"a", None], pa.binary_view()),
    pa.array(["a", None]).dictionary_encode(),
    pa.array(["a", None]).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.large_string())),
    pa.array([b"a", None], pa.binary()).dictionary_encode(),
    pa.ExtensionArray.from_storage(pa.json_(), pa.array(["a", None])),
]


def test_text_in_every_type_beside_each_other(tmp_path: Path) -> None:
    """Text is text: no order of the files matters."""
    for number, texts in enumerate([*TEXTS, pa.nulls(2)]):
        put(tmp_path / f"in/{number:02d}.parquet", pa.array([1, 2]), texts)
    assert rows(source(tmp_path / "in", id="x"), TEXT) == ["a", None] * len(TEXTS) + [None, None]


CASES: dict[str, tuple[list[pa.Array], pa.DataType, list[Any]]] = {
    "text": ([*TEXTS[:3], *TEXTS[6:8], TEXTS[9]], pa.string(), ["a", None] * 6),
    "integers": ([pa.array([1], pa.int8()), pa.array([-(2**63)], pa.int64()), pa.array([2**32 - 1], pa.uint32())],
                 pa.int64(), [1, -(2**63), 2**32 - 1]),
    "null": ([pa.nulls(1), pa.array(["a"])], pa.string(), [None, "a"]),
    "floats": ([pa.array([0.5], pa.float32()), pa.array([0.1], pa.float64())], pa.float64(), [0.5, 0.1]),
    "int64 that is exact in double": ([pa.array([2**53, None]), pa.array([0.5])], pa.float64(), [2.0**53, None, 0.5]),
    "int32 beside double": ([pa.array([2**31 - 1], pa.int32()), pa.array([0.5])], pa.float64(), [2.0**31 - 1, 0.5]),
    "timestamps": ([pa.array([1], pa.timestamp("s")), pa.array([1], pa.timestamp("us"))], pa.timestamp("us"),
                   [dt.datetime(1970, 1, 1, 0, 0, 1), dt.datetime(1970, 1, 1, 0, 0, 0, 1)]),  # noqa: DTZ001
    "dates": ([pa.array([dt.date(9999, 12, 31)], pa.date32()), pa.array([dt.date(1, 1, 1)], pa.date64())],
              pa.date32(), [dt.date(9999, 12, 31), dt.date(1, 1, 1)]),
    "decimals": ([pa.array([D("1.5")], pa.decimal128(3, 1)), pa.array([D("0.001")], pa.decimal128(20, 3)),
                  pa.array([7], pa.int8())], pa.decimal128(20, 3), [D("1.500"), D("0.001"), D("7.000")]),
    "lists": ([pa.array([[1], None], pa.list_(pa.int8())), pa.array([[2, None], []], pa.large_list(pa.int32()))],
              pa.list_(pa.int32()), [[1], None, [2, None], []]),
    "uuid": ([UUID_ARRAY, UUID_ARRAY.storage], pa.binary(16), UUIDS * 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("backwards", [False, True])
def test_kept_column(tmp_path: Path, kind: str, backwards: bool) -> None:
    """Every value is exact, in one type, as id and as kept column."""
    columns, expected, values = CASES[kind]
    put(tmp_path / "in/0.parquet", pa.array([], pa.null()))
    for number, column in enumerate(columns):
        put(tmp_path / f"in/{len(columns) - number if backwards else number + 1}.parquet", column)
    for fields in ({"id": "x"}, {"id": None, "keep": ["x"]}):
        opened = source(tmp_path / "in", **fields)
        assert opened.kept.field("x").type == expected
        assert sorted(rows(opened, "x"), key=repr) == sorted(values, key=repr)


def test_structs(tmp_path: Path) -> None:
    """A field that a file lacks is null there."""
    put(tmp_path / "in/a.parquet", pa.array([{"a": 1}, None]))
    put(tmp_path / "in/b.parquet", pa.array([{"b": "x", "a": None}]))
    assert rows(source(tmp_path / "in", id="x"), "x") == [{"a": 1, "b": None}, None, {"a": None, "b": "x"}]


REFUSED = {
    "text and numbers": (pa.array([1]), pa.array(["1"]), "is string, but int64"),
    "text and bytes": (pa.array([b"1"]), pa.array(["1"]), "is string, but binary"),
    "uint64": (pa.array([1]), pa.array([2**64 - 1], pa.uint64()), "is uint64, but int64"),
    "int64 beyond double": (pa.array([0.5]), pa.array([2**53 + 1]), r"is int64, but double.*not exact in double"),
    "int64 in a struct": (pa.array([{"a": 0.5}]), pa.array([{"a": 1}]), "may not be exact"),
    "zones": (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "UTC")), "tz=UTC"),
    "instants beyond nanoseconds": (
        pa.array([1], pa.timestamp("ns")),
        pa.array([dt.datetime(9999, 12, 31)], pa.timestamp("us")),  # noqa: DTZ001
        r"is timestamp\[us\], but timestamp\[ns\].*not exact in timestamp\[ns\]",
    ),
    "date and instant": (pa.array([dt.date(2024, 1, 1)]), pa.array([1], pa.timestamp("us")), "is timestamp"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("on_bad_file", ["fail", "dead_letter"])
@pytest.mark.parametrize("statistics", [True, False])
def test_what_can_not_be_unified(tmp_path: Path, kind: str, on_bad_file: str, statistics: bool) -> None:
    """Refused at start by both files and both types. Files that can be read are never given up for their types."""
    one, other, told = REFUSED[kind]
    (tmp_path / "in").mkdir()
    for name, column in (("a", one), ("b", other)):
        table = pa.table({"x": column, "text": ["t"]})
        pq.write_table(table, tmp_path / f"in/{name}.parquet", write_statistics=statistics)
    with pytest.raises(SourceError, match=told) as raised:
        source(tmp_path / "in", id="x", on_bad_file=on_bad_file)
    said = str(raised.value)
    assert "a.parquet" in said
    assert "b.parquet" in said
    assert "on_bad_file" not in said


def test_column_that_a_file_lacks(tmp_path: Path) -> None:
    """Null there, and said; a column that no file has is an error; so is a file without the text."""
    put(tmp_path / "in/a.parquet", pa.array([1]))
    put(tmp_path / "in/b.parquet", pa.array([2]), name="y")
    opened = source(tmp_path / "in", id="x", keep=["y"])
    assert (rows(opened, "x"), rows(opened, "y")) == ([1, None], [None, 2])
    assert "column 'x' is null for 1 of 2 files, which do not have it: 'b.parquet'" in opened.notes  # type: ignore[attr-defined]
    with pytest.raises(SourceError, match=r"a\.parquet: no column 'z' \(source\.id\)"):
        source(tmp_path / "in", id="z")
    pq.write_table(pa.table({"x": [3]}), tmp_path / "in/c.parquet")
    with pytest.raises(SourceError, match=r"c\.parquet: no column 'text'"):
        source(tmp_path / "in", id="x")


def test_one_type_stays_as_it_is(tmp_path: Path) -> None:
    """Outputs that were made before go on: the type of a column that is the same in all files does not change."""
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.uint8(), pa.int16()):
        for name in ("a", "b"):
            put(tmp_path / f"in/{name}.parquet", pa.nulls(2, kind))
        assert source(tmp_path / "in", id="x").kept.field("x").type == kind


EXTENSIONS = {
    "uuid": (pa.uuid(), pa.array(UUIDS, pa.binary(16))),
    "json": (pa.json_(), pa.array(["{}", None])),
    "tensor": (pa.fixed_shape_tensor(pa.int32(), [2]), pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2))),
    "bool8": (pa.bool8(), pa.array([1, 0], pa.int8())),
}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", EXTENSIONS)
def test_extension_types(tmp_path: Path, kind: str, nested: bool) -> None:
    """Read as their storage, through a whole job, dead letters included."""
    extension, storage = EXTENSIONS[kind]
    column = pa.ExtensionArray.from_storage(extension, storage)
    expected: list[Any] = storage.to_pylist()
    if nested:
        column = pa.StructArray.from_arrays([column], ["u"])
        expected = [{"u": value} for value in expected]
    job = BulkJob(tmp_path)
    job.put("a.parquet", ["a", None], x=column)
    job.run(source__keep="x", max_dead=1)
    assert pq.read_table(tmp_path / "out")["x"].to_pylist() == expected[:1]
    assert [row["x"] for row in pq.read_table(tmp_path / "dead")["row"].to_pylist()] == expected[1:]


MESSAGE = pa.array([{"body": "a", "from": {"id": 1}}, None, {"body": None, "from": None}])


def test_paths_into_structs(tmp_path: Path) -> None:
    """Text, id and kept columns; a null on the way is null; another file has a null, or no such field."""
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"message": MESSAGE}), tmp_path / "in/a.parquet")
    pq.write_table(pa.table({"message": pa.array([{"body": "b"}])}), tmp_path / "in/b.parquet")
    pq.write_table(pa.table({"message": pa.nulls(1)}), tmp_path / "in/c.parquet")
    opened = source(tmp_path / "in", text="message.body", id="message.from.id")
    assert rows(opened, TEXT) == ["a", None, None, "b", None]
    assert rows(opened, "message.from.id") == [1, None, None, None, None]


def test_quotes_for_a_literal_dot(tmp_path: Path) -> None:
    """A column whose own name has the dot comes first; quotes name one inside a path."""
    table = pa.table({"a.b": pa.array([{"c": "quoted"}]), "a": pa.array([{"b": "path"}]), "m": [{"x.y": 1}]})
    pq.write_table(table, tmp_path / "x.parquet")
    opened = source(tmp_path / "x.parquet", text='"a.b".c', id="a.b", keep=['m."x.y"'])
    assert (rows(opened, TEXT), rows(opened, "a.b"), rows(opened, 'm."x.y"')) == (["quoted"], [{"c": "quoted"}], [1])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("items.name", r"'items.name' leads into 'items', which is list<.*many values"),
        ("tags.k", r"'tags.k' leads into 'tags', which is map<"),
        ("n.k", r"'n.k' leads into 'n', which is int64 and has no fields"),
        ("s.k", r"no column 's.k' \(source\.text\)"),
        ("s.a", r"column 's.a' is int64, not text"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, path: str, message: str) -> None:
    """List elements, entries of maps and fields of numbers are refused by name."""
    tags = pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))
    table = pa.table({"items": [[{"name": "x"}]], "tags": tags, "n": [1], "s": [{"a": 1}], "text": ["t"]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=message):
        source(tmp_path / "x.parquet", text=path, id=None)
    if path != "s.a":
        with pytest.raises(SourceError, match=message.replace("text", "keep")):
            source(tmp_path / "x.parquet", id=None, keep=[path])


def test_partitions(tmp_path: Path) -> None:
    """Folders of Hive are columns: integers if all values are, else text; escapes and nulls as Hive writes them."""
    for number, folder in enumerate(
        ["day=2026-01-01/hour=7", "day=2026-01-02/hour=__HIVE_DEFAULT_PARTITION__", "day=a%20b/hour=-12"]
    ):
        put(tmp_path / "in" / folder / "x.parquet", pa.array([number]))
    opened = source(tmp_path / "in", id="x", keep=["day", "hour"])
    assert (rows(opened, "day"), opened.kept.field("day").type) == (["2026-01-01", "2026-01-02", "a b"], pa.string())
    assert (rows(opened, "hour"), opened.kept.field("hour").type) == ([7, None, -12], pa.int64())
    put(tmp_path / "in/day=z/hour=07/x.parquet", pa.array([3]))
    assert rows(source(tmp_path / "in", keep=["hour"], id=None), "hour") == ["7", None, "-12", "07"]
    assert rows(source(tmp_path / "in/day=z", keep=["day"], id=None), "day") == ["z"]
    put(tmp_path / "in/x.parquet", pa.array([4]))
    assert rows(source(tmp_path / "in", keep=["day"], id=None), "day")[-1] is None


def test_partition_beside_a_column(tmp_path: Path) -> None:
    """A column inside the file comes first; a file that lacks it has the value of its path."""
    put(tmp_path / "in/x=5/a.parquet", pa.array([1], pa.int8()))
    put(tmp_path / "in/x=6/b.parquet", pa.array([1]), name="y")
    assert rows(source(tmp_path / "in", id="x"), "x") == [1, 6]


def test_everything_means_the_columns_of_the_files(tmp_path: Path) -> None:
    """`keep: '*'` goes on as before beside partitions, and says how to keep these."""
    put(tmp_path / "in/day=1/a.parquet", pa.array([1]))
    opened = source(tmp_path / "in", id=None, keep="*")
    assert opened.kept.names == ["x"]
    assert opened.notes == [  # type: ignore[attr-defined]
        "keep: '*' means the columns inside the files; to keep 'day' of their paths, list the columns in place of '*'"
    ]


def test_names_that_are_ours(tmp_path: Path) -> None:
    """They can't be kept, whatever the source."""
    with pytest.raises(SpecError, match="names that begin with __"):
        BulkJob(tmp_path).spec(source__keep=["__x"])
