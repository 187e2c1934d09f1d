"""Sources and sinks: positions, malformed events, names that are wrong."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.stream import (
    CSVSink,
    CSVSource,
    FrameSource,
    LinesSink,
    LinesSource,
    ParquetSource,
    open_sink,
    open_source,
)


def rest(source, n=3) -> list:
    found = []
    while events := source.read(n):
        found += events
    source.close()
    return found


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame({"a": np.arange(50) / 2, "city": ["Ulm", None] * 25, "y": ["u", "v"] * 25})


@pytest.mark.parametrize("kind", ["csv", "parquet", "ndjson", "frame"])
def test_a_source_goes_on_after_any_position(kind, frame, tmp_path):
    path = tmp_path / f"data.{kind}"
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path, row_group_size=7)
    elif kind == "ndjson":
        frame.to_json(path, orient="records", lines=True)

    def make():
        return FrameSource(frame) if kind == "frame" else open_source(str(path))

    events = rest(make())
    assert len(events) == 50
    assert events[3].fields == {"a": 1.5, "city": None, "y": "v"}
    for place in (0, 6, 7, 20, 49):
        source = make()
        source.seek(events[place].position)
        assert [event.fields for event in rest(source)] == [event.fields for event in events[place + 1 :]]


def test_a_bad_csv_record_is_put_aside_and_the_others_are_read(tmp_path):
    path = tmp_path / "bad.csv"
    path.write_bytes(
        b'\xef\xbb\xbfa,b,y\n1,"two, with\na line break",u\n1,2\n3,4,v,5\n5,"stray,w\n6,7,x\n\n8,\xff\xfe,z\n9,,inf\n'
    )
    source = CSVSource(path)
    events = rest(source)
    good = [event.fields for event in events if event.fields is not None]
    assert good == [
        {"a": 1, "b": "two, with\na line break", "y": "u"},
        {"a": 6, "b": "7", "y": "x"},  # the sample decides: b has text
        {"a": 9, "b": None, "y": "inf"},
    ]
    bad = [(event.raw, event.error) for event in events if event.fields is None]
    assert [raw for raw, _ in bad[:3]] == ["1,2", "3,4,v,5", '5,"stray,w']
    assert "2 cells, the header has 3" in bad[0][1]
    assert bad[-1][1] == "not UTF-8"
    for place in range(len(events) - 1):
        again = CSVSource(path)
        again.seek(events[place].position)
        assert rest(again)[0].fields == events[place + 1].fields


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\n", "is empty"), (b"a,b,a\n1,2,3\n", "column 'a' occurs twice")]
)
def test_a_csv_without_a_usable_header_is_refused(content, message, tmp_path):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        CSVSource(tmp_path / "x.csv")


def test_a_header_alone_is_an_empty_stream(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n")
    assert rest(CSVSource(tmp_path / "x.csv")) == []


def test_bad_json_lines_are_put_aside():
    lines = b'{"a": 1}\n[1, 2]\nnot json\n\n{"a": 2}\n' + b"[" * 100_000 + b"\n"
    source = LinesSource(io.BytesIO(lines), "standard input")
    events = rest(source)
    assert [event.fields for event in events] == [{"a": 1}, None, None, {"a": 2}, None]
    assert "expected a JSON object, got list" in events[1].error
    assert len(events[-1].raw) == 2000
    resumed = LinesSource(io.BytesIO(lines))
    resumed.seek(3)
    assert resumed.read(5)[0].fields == {"a": 2}


def test_wrong_names_are_refused(tmp_path):
    for name in ("x.txt", "http://host/x.csv", "redis://host/x"):
        with pytest.raises(ConfigError, match="expected a .csv, .parquet"):
            open_source(name)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_source(str(tmp_path / "missing.csv"))
    (tmp_path / "x.parquet").write_bytes(b"PAR?")
    with pytest.raises(FileFormatError, match="not a Parquet file"):
        ParquetSource(tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"--metrics x.xlsx: expected"):
        open_sink("x.xlsx", "--metrics")
    for name in ("kafka://", "kafka://host", "kafka://host/a/b", "kafka://host/t?x=1", "kafka://host/t?partition=x"):
        with pytest.raises(ConfigError, match="expected kafka|unknown option|partition must be"):
            open_source(name)


def test_a_sink_can_be_cut_back_to_a_checkpoint(tmp_path):
    table, lines = CSVSink(tmp_path / "m.csv"), LinesSink(tmp_path / "p.ndjson")
    for sink in (table, lines):
        sink.write({"n": 1, "text": 'a "b", c'})
        size = sink.flush()
        sink.write({"n": 2, "text": ""})
        sink.close()
        again = type(sink)(sink.path)
        again.resume(size)
        again.write({"n": 3, "text": None, "more": 1})
        again.flush()
        again.close()
    assert pd.read_csv(tmp_path / "m.csv")["n"].tolist() == [1, 3]
    assert [json.loads(line)["n"] for line in (tmp_path / "p.ndjson").read_text().splitlines()] == [1, 3]
    fresh = CSVSink(tmp_path / "m.csv")
    fresh.resume(None)
    fresh.write({"other": 5})
    fresh.close()
    assert (tmp_path / "m.csv").read_text() == "other\n5\n"


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b'{"a": 1, "b": 2}', {"a": 1, "b": 2}), (b'{"a":1,"a":2}', None), (b'{"a" : 1, "a" : 2}', None),
        (b'{"a": "x\\":", "b": {"c": 1}}', {"a": 'x":', "b": {"c": 1}}), (b'{"a": {"c": 1, "c": 2}}', None),
        (b'\xef\xbb\xbf{"a": NaN}', {"a": None}), (b'{"a": -Infinity}', {"a": float("-inf")}), (b'{"a": "\xff"}', None),
        (b'{"a": 1} {"a": 2}', None), (b"{}", {}), (b"null", None),
    ],
)  # fmt: skip
def test_a_json_object_is_read_strictly(line, fields):
    event = LinesSource(io.BytesIO(line + b"\n"), "memory").read(1)[0]
    assert event.fields == fields
    assert (event.error is None) == (fields is not None)


def test_cells_without_quotes_are_read_as_with_them(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"a,b,y\r\n1, x ,u\r\n,,\r\n\r\n2,x\ry,v\r\n3,\xc3\xa9,w")
    source = CSVSource(tmp_path / "x.csv", complete=True)
    events = rest(source)
    assert [event.fields for event in events] == [
        {"a": 1, "b": " x ", "y": "u"}, {"a": None, "b": None, "y": None}, None, {"a": 3, "b": "é", "y": "w"},
    ]  # fmt: skip
