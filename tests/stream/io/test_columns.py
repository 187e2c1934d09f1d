"""The kinds of CSV columns: decided from a sample, told, and held (S2, S11)."""

import pandas as pd
import pytest

from moeapps.core.errors import ConfigError
from moeapps.stream import CSVSource
from moeapps.stream.io.columns import read_types


def source_of(tmp_path, lines, target="y", id_field=None, **more):
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = CSVSource(tmp_path / "data.csv")
    source.declare(target, id_field, **more)
    return source


def events(source):
    found = []
    while part := source.read(100):
        found += part
    source.close()
    return found


def test_ids_and_labels_of_nineteen_digits_are_exact(tmp_path):
    ids = [1234567890123456789 + i for i in range(600)]
    source = source_of(tmp_path, ["id,a,y", *(f"{i},1.5,{i}" for i in ids)], id_field="id")
    rows = [event.fields for event in events(source)]
    assert [row["id"] for row in rows] == [str(i) for i in ids]
    assert [row["y"] for row in rows] == ids


def test_codes_with_leading_zeros_and_exponents_stay_text(tmp_path):
    lines = ["id,zip,y", "007,00501,07", "7,10001,7", "07,99950,007", "1E5,60601,1E5", "NA,60602,x"]
    rows = [event.fields for event in events(source_of(tmp_path, lines, id_field="id"))]
    assert [row["id"] for row in rows] == ["007", "7", "07", "1E5", "NA"]
    assert [row["zip"] for row in rows] == ["00501", "10001", "99950", "60601", "60602"]
    assert [row["y"] for row in rows] == ["07", "7", "007", "1E5", "x"]


def test_a_sample_and_not_the_first_cell_decides(tmp_path):
    lines = ["code,a,y", *(f"{i},{i},u" for i in range(101)), *(f"A{i},{i},v" for i in range(200))]
    found = events(source_of(tmp_path, lines))
    assert all(event.fields is not None for event in found)
    assert found[0].fields == {"code": "0", "a": 0, "y": "u"}


def test_the_user_decides_with_types_and_missing(tmp_path):
    lines = ["code,t,a,y", "1,2024-01-31,3,1", "2,2024-02-01,-,2", "N/A,2024-02-02,?,3"]
    types = read_types(["code=category", "t=text"])
    source = source_of(tmp_path, lines, types=types, missing=("?", "-"))
    assert [event.fields for event in events(source)] == [
        {"code": "1", "t": "2024-01-31", "a": 3, "y": 1},
        {"code": "2", "t": "2024-02-01", "a": None, "y": 2},
        {"code": None, "t": "2024-02-02", "a": None, "y": 3},
    ]


def test_times_and_bools_are_read_as_parquet_has_them(tmp_path):
    source = source_of(tmp_path, ["t,b,y", "1970-01-02,True,u", "1970-01-01T00:00:01.5Z,False,v"])
    assert [event.fields for event in events(source)] == [
        {"t": 86400.0, "b": True, "y": "u"}, {"t": 1.5, "b": False, "y": "v"},
    ]  # fmt: skip


def test_a_cell_of_another_kind_is_an_error_that_names_it_and_says_what_to_do(tmp_path):
    lines = ["a,z,y", *(f"{i}.5,{i},1" for i in range(1, 1001)), "hello,3,1", "1e999,3,1", "3,007,1", "4,4,x", "5,,2"]
    found = events(source_of(tmp_path, lines))
    errors = [event.error for event in found[1000:]]
    assert errors[0].startswith(
        "column 'a': 'hello' is not a finite number. The column is read as number, since the first"
    )
    assert "--types a=text reads it as text, --missing hello as missing" in errors[0]
    assert "'1e999' is not a finite number" in errors[1]
    assert "column 'z': '007' has leading zeros: a code and not a number" in errors[2]
    assert "column 'y': 'x' is not a whole number" in errors[3]
    assert found[-1].fields == {"a": 5, "z": None, "y": 2}
    assert found[1000].raw == "hello,3,1"


def test_a_few_mistakes_among_a_thousand_numbers_do_not_make_a_column_text(tmp_path):
    lines = ["a,y", *(f"{i},u" for i in range(300)), "ERR,u", *(f"{i},u" for i in range(300))]
    found = events(source_of(tmp_path, lines))
    assert [event.error is None for event in found].count(False) == 1


def test_mistakes_among_measured_numbers_are_more_often_forgiven_than_letters_among_codes(tmp_path):
    rows = [("ERR" if i % 20 == 0 else f"-{i}.5", f"A{i}" if i % 20 == 0 else str(i)) for i in range(1000)]
    source = source_of(tmp_path, ["a,code,y", *(f"{a},{code},u" for a, code in rows)])
    assert (source.kinds.kinds["a"], source.kinds.kinds["code"]) == ("number", "text")
    note = (
        "column 'code' is text: 50 of its first 1,000 values are no numbers, such as 'A0'; --types code=number rejects"
    )
    assert [found[: len(note)] for found in source.kinds.notes()] == [note]
    source.close()


def test_an_imputing_model_gets_a_bad_value_to_count(tmp_path):
    lines = ["a,y", *(f"{i},u" for i in range(300)), "ERR,u"]
    found = events(source_of(tmp_path, lines, impute=True))
    assert found[-1].fields == {"a": float("inf"), "y": "u"}


def test_what_the_model_knows_is_held(tmp_path):
    lines = ["a,b,y", "1,2,3", "x,4,5"]
    found = events(source_of(tmp_path, lines, known={"a": "number", "b": "text", "y": "text"}))
    assert found[0].fields == {"a": 1, "b": "2", "y": "3"}
    assert "since it is so in the model" in found[1].error


def test_a_column_without_values_is_decided_by_its_first_one(tmp_path):
    lines = ["a,b,y", *(f"1,,{i}" for i in range(21_000)), "1,7,1", "1,x,1"]
    source = source_of(tmp_path, lines)
    assert source.kinds.kinds["b"] is None
    assert "not known yet: b" in source.kinds.describe()
    found = events(source)
    assert found[-2].fields["b"] == 7
    assert "its first value is '7'" in found[-1].error


def test_kinds_are_part_of_the_mark(tmp_path):
    source = source_of(tmp_path, ["a,y", "1,u", "2,v"])
    first = source.read(1)
    mark = source.mark(first[0].position)
    source.close()
    again = CSVSource(tmp_path / "data.csv")
    again.kinds.kinds["a"] = "text"
    again.resume_at(mark)
    assert again.read(1)[0].fields == {"a": 2, "y": "v"}
    again.close()


def test_a_csv_and_the_frame_that_pandas_makes_of_it_have_the_same_values(tmp_path):
    frame = pd.DataFrame({"a": [1, 2, 3], "b": [0.5, None, 1e300], "c": ["x", None, "z"], "d": [True, False, True],
                          "y": ["u", "v", "w"]})  # fmt: skip
    frame.to_csv(tmp_path / "data.csv", index=False)
    rows = [event.fields for event in events(source_of(tmp_path, (tmp_path / "data.csv").read_text().splitlines()))]
    assert rows == frame.astype(object).where(frame.notna(), None).to_dict("records")


@pytest.mark.parametrize(
    ("pair", "message"),
    [("a", "expected column=text"), ("a=numbr", "did you mean 'number'"), ("=text", "expected column=text")],
)
def test_a_wrong_type_is_named(pair, message):
    with pytest.raises(ConfigError, match=message):
        read_types([pair])


def test_a_type_for_a_column_that_is_not_there_or_is_the_id_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--types cod: the source has no such column; did you mean 'code'"):
        source_of(tmp_path, ["code,y", "1,2"], types={"cod": "text"})
    with pytest.raises(ConfigError, match="--types code: an id is always text"):
        source_of(tmp_path, ["code,y", "1,2"], id_field="code", types={"code": "number"})
    with pytest.raises(ConfigError, match="names column 'a' twice"):
        read_types(["a=text", "a=number"])
