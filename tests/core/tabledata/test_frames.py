"""Missing cells of a column, whatever its type."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.frames import missing_cells

COLUMNS = {
    "floats": pd.Series([1.5, np.nan]),
    "nullable": pd.Series([1, None], dtype="Int64"),
    "whole numbers of Arrow": pd.Series([1, None], dtype=pd.ArrowDtype(pa.int64())),
    "floats of Arrow": pd.Series([1.5, None], dtype=pd.ArrowDtype(pa.float64())),
    "bools of Arrow": pd.Series([True, None], dtype=pd.ArrowDtype(pa.bool_())),
    "times of Arrow": pd.Series([pd.Timestamp(0), None], dtype=pd.ArrowDtype(pa.timestamp("us"))),
    "text of Arrow": pd.Series(["a", "NA"], dtype=pd.ArrowDtype(pa.string())),
    "text": pd.Series(["a", "NA"]),
    "objects": pd.Series(["a", ""], dtype=object),
    "lists": pd.Series([["NA"], None], dtype=object),
    "categories": pd.Series(pd.Categorical(["a", "NA"])),
    "categories that are numbers": pd.Series(pd.Categorical([1, None])),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_missing_cells_are_found_in_a_column_of_any_type(name):
    assert missing_cells(COLUMNS[name], missing_texts()).tolist() == [False, True]
