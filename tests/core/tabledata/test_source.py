"""A frame and a file behind one door: the same rows, the same names in errors."""

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import DataError
from moeapps.core.tabledata.source import TableSource, listed, require_columns


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"id": [f"a{i}" for i in range(10)], "age": np.arange(10) / 2})


@pytest.fixture(params=["frame", "csv", "parquet"])
def source(request, frame, tmp_path) -> TableSource:
    path = tmp_path / f"table.{request.param}"
    if request.param == "frame":
        return TableSource(frame)
    frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path)
    return TableSource(path, batch_rows=4)


def test_a_frame_and_a_file_have_the_same_rows(source, frame):
    assert source.columns == ["id", "age"]
    assert source.count_rows() == 10
    found = pd.concat(list(source.batches()))
    assert found["id"].tolist() == frame["id"].tolist()
    assert found["age"].astype(float).tolist() == frame["age"].tolist()
    assert [len(batch) for batch in source.batches(["age"])] == ([4, 4, 2] if source.is_file else [10])
    assert all(batch.columns.tolist() == ["age"] for batch in source.batches(["age"]))
    assert (source.hashes("id") == TableSource(frame).hashes("id")).all()
    assert len(set(source.hashes("id"))) == 10


def test_missing_columns_are_named_with_the_table(source):
    source.require(["id", "age"])
    with pytest.raises(DataError, match=r"(the frame|table\.\w+) lacks the columns 'city', 'sex', which keep names"):
        source.require(["id", "city", "sex"], "keep")


def test_an_error_about_a_files_content_starts_with_its_name_once(source):
    def fail():
        raise DataError("column 'age' is wrong")

    with pytest.raises(DataError) as error:
        source.named(lambda: source.named(fail))
    expected = f"{source.name}: " if source.is_file else ""
    assert str(error.value) == f"{expected}column 'age' is wrong"
    assert source.named(lambda: 3) == 3


def test_what_is_no_table_is_refused():
    with pytest.raises(DataError, match="must be a table .* or the path of a file, got list"):
        TableSource([1, 2])


def test_long_lists_of_names_are_cut():
    require_columns([], [], "the frame")
    with pytest.raises(DataError, match=r"'c9' and 2 more$"):
        require_columns([f"c{i}" for i in range(12)], [], "the frame")
    assert listed(["a", 1]) == "'a', '1'"


def test_rows_without_an_id_are_not_the_same_row(tmp_path):
    frame = pd.DataFrame({"id": ["a", None, "NA", ""]})
    frame.to_csv(tmp_path / "ids.csv", index=False)
    for table in (frame, tmp_path / "ids.csv"):
        assert len(TableSource(table).hashes("id")) == 1


def test_names_of_columns_that_are_numbers_are_refused_by_name():
    with pytest.raises(DataError, match="a column called 7"):
        TableSource(pd.DataFrame({7: [1]})).infer([7])
