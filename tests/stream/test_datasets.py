"""Public streams: read in the layout in which they are published, fetched by their libraries, and what is refused."""

import gzip
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
from river import datasets as river_datasets

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import PUBLIC_STREAMS, DriftMoEClassifier, prequential, public_stream
from moeapps.stream import datasets as ours

AIRLINES = """@relation airlines
@attribute Airline {AA,US}
@attribute Flight numeric
@attribute AirportFrom {SFO,PHX}
@attribute AirportTo {IAH,CLT}
@attribute DayOfWeek {1,2,3}
@attribute Time numeric
@attribute Length numeric
@attribute Delay {0,1}
@data
AA,269.0,SFO,IAH,3,15.0,205.0,1
US,1558.0,PHX,CLT,3,15.0,222.0,0
"""


def covertype_rows(n=3):
    return "\n".join(",".join(map(str, [2596 + i, *range(53), 1 + i % 7])) for i in range(n)) + "\n"


def write(folder, name, n=2):
    """Small files of a stream, in the layout of the original."""
    if name == "weather":
        (folder / "NEweather_data.csv").write_text("19.8,14,1019.6,8.4,9.9,15.9,28.9,14\n" * n)
        (folder / "NEweather_class.csv").write_text("0\n1\n" * (n // 2))
    elif name == "outdoor":
        (folder / "outdoorStream.data").write_text((" ".join(["0.5"] * 21) + "\n") * n)
        (folder / "outdoorStream.labels").write_text("3\n39\n" * (n // 2))
    elif name == "electricity":
        (folder / "elec2_data.dat").write_text("0 1 0 0.1 0.4 0.003 0.4 0.4\n" * n)
        (folder / "elec2_label.dat").write_text("0\n1\n" * (n // 2))
    elif name == "covertype":
        (folder / "covtype.data.gz").write_bytes(gzip.compress(covertype_rows(n).encode()))
    elif name == "airlines":
        (folder / "airlines.arff").write_text(AIRLINES)
    else:
        row = ",".join(["0.5"] * 33)
        (folder / f"{name.partition('-')[2]}.csv").write_text(f"{row},ae-aegypti-female\n{row},culex-male\n" * (n // 2))


@pytest.mark.parametrize(
    ("name", "features", "labels"),
    [
        ("electricity", 8, [1, 0]),
        ("covertype", 54, [1, 2]),
        ("airlines", 7, [1, 0]),
        ("weather", 8, [0, 1]),
        ("outdoor", 21, [3, 39]),
        ("insects-abrupt_balanced", 33, ["ae-aegypti-female", "culex-male"]),
    ],
)
def test_a_stream_is_read_as_published(name, features, labels, tmp_path):
    write(tmp_path, name)
    X, y = public_stream(name, tmp_path, verify=False)
    assert X.shape == (2, features)
    assert y.tolist() == labels
    assert prequential(DriftMoEClassifier(seed=0), (X, y)).n == 2


def test_airlines_has_text_where_it_has_names(tmp_path):
    write(tmp_path, "airlines")
    X, _ = public_stream("airlines", tmp_path, verify=False)
    assert X.iloc[0].to_dict() == {
        "Airline": "AA", "Flight": 269.0, "AirportFrom": "SFO", "AirportTo": "IAH", "DayOfWeek": "3", "Time": 15.0,
        "Length": 205.0,
    }  # fmt: skip


def test_every_name_has_a_reader_and_says_where_its_files_are(tmp_path):
    for name in PUBLIC_STREAMS:
        with pytest.raises(DataError, match=r"expected .* from (the|OpenML)"):
            public_stream(name, tmp_path)


def test_files_that_were_changed_or_cut_are_refused_unless_asked_for(tmp_path):
    write(tmp_path, "outdoor")
    with pytest.raises(DataError, match=r"outdoorStream.data has SHA-256 .* expected 53f9d793056bf60f"):
        public_stream("outdoor", tmp_path)
    write(tmp_path, "airlines")  # no checksum is known, but the number of rows is
    with pytest.raises(DataError, match="airlines has 2 rows and 7 features, expected 539383 and 7"):
        public_stream("airlines", tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("weather", "NEweather_data.csv", "1,2\n3,4\n", r"shape \(2, 2\).*expected n x 8"),
        ("weather", "NEweather_class.csv", "0\n", r"1 labels, expected n x 8 and n"),
        (
            "weather",
            "NEweather_data.csv",
            "1,2,3,4,5,6,7,8\n1,2,x,4,5,6,7,8\n",
            "line 2, column 2: 'x' is not a number",
        ),
        ("covertype", "covtype.data.gz", None, "covtype.data.gz could not be read"),
        ("insects-gradual_balanced", "gradual_balanced.csv", "1,2,3\n", "has 3 columns, expected 33 features"),
        ("airlines", "airlines.arff", "nothing\n", "not a readable ARFF file: it has no line @data"),
        ("airlines", "airlines.arff", AIRLINES.replace("Delay", "Late"), "expected Delay as the last"),
    ],
)
def test_a_fault_in_a_file_is_named(name, file, content, message, tmp_path):
    write(tmp_path, name)
    (tmp_path / file).write_bytes(b"\x1f\x8b broken" if content is None else content.encode())
    with pytest.raises(DataError, match=message):
        public_stream(name, tmp_path, verify=False)


def test_without_a_folder_libraries_are_asked_and_nothing_is_downloaded_unless_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path))
    monkeypatch.setattr(river_datasets.base, "get_data_home", lambda *_: tmp_path, raising=False)
    monkeypatch.setattr("river.datasets.base.RemoteDataset.is_downloaded", property(lambda self: False))
    monkeypatch.setattr(ours, "fetch_openml", lambda **options: pytest.fail("downloads"))
    for name in ("electricity", "covertype", "airlines", "insects-abrupt_balanced"):
        with pytest.raises(DataError, match=f"{name} is not on this machine: download=True fetches it, or give folder"):
            public_stream(name)
    for name in ("weather", "outdoor"):
        with pytest.raises(ConfigError, match=f"folder is needed for '{name}'"):
            public_stream(name, download=True)
    with pytest.raises(ConfigError, match="name must be one of electricity"):
        public_stream("elec")


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    def no_network(*arguments, **options):
        raise URLError("no network")

    monkeypatch.setattr("river.datasets.base.RemoteDataset.is_downloaded", property(lambda self: False))
    monkeypatch.setattr("river.datasets.base.RemoteDataset.download", no_network)
    monkeypatch.setattr(ours, "fetch_openml", no_network)
    monkeypatch.setattr(ours, "fetch_covtype", no_network)
    for name in ("electricity", "covertype", "airlines", "insects-abrupt_balanced"):
        with pytest.raises(DataError, match=rf"{name} could not be downloaded \(.*no network.*give folder, a folder"):
            public_stream(name, download=True)


def test_what_libraries_serve_has_the_form_of_the_files(monkeypatch, tmp_path):
    write(tmp_path, "airlines")
    X, y = public_stream("airlines", tmp_path, verify=False)
    asked = []

    def openml(**options):
        asked.append(options)
        data = X.astype(dict.fromkeys(X.select_dtypes(exclude="number"), "category"))
        return SimpleNamespace(data=data, target=y.astype(str).astype("category"))

    monkeypatch.setattr(ours, "fetch_openml", openml)
    served, labels = public_stream("airlines", download=True, verify=False)
    assert asked[0]["data_id"] == 1169
    pd.testing.assert_frame_equal(served, X)
    pd.testing.assert_series_equal(labels, y)

    write(tmp_path, "covertype")
    X, y = public_stream("covertype", tmp_path, verify=False)
    monkeypatch.setattr(
        ours, "fetch_covtype", lambda **options: SimpleNamespace(data=X, target=y.rename("Cover_Type").astype(np.int32))
    )
    served, labels = public_stream("covertype", download=True, verify=False)
    pd.testing.assert_frame_equal(served, X)
    pd.testing.assert_series_equal(labels, y)

    names = "date,day,period,nswprice,nswdemand,vicprice,vicdemand,transfer,class"
    (tmp_path / "electricity.csv").write_text(f"{names}\n0,2,0,0.05,0.4,0.003,0.4,0.4,UP\n0,2,0,0,0,0,0,0,DOWN\n")
    write(tmp_path, "insects-abrupt_balanced")
    monkeypatch.setattr("river.datasets.base.RemoteDataset.is_downloaded", property(lambda self: True))
    monkeypatch.setattr("river.datasets.base.RemoteDataset.path", property(lambda self: tmp_path / self.filename))
    served, labels = public_stream("electricity", verify=False)
    assert list(served) == names.split(",")[:-1]
    assert labels.tolist() == [1, 0]
    served, labels = public_stream("insects-abrupt_balanced", verify=False)
    assert served.shape == (2, 33)
    assert labels.tolist() == ["ae-aegypti-female", "culex-male"]


def test_electricity_of_the_folder_is_as_published(data_folder):
    X, y = public_stream("electricity", data_folder / "stream")
    assert X.shape == (45_312, 8)
    assert y.sum() == 19_237  # as river's and OpenML's copies have it


def test_names_of_covertype_are_those_of_scikit_learn(tmp_path):
    from sklearn.datasets._covtype import FEATURE_NAMES

    write(tmp_path, "covertype")
    assert list(public_stream("covertype", tmp_path, verify=False)[0]) == FEATURE_NAMES
