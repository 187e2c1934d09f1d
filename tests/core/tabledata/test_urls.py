"""Tables in folders, by patterns and behind URLs: what is predicted, in which order, and what is left of a failure."""

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations

from moeapps.core.errors import ConfigError, DataError, FileFormatError, MoEAppsError
from moeapps.core.tabledata.files import TableFile
from moeapps.core.tabledata.scoring import predict_file
from moeapps.core.tabledata.writer import PartsWriter, TableWriter


class Doubling:
    """A model that predicts twice the number ``a``."""

    def column_kinds(self):
        return {"a": "number"}

    def predict(self, X):
        return 2 * X["a"].to_numpy(dtype=float)


ROWS = pd.DataFrame({"id": [f"0{n}" for n in range(50)], "a": np.arange(50.0)})
EXPECTED = pd.DataFrame({"id": ROWS["id"], "prediction": 2 * ROWS["a"]})


@pytest.fixture
def memory():
    """The file system ``memory://``, with the rows in five files of each kind."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for start in range(0, 50, 10):
        part = ROWS[start : start + 10]
        with system.open(f"/in/p{start:02d}.parquet", "wb") as file:
            part.to_parquet(file)
        for ending, options in {".csv": {}, ".csv.gz": {"compression": "gzip"}}.items():
            with system.open(f"/text{ending}/p{start:02d}{ending}", "wb") as file:
                part.to_csv(file, index=False, **options)
    yield system
    system.store.clear()


@pytest.mark.parametrize(
    "source", ["memory://in/*.parquet", "memory://in", "memory://text.csv/*.csv", "memory://text.csv.gz"]
)
def test_a_folder_and_a_pattern_behind_a_url_are_predicted_in_the_order_of_their_names(memory, source):
    assert predict_file(Doubling(), source, "memory://out/scores.csv", ["id"], batch_rows=7) == 50
    with memory.open("/out/scores.csv") as file:
        pd.testing.assert_frame_equal(pd.read_csv(file, dtype={"id": str}), EXPECTED)


def test_a_pattern_of_this_machine_is_predicted_in_the_order_of_names(tmp_path):
    for start in range(0, 50, 10):
        ROWS[start : start + 10].to_csv(tmp_path / f"p{start:02d}.csv", index=False)
    (tmp_path / "notes.txt").write_text("no table")
    output = tmp_path / "out" / "scores.csv"
    assert predict_file(Doubling(), f"file://{tmp_path}/p*.csv", f"file://{output}", ["id"]) == 50
    pd.testing.assert_frame_equal(pd.read_csv(output, dtype={"id": str}), EXPECTED)


def test_a_single_file_behind_a_url_is_read(memory):
    frames = list(TableFile("memory://in/p10.parquet").batches())
    assert pd.concat(frames)["id"].tolist() == ROWS["id"][10:20].tolist()


@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_of_parts_has_one_schema_and_all_rows(memory, tmp_path, remote):
    folder = "memory://scores" if remote else str(tmp_path / "scores")
    first = pd.DataFrame({"n": [1, 2], "word": [None, None]})
    second = pd.DataFrame({"n": [3, 4], "word": ["x", None]})
    with PartsWriter(folder, part_rows=2) as writer:
        writer.write(first)
        writer.write(second)
    names = [name.rpartition("/")[2] for name in fsspec.core.url_to_fs(folder)[0].find(folder)]
    assert names == [*["_SUCCESS"] * remote, "part-00000.parquet", "part-00001.parquet"]
    table = pd.concat(TableFile(folder).batches())
    assert table["n"].tolist() == [1, 2, 3, 4]
    if not remote:
        schemas = [pq.read_schema(path) for path in sorted((tmp_path / "scores").iterdir())]
        assert schemas[0].equals(schemas[1])


def test_an_output_with_a_slash_at_its_end_is_a_folder_of_parts(tmp_path):
    ROWS.to_csv(tmp_path / "rows.csv", index=False)
    predict_file(Doubling(), tmp_path / "rows.csv", f"{tmp_path}/scores/", ["id"])
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["part-00000.parquet"]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "scores"), EXPECTED, check_dtype=False)


def test_a_folder_that_holds_something_is_not_written_to(tmp_path):
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "old.parquet").touch()
    with pytest.raises(ConfigError, match="scores/ is not an empty folder"):
        PartsWriter(f"{tmp_path}/scores/")


@pytest.mark.parametrize("output", ["memory://out/scores.csv", "memory://out/scores/", "file.csv", "folder/"])
def test_nothing_is_left_where_a_row_cannot_be_predicted(memory, tmp_path, output, monkeypatch):
    monkeypatch.chdir(tmp_path)
    memory.pipe_file("/in.csv", b"a\n" + b"1\n" * 70_000 + b"high\n")
    with pytest.raises(DataError, match="memory:///?in.csv, record 70002 .*high"):
        predict_file(Doubling(), "memory://in.csv", output)
    assert not memory.find("/out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_could_not_be_sent_is_removed(memory, monkeypatch):
    def breaks(self, local, path, **options):
        self.pipe_file(path, b"half")
        raise ConnectionResetError("peer went away")

    monkeypatch.setattr(type(memory), "put_file", breaks)
    with pytest.raises(MoEAppsError, match="memory://out/x.csv: ConnectionResetError: peer went away"):  # noqa: SIM117
        with TableWriter("memory://out/x.csv") as writer:
            writer.write(ROWS)
    assert not memory.exists("/out/x.csv")


def test_a_missing_plugin_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(known_implementations, "gs", {"class": "no_such_gcsfs.GCS", "err": "Install it"})
    with pytest.raises(ConfigError, match=r"gs://.*pip install no_such_gcsfs"):
        TableFile("gs://bucket/*.parquet")


def test_an_unknown_protocol_is_named_with_the_nearest_one():
    with pytest.raises(ConfigError, match="memry:// is no file system that fsspec knows; did you mean memory://"):
        TableFile("memry://bucket/x.csv")


@pytest.mark.parametrize(
    ("path", "error", "text"),
    [
        ("memory://none.csv", FileNotFoundError, "memory://none.csv does not exist"),
        ("memory://none/*.csv", FileFormatError, r"memory://none/\*.csv is a pattern that matches no .csv"),
        ("memory://both/*", FileFormatError, "a pattern that matches .csv and .parquet files, expected one kind"),
    ],
)
def test_a_url_without_a_table_is_refused(memory, path, error, text):
    memory.pipe_file("/both/x.csv", b"a\n1\n")
    memory.cp_file("/in/p00.parquet", "/both/y.parquet")
    with pytest.raises(error, match=text):
        TableFile(path)


@pytest.mark.parametrize("output", ["memory://in/p00.parquet", "memory://in/scores.csv", "memory://in/"])
def test_what_is_read_is_not_written_to(memory, output):
    with pytest.raises(ConfigError, match="the file to be predicted|lies in|not an empty folder"):
        predict_file(Doubling(), "memory://in", output)
