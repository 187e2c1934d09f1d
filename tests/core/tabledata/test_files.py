"""Tables in files: the data-file cases of the catalogue (D1, D2), and files that are written whole or not at all."""

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.tabledata.files import TableFile, TableWriter, kind_of


def read(path, **arguments) -> pd.DataFrame:
    return pd.concat(list(TableFile(path, **arguments).batches()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: expected a header"),
        (b"a,b\n1,2\n3\n", "record 3: Expected 2 columns, got 1"),
        (b"a,b\n1,2\n3,4,5\n", "record 3: Expected 2 columns, got 3"),
        ("a,b\n1,2\n1,ü\n".encode("latin-1"), "record 3: .*invalid UTF8"),
        (b"a,b,a\n1,2,3\n", "the header has 'a' more than once"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named_with_its_record(content, message, tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=f"table.csv.*{message}"):
        read(path)


def test_a_number_that_is_none_is_named_with_record_and_column(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n" + "1,2.5\n" * 4999 + "1,abc\n" + "1,2\n" * 20)
    with pytest.raises(DataError, match=r"table.csv, record 5001 \(the header is record 1\), column 'b': 'abc'"):
        read(path, kinds={"b": "number"})


def test_byte_order_marks_quoted_lines_and_a_header_alone_are_fine(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\n1,"x\ny"\n2,z\n')
    assert read(path).to_dict("list") == {"a": [1, 2], "b": ["x\ny", "z"]}
    path.write_text("a,b\n")
    (only,) = TableFile(path).batches()
    assert len(only) == 0
    assert only.columns.tolist() == ["a", "b"]


def test_na_is_missing_among_numbers_and_text_among_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,c,d,e\n1,NA,007,[1],\n,x,8,,NA\n3,,9,[],\n")
    found = read(path)
    assert found["a"].tolist() == [1, pd.NA, 3]
    assert found["b"].fillna("missing").tolist() == ["NA", "x", "missing"]
    assert found["c"].tolist() == ["007", "8", "9"]  # a leading zero is no number's
    assert found["d"].map(lambda value: value if isinstance(value, list) else "missing").tolist() == [
        [1],
        "missing",
        [],
    ]
    assert found["e"].notna().tolist() == [False, True, False]
    assert read(path, kinds={"a": "text"})["a"].fillna("-").tolist() == ["1", "-", "3"]


def test_what_is_known_of_a_column_decides_how_it_is_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b,c\ntrue,1,x\nFALSE,many,3\n")
    found = read(path, kinds={"a": "bool", "b": "whole", "c": "list"})
    assert found["a"].tolist() == [True, False]
    assert found["b"].tolist() == [1, "many"]
    assert found["c"].tolist() == ["x", 3]
    for values, kind in (([True], "bool"), ([1, 2], "whole"), ([1, 2.5], "number"), ([1, "x"], "text"), ([], "text")):
        assert kind_of(values) == kind


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_what_was_written_in_pieces_is_read_in_pieces(ending, tmp_path, monkeypatch):
    monkeypatch.setattr("moeapps.core.tabledata.files._GROUP", 7)
    frame = pd.DataFrame({"a": np.arange(50), "b": np.linspace(0, 1, 50), "c": list("xyzxy") * 10})
    path = tmp_path / f"table{ending}"
    with TableWriter(path) as writer:
        for start in range(0, 50, 3):
            writer.write(frame[start : start + 3])
    assert writer.rows == 50
    parts = list(TableFile(path, batch_rows=8).batches())
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
        assert read(tmp_path / name)["id"].iloc[0] == 2**60 + 1


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
    with pytest.raises(FileFormatError, match="expected a .csv or .parquet file"):
        TableFile(tmp_path / "a.xlsx")
    with pytest.raises(FileFormatError, match=r"a.parquet is not a Parquet file"):
        TableFile(tmp_path / "a.parquet")
    with pytest.raises(FileNotFoundError):
        TableFile(tmp_path / "b.csv")
    with pytest.raises(ConfigError, match="written to a .csv or .parquet file"):
        TableWriter(tmp_path / "a.txt")
