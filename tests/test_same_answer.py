"""The contract of docs/data.md: the same cells give the same rows to a model, whatever they come from."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import text_kind
from moeapps.core.tabledata.columns import ColumnEncoder
from moeapps.core.tabledata.frames import as_frame
from moeapps.core.tabledata.scoring import predict_file
from moeapps.core.tabledata.source import TableSource
from moeapps.recsys import Schema, TableEncoder
from moeapps.serve.schema import predict_model
from moeapps.serve.services import TableService

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

# --- tables: lists of Python values by column, None where missing

TEXT = st.sampled_from(["Ulm", "Bonn", "New York", "a,b", 'say "x"', "1E5", "7a", "é", " x", "Nan", "true", "yes", "-"])
CELLS = {
    "text": TEXT,
    "code": st.sampled_from(["007", "7", "07", "00501", "0", "12"]),
    "digits": st.sampled_from(["7", "12", "7.0", "19", "3e2", "-1"]),  # categories that look like numbers
    "id": st.integers(10**18, 10**18 + 40),
    "long": st.integers(2**64 - 30, 2**64 - 1),
    "whole": st.integers(-5, 60),
    "number": st.floats(-1e6, 1e6).map(lambda value: round(value, 3)),
    "bool": st.booleans(),
    "time": st.integers(0, 10**9).map(lambda seconds: pd.Timestamp(seconds, unit="s")),
}
TYPES = {"code": "category", "digits": "category", "text": "category"}


def cells(name: str) -> st.SearchStrategy:
    return st.one_of(CELLS[name], CELLS[name], CELLS[name], CELLS[name], st.none())


@st.composite
def tables(draw) -> dict[str, list[Any]]:
    rows = draw(st.integers(3, 12))
    names = draw(st.lists(st.sampled_from(sorted(CELLS)), min_size=1, max_size=5, unique=True))
    table = {name: draw(st.lists(cells(name), min_size=rows, max_size=rows)) for name in names}
    for name, values in table.items():
        values[0] = draw(CELLS[name])  # of a column without any cell only the type tells what it is
    return table


# --- doors: from such a table to what a model is given


def classic(table):
    """As pandas infers: an int column with a hole would lose its ids, so that it stays objects."""
    columns = {}
    for name, values in table.items():
        exact = name in ("id", "long") and None in values
        columns[name] = pd.Series(values, dtype=object if exact else None)
    return pd.DataFrame(columns)


def objects(table):
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in table.items()})


def arrow(table):
    kinds = {"id": pa.int64(), "long": pa.uint64(), "whole": pa.int64(), "number": pa.float64(), "bool": pa.bool_()}
    kinds["time"] = pa.timestamp("us")
    return pa.table({name: pa.array(values, kinds.get(name, pa.string())) for name, values in table.items()})


def nullable(table):
    return arrow(table).to_pandas(types_mapper=NULLABLE.get)


NULLABLE = {
    pa.int64(): pd.Int64Dtype(), pa.uint64(): pd.UInt64Dtype(), pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(), pa.string(): pd.StringDtype(),
}  # fmt: skip


def arrow_dtypes(table):
    return arrow(table).to_pandas(types_mapper=pd.ArrowDtype)


def polars(table):
    return pl.from_arrow(arrow(table))


def text_of(value: Any) -> Any:
    return value.isoformat() if isinstance(value, pd.Timestamp) else value


def write_csv(table, path: Path, sep: str = ",") -> None:
    frame = pd.DataFrame({name: pd.Series(list(map(text_of, v)), dtype=object) for name, v in table.items()})
    text = frame.to_csv(index=False, sep=sep)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def csv(table, folder):
    write_csv(table, folder / "t.csv")
    return folder / "t.csv"


def tsv(table, folder):
    write_csv(table, folder / "t.tsv", "\t")
    return folder / "t.tsv"


def csv_gz(table, folder):
    write_csv(table, folder / "t.csv.gz")
    return folder / "t.csv.gz"


def parquet(table, folder):
    pa.parquet.write_table(arrow(table), folder / "t.parquet")
    return folder / "t.parquet"


def parts(table, folder):
    (folder / "parts").mkdir(exist_ok=True)
    whole = arrow(table)
    pa.parquet.write_table(whole.slice(0, 2), folder / "parts" / "part-0.parquet")
    pa.parquet.write_table(whole.slice(2), folder / "parts" / "part-1.parquet")
    return folder / "parts"


def json_rows(table) -> list[dict[str, Any]]:
    rows = range(len(next(iter(table.values()))))
    return [{name: text_of(values[i]) for name, values in table.items()} for i in rows]


def ndjson(table, folder):
    path = folder / "t.ndjson"
    rows = json_rows(table)
    # a missing value is null, or its name is left out
    rows[1:] = [{name: value for name, value in row.items() if value is not None} for row in rows[1:]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_csv(table):
    """What ``pandas.read_csv`` leaves of the cells; ids with a hole pass through a float, which is refused."""
    text = io.BytesIO()
    frame = pd.DataFrame({name: pd.Series(list(map(text_of, v)), dtype=object) for name, v in table.items()})
    text.write(frame.to_csv(index=False).encode())
    text.seek(0)
    return pd.read_csv(text)


FRAMES = [classic, objects, nullable, arrow, arrow_dtypes, polars]
FILES = [csv, tsv, csv_gz, parquet, parts, ndjson]


class Encoded:
    """A model whose prediction of a row is the row as the network would get it, to the bit."""

    def __init__(self, encoder: ColumnEncoder) -> None:
        self.encoder = encoder

    def column_kinds(self):
        return self.encoder.column_kinds()

    def predict(self, X: Any) -> list[str]:
        return rows_of(self.encoder, as_frame(X))


def rows_of(encoder, frame) -> list[str]:
    numbers, codes = encoder.transform(frame)
    return [n.tobytes().hex() + " " + c.tobytes().hex() for n, c in zip(numbers, codes, strict=True)]


def fit(frame) -> ColumnEncoder:
    frame = as_frame(frame)
    types = {name: kind for name, kind in TYPES.items() if name in frame.columns}
    return ColumnEncoder().fit(frame, np.ones(len(frame)), column_types=types)


EXAMPLES = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example is small, and costs too much to make smaller
)


@EXAMPLES
@given(learned=tables(), data=st.data())
def test_every_door_gives_a_table_model_the_same_rows(learned, data, tmp_path):
    """Fitted from any frame, predicted from any frame, file and JSON: the same numbers and codes, to the bit."""
    asked = {name: data.draw(st.lists(cells(name), min_size=4, max_size=4)) for name in learned}
    for fitting in FRAMES:
        encoder = fit(fitting(learned))
        expected = rows_of(encoder, classic(asked))
        assert expected == rows_of(fit(classic(learned)), classic(asked)), fitting.__name__
    model = Encoded(encoder)
    for door in FRAMES:
        assert model.predict(door(asked)) == expected, door.__name__
    keep = list(asked)
    for number, file in enumerate(FILES):
        path, output = file(asked, tmp_path), tmp_path / f"out-{number}.parquet"
        predict_file(model, path, output, keep)
        found = pd.read_parquet(output)
        assert found["prediction"].tolist() == expected, file.__name__
    service = TableService(model)
    body = {"rows": json_rows(asked)}
    checked = predict_model(service.describe()).model_validate_json(json.dumps(body)).model_dump(by_alias=True)
    assert [record["prediction"] for record in service.answer(checked)] == expected
    if all(cell in (None, *learned[name]) for name in TYPES if name in asked for cell in asked[name]):
        # a text that is not known, such as 7 beside 007, is the known 007 after pandas made a number of both
        assert_equal_or_refused(lambda: model.predict(read_csv(asked)), expected)


def assert_equal_or_refused(predict, expected) -> None:
    try:
        found = predict()
    except DataError as error:
        found = str(error)
        if "beyond 2**53" in found or "could be any of them" in found:
            return
    assert found == expected


@EXAMPLES
@given(asked=tables())
def test_columns_that_are_kept_are_copied_to_the_letter(asked, tmp_path):
    encoder = fit(classic({"number": [1.5, 2.5, None]}))
    asked = {**asked, "number": [1.0] * len(next(iter(asked.values())))}
    source = csv(asked, tmp_path)
    predict_file(Encoded(encoder), source, tmp_path / "out.csv", list(asked))
    before = pd.read_csv(source, dtype=str, keep_default_na=False)
    after = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    pd.testing.assert_frame_equal(after[list(asked)], before[list(asked)])


@EXAMPLES
@given(learned=tables(), data=st.data())
def test_every_door_gives_a_ranker_the_same_rows(learned, data, tmp_path):
    """The same for the encoder of rankers, which also learns from files."""
    asked = {name: data.draw(st.lists(cells(name), min_size=4, max_size=4)) for name in learned}
    types = {name: kind for name, kind in TYPES.items() if name in learned}
    encoder = TableEncoder(Schema.infer(classic(learned), column_types=types)).fit(classic(learned))
    expected = encoder.transform(classic(asked))
    for door in FRAMES:
        assert same(encoder.transform(as_frame(door(asked))), expected), door.__name__
    for file in FILES:
        source = TableSource(file(asked, tmp_path), kinds=encoder.column_kinds())
        assert same(encoder.transform(pd.concat(list(source.batches()))[list(asked)]), expected), file.__name__
        source = TableSource(file(learned, tmp_path))
        columns = source.infer(source.columns, types)
        twin = TableEncoder(Schema.from_columns(columns.values()))
        if source.untyped and any(all_whole(learned[name]) for name in types):
            continue  # in a file of text they are numbers, so that 007 is 7; in a frame they are what is written
        if {c.name: c.is_category for c in columns.values()} == {f: is_category(encoder, f) for f in learned}:
            twin.fit_batches(source.batches(), source.untyped)
            order = [feature.name for feature in twin.schema.features]
            assert order == list(learned) or file is ndjson
            if order == list(learned):
                assert same(twin.transform(classic(asked)), expected), f"learned from {file.__name__}"


def all_whole(values) -> bool:
    return all(value is None or text_kind(value) == "whole" or value == "7.0" for value in values)


def is_category(encoder: TableEncoder, name: str) -> bool:
    return encoder.column_kinds()[name] == "category"


def same(rows, others) -> bool:
    return all(mine.equal(its) for mine, its in zip(rows[:2], others[:2], strict=True))
