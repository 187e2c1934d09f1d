"""A text file that is copied when it is opened gives the same rows and the same errors."""

import gzip
import json

import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pytest

from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.tabledata.files import TableFile

CSV = 'a,b,c\n1,x,2.5\nNA,,3\n 4 ,"y\nz",1e3\n'
KINDS = {"a": "number", "c": "number"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies"


def rows(file: TableFile, names=None) -> pd.DataFrame:
    return pd.concat(list(file.batches(names)))


@pytest.mark.parametrize("kinds", [{}, KINDS, {"c": "number"}])
@pytest.mark.parametrize("names", [None, ["c", "a"], ["b"]])
def test_the_copy_of_a_csv_file_gives_the_rows_of_the_file(tmp_path, folder, kinds, names):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    plain, copied = TableFile(path, 2, kinds), TableFile(path, 2, kinds, copy_to=folder)
    path.unlink()
    path.write_text(CSV)  # the plain one reads it now, the copied one must not
    pd.testing.assert_frame_equal(rows(copied, names), rows(plain, names))
    assert copied.count_rows() == plain.count_rows() == 3


def test_a_csv_file_is_opened_for_its_header_and_for_its_copy_only(tmp_path, folder, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    opened = []
    plain = arrow_csv.open_csv
    monkeypatch.setattr(arrow_csv, "open_csv", lambda *a, **k: (opened.append(a), plain(*a, **k))[1])
    file = TableFile(path, kinds=KINDS, copy_to=folder)
    for _ in range(3):
        rows(file)
        file.count_rows()
    assert len(opened) == 2


def test_columns_that_were_not_copied_are_read_from_the_file(tmp_path, folder):
    path = tmp_path / "t.csv"
    path.write_text(CSV)
    file = TableFile(path, copy_to=folder, copied=["a", "absent"])
    assert rows(file, ["a", "b"])["b"].tolist() == ["x", "", "y\nz"]
    assert pa.ipc.open_file(folder / "0").schema.names == ["a"]


def test_a_wrong_number_in_a_copy_is_named_as_in_the_file(tmp_path, folder):
    path = tmp_path / "t.csv"
    path.write_text(CSV + "w,q,1\n")
    messages = []
    for copy_to in (None, folder):
        with pytest.raises(DataError) as error:
            rows(TableFile(path, kinds=KINDS, copy_to=copy_to))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    assert "record 5 (the header is record 1), column 'a': 'w'" in messages[0]


def test_a_record_with_too_few_cells_is_refused_when_it_is_copied(tmp_path, folder):
    path = tmp_path / "t.csv"
    path.write_text(CSV + "1,2\n")
    with pytest.raises(FileFormatError, match=r"t.csv: .*record 5: Expected 3 columns, got 2"):
        TableFile(path, copy_to=folder)


def test_an_ndjson_file_is_read_without_a_copy(tmp_path, folder):
    objects = [{"n": 10**30, "h": [1, "a"]}, {"n": 0.5, "h": None}, {"h": [], "late": True}] * 700
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, objects)).encode()))
    found, expected = rows(TableFile(path, 100, copy_to=folder)), rows(TableFile(path, 100))
    pd.testing.assert_frame_equal(found, expected)
    assert [type(value) for value in found["n"]] == [type(value) for value in expected["n"]]
    assert not list(folder.iterdir())
