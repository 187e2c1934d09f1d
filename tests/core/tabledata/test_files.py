"""Tables in files: the data-file cases of the catalogue (D1, D2), and files that are written whole or not at all."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.tabledata.files import TableFile
from moeapps.core.tabledata.numbers import list_column
from moeapps.core.tabledata.source import require_columns
from moeapps.core.tabledata.writer import TableWriter


def read(path, **arguments) -> pd.DataFrame:
    return pd.concat(list(TableFile(path, **arguments).batches()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: expected a header"),
        (b"a,b\n1,2\n3\n", "record 3: Expected 2 columns, got 1"),
        (b"a,b\n1,2\n3,4,5\n", "record 3: Expected 2 columns, got 3"),
        ("a,b\n1,2\n1,ü\n".encode("latin-1"), "record 3: .*invalid UTF8"),
        ("a,b\n1,2\n1,ü\n".encode("latin-1"), r"is not UTF-8.*read_csv\(path, encoding=\"latin-1\"\)"),
        (b"a,b,a\n1,2,3\n", "the header has 'a' more than once"),
        (b"a;b\n1,5;2,5\n", r"looks separated by ';'.*sep=';', decimal=\",\""),
        (
            "größe;b\n1,5;2,5\n".encode("latin-1"),
            r"the header 'größe;b' has .*sep=';', decimal=\",\", encoding=\"latin-1\"\)",
        ),
        (
            "größe,b\n1,2\n".encode("latin-1"),
            r"the header is 'größe,b' in another encoding: the file is not UTF-8. .*encoding=\"latin-1\"",
        ),
        ("größe;b\n1;2\n".encode("latin-1"), r"the header 'größe;b' has no ',' .*sep=';', .*encoding=\"latin-1\"\)"),
        ("a,b\n1,2\n".encode("utf-16"), r"the file is not UTF-8.*encoding=\"utf-16\""),
        (b"a;b;c\n1;2;3\n", r"looks separated by ';'.*sep=';', decimal=\",\""),
    ],
)
def test_a_csv_that_cannot_be_read_is_named_with_its_record(content, message, tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=f"table.csv.*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("header", "named", "how"),
    [
        ("a, größe, c, d, e", r"\(' größe', ' c', ' d', \.\.\.\)", r"read_csv\(path, skipinitialspace=True\)\.to_csv"),
        ("a ,b", r"\('a '\)", r"read_csv\(path\)\.rename\(columns=str\.strip\)\.to_csv"),
        ("a , b", r"\('a ', ' b'\)", r"read_csv\(path\)\.rename\(columns=str\.strip\)\.to_csv"),
    ],
)
def test_spaces_in_a_header_are_told_with_what_helps(header, named, how, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(header + "\n" + ", ".join("1" for _ in header.split(",")) + "\n")
    with pytest.warns(UserWarning, match=f"table.csv: spaces in the header are part of the names.*{named}.*{how}"):
        assert TableFile(path).columns == header.split(",")


def test_a_misspelled_file_is_named_with_the_one_beside_it(tmp_path):
    (tmp_path / "customers.csv").write_text("a\n1\n")
    with pytest.raises(FileNotFoundError, match=r"custmers.csv does not exist \(did you mean '.*/customers.csv'\?\)"):
        read(tmp_path / "custmers.csv")
    with pytest.raises(FileNotFoundError, match="orders.csv does not exist, expected"):
        read(tmp_path / "orders.csv")


def test_a_number_that_is_none_is_named_with_record_and_column(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "1,2.5\n" * 4999 + "1,abc\n" + "1,2\n" * 20)
    with pytest.raises(DataError, match=r"table.csv, record 5001 \(the header is record 1\), column 'b': 'abc'"):
        read(path, kinds={"b": "number"})


def test_byte_order_marks_quoted_lines_and_a_header_alone_are_fine(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\n1,"x\ny"\n2,z\n')
    assert read(path, kinds={"a": "number"}).to_dict("list") == {"a": [1, 2], "b": ["x\ny", "z"]}
    path.write_text("a,b\n")
    (only,) = TableFile(path).batches()
    assert len(only) == 0
    assert only.columns.tolist() == ["a", "b"]


def test_cells_of_text_are_exact_and_those_of_numbers_are_numbers(tmp_path):
    path = tmp_path / "table.csv"
    cells = ["1234567890123456789", "007", "1E5", "NA", "None", "19.0", "", " x", "True", '"a ""b"""']
    path.write_text("n,a\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))
    assert read(path)["a"].tolist() == [*cells[:-1], 'a "b"']
    path.write_text("n,a\n1,1e5\nNA,\n +2 ,nan\n")
    found = read(path, kinds={"n": "number", "a": "number"})
    np.testing.assert_array_equal(found, [[1, 1e5], [np.nan, np.nan], [2, np.nan]])
    with pytest.raises(DataError, match=r"record 3 \(the header is record 1\), column 'n': 'NA' is not a number"):
        read(path, kinds={"n": "number"}, missing=frozenset({""}))


def test_a_cell_that_only_the_slow_reading_takes_costs_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.core.tabledata.files._BLOCK", 1000)
    path = tmp_path / "table.csv"
    cells = [f"{'+' if i in (777, 1500) else ''}{i}" for i in range(2000)]
    path.write_text("n,t\n" + "".join(f"{cell},{i:03d}\n" for i, cell in enumerate(cells)))
    found = read(path, kinds={"n": "number"}, batch_rows=64)
    assert found["n"].tolist() == list(range(2000))
    assert found["t"].tolist() == [f"{i:03d}" for i in range(2000)]
    assert found.index.tolist() == list(range(2000))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_what_was_written_in_pieces_is_read_in_pieces(ending, tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.core.tabledata.writer._GROUP", 7)
    frame = pd.DataFrame({"a": np.arange(50), "b": np.linspace(0, 1, 50), "c": list("xyzxy") * 10})
    path = tmp_path / f"table{ending}"
    with TableWriter(path) as writer:
        for start in range(0, 50, 3):
            writer.write(frame[start : start + 3])
    assert writer.rows == 50
    numbers = {"a": "number", "b": "number"}
    parts = list(TableFile(path, batch_rows=8, kinds=numbers).batches())
    assert max(map(len, parts)) <= 8
    assert TableFile(path).count_rows() == 50
    pd.testing.assert_frame_equal(pd.concat(parts), frame, check_dtype=False)
    assert TableFile(path).columns == ["a", "b", "c"]
    assert next(TableFile(path).batches(["c", "a"])).columns.tolist() == ["c", "a"]


def test_a_large_whole_number_beside_a_missing_one_stays_exact(tmp_path):
    frame = pd.DataFrame({"id": pd.array([2**60 + 1, None], dtype="Int64")})
    for name in ("a.csv", "a.parquet"):
        with TableWriter(tmp_path / name) as writer:
            writer.write(frame)
        assert str(read(tmp_path / name)["id"].iloc[0]) == str(2**60 + 1)


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), TableWriter(path) as writer:  # noqa: PT012
        writer.write(pd.DataFrame({"a": [1]}))
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(FileFormatError, match="expected a .csv, .tsv, .ndjson or .parquet file"):
        TableFile(tmp_path / "a.xlsx")
    with pytest.raises(FileFormatError, match=r"a.parquet is not a Parquet file"):
        TableFile(tmp_path / "a.parquet")
    with pytest.raises(FileNotFoundError):
        TableFile(tmp_path / "b.csv")
    with pytest.raises(ConfigError, match="written to a .csv or .parquet file"):
        TableWriter(tmp_path / "a.txt")


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"a": ["x", "007", "NA"] * 5, "b": np.arange(15) / 4})


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".csv.gz", ".csv.bz2", ".csv.zst", ".ndjson", ".jsonl.gz"])
def test_text_files_of_every_ending_hold_the_same_rows(ending, table, tmp_path):
    path = tmp_path / f"table{ending}"
    if "n" in ending.split(".")[1]:
        text = table.to_json(orient="records", lines=True)
    else:
        text = table.to_csv(index=False, sep="\t" if "tsv" in ending else ",")
    with pa.output_stream(str(path), compression="detect") as stream:
        stream.write(text.encode())
    file = TableFile(path, batch_rows=4, kinds={"b": "number"})
    assert file.count_rows() == 15
    found = pd.concat(list(file.batches()))
    assert found["a"].tolist() == table["a"].tolist()
    assert found["b"].tolist() == table["b"].tolist()
    assert found.index.tolist() == list(range(15))


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_a_folder_of_parts_is_one_table_in_the_order_of_their_names(ending, table, tmp_path):
    for number, columns in ((2, ["b", "a"]), (1, ["a", "b"])):
        piece = table.iloc[(number - 1) * 8 : number * 8][columns]
        path = tmp_path / f"part-{number}{ending}"
        piece.to_csv(path, index=False) if ending == ".csv" else piece.to_parquet(path)
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".hidden.csv").write_text("a\n1\n")
    file = TableFile(tmp_path, kinds={"b": "number"})
    assert file.count_rows() == 15
    found = pd.concat(list(file.batches(["b", "a"])))
    assert found["b"].tolist() == table["b"].tolist()
    assert found["a"].tolist() == table["a"].tolist()


def test_folders_that_are_no_table_are_refused(table, tmp_path):
    with pytest.raises(FileFormatError, match="is a folder without a .csv"):
        TableFile(tmp_path)
    table.to_csv(tmp_path / "a.csv", index=False)
    table.rename(columns={"b": "c"}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(FileFormatError, match=r"b.csv and a.csv differ in 'b'"):
        TableFile(tmp_path)
    table.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(FileFormatError, match="folder of .csv and .parquet files, expected one kind"):
        TableFile(tmp_path)
    (tmp_path / "parts" / "year=2024").mkdir(parents=True)
    table.to_parquet(tmp_path / "parts" / "year=2024" / "a.parquet")
    with pytest.raises(FileFormatError, match="keeps a column in the name of its folder"):
        TableFile(tmp_path / "parts")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x;y\n1;2\n", "looks separated by ';'"),
        ("a.ndjson", '{"a": 1}\n[1]\n', "line 2: expected a JSON object"),
        ("a.ndjson", '{"a": 1}\n{"a": NaN}\n', "line 2: not JSON: NaN is not JSON"),
        ("a.ndjson", '{"a": 1}\n{"a"\n', "line 2: not JSON"),
        ("a.ndjson", "\n", "is empty: expected one JSON object per line"),
    ],
)
def test_text_that_is_no_table_is_refused_by_line(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileFormatError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.ndjson.gz"])
def test_a_compressed_file_that_is_damaged_is_named(name, tmp_path):
    content = gzip.compress(b"a,b\n" + b"1,x\n" * 1000 if "csv" in name else b'{"a": 1}\n' * 1000)
    for damaged in (content[:-20], b"a,b\n1,x\n"):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(FileFormatError, match=f"{name} is damaged, or not what its ending says"):
            read(tmp_path / name)


def test_whole_numbers_of_any_length_survive_ndjson_and_parquet_with_missing_ones(tmp_path):
    (tmp_path / "a.ndjson").write_text(
        '{"id": 12345678901234567890}\n{}\n{"id": null, "l": [9007199254740993, null]}\n'
    )
    found = read(tmp_path / "a.ndjson")
    assert found["id"].tolist() == [12345678901234567890, None, None]
    table = pa.table({"u": pa.array([2**64 - 1, None], pa.uint64()), "l": pa.array([[2**60 + 1, None], None])})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert found["u"].tolist() == [2**64 - 1, pd.NA]
    assert list_column(found["l"], frozenset(), "l") == [[2**60 + 1, None], None]


def test_a_missing_column_is_never_guessed_to_be_one_that_is_needed_itself():
    with pytest.raises(DataError, match="^rows lacks the column 'age'$"):
        require_columns(["age", "tag"], ["tag", "zip"], "rows")
    with pytest.raises(DataError, match=r"lacks the column 'age'; did you mean 'aeg'\?"):
        require_columns(["age", "tag"], ["tag", "aeg"], "rows")
