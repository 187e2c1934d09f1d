"""What data is, is found from the data itself."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from moeapps.comparison.kinds import find_kind
from moeapps.core.errors import ConfigError, DataError

FRAME = pd.DataFrame({"a": [1]})


@pytest.mark.parametrize(
    ("data", "arguments", "name"),
    [
        (FRAME, {}, "a table"),
        (FRAME, {"edges": FRAME}, "a graph"),
        (FRAME, {"task": "stream"}, "a stream"),
        (np.zeros((4, 2)), {}, "a table"),
        (np.zeros((4, 8, 8)), {}, "images"),
        (torch.zeros((4, 3, 8, 8)), {}, "images"),
        (Data(x=torch.zeros(2, 2)), {}, "a graph"),
        ([({"a": 1}, 0)], {}, "a stream"),
        ("census-income", {}, "a table"),
        ("elec2", {}, "a stream"),
        ("cora", {}, "a graph"),
        ("digits", {}, "images"),
        ("digits", {"task": "classification"}, "a table"),
    ],
)
def test_the_kind_is_found(data, arguments, name):
    kind, _, reason = find_kind(data, **{"task": "auto", **arguments})
    assert kind.name == name
    assert reason


def test_a_public_name_is_spelled_as_its_package_does():
    assert find_kind("CORA", "auto")[1] == "Cora"
    assert find_kind("Electricity", "auto")[1] == "electricity"


def test_paths_are_told_apart(tmp_path):
    for name in ("t.csv", "t.csv.gz", "t.parquet", "g.npz", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "parts").mkdir()
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "node_features.npy").touch()
    expected = {"t.csv": "a table", "t.csv.gz": "a table", "t.parquet": "a table", "g.npz": "a graph",
                "images": "images", "parts": "a table", "graph": "a graph"}  # fmt: skip
    assert {name: find_kind(tmp_path / name, "auto")[0].name for name in expected} == expected
    with pytest.raises(ConfigError, match=r"notes\.txt: expected \.csv"):
        find_kind(tmp_path / "notes.txt", "auto")


def test_what_is_no_data_is_refused():
    with pytest.raises(DataError, match="got int"):
        find_kind(3, "auto")
    with pytest.raises(DataError, match="with 1 dimensions"):
        find_kind(np.zeros(3), "auto")
    with pytest.raises(ConfigError, match="did you mean 'Cora'"):
        find_kind("Coar", "auto")
    with pytest.raises(ConfigError, match="there is no file 'missing.csv'"):
        find_kind("missing.csv", "auto")
