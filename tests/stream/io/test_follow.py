"""A file that is followed: growth, partial lines, rotation, emptying, resumption."""

import json
import os
from pathlib import Path

import pytest

from moeapps.core.errors import ConfigError, DataError
from moeapps.stream.io import follow
from moeapps.stream.io.sources import open_source


@pytest.fixture(autouse=True)
def impatient(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(follow, "GRACE", 0.0)
    monkeypatch.setattr(follow, "MOMENT", 0.0)


def add(name: str, *numbers: int, end: str = "\n", header: bool = False) -> None:
    lines = [json.dumps({"a": i}) for i in numbers] if ".ndjson" in name else [f"{i},x" for i in numbers]
    with open(name, "a") as file:
        if header:
            file.write("a,b\n")
        file.write("\n".join(lines) + end)


def taken(source, reads: int = 4) -> list[int]:
    return [int(event.fields["a"]) for _ in range(reads) for event in source.read(10) if event.fields]


@pytest.fixture(params=["d.csv", "d.ndjson"])
def name(request):
    add(request.param, 0, 1, header=request.param.endswith("csv"))
    return request.param


def test_a_partial_last_line_waits_for_its_end(name):
    source = open_source(name, follow=True)
    assert taken(source) == [0, 1]
    add(name, 23, end="")
    with open(name, "r+") as file:
        file.seek(0, os.SEEK_END)
        file.truncate(file.tell() - 1)
    assert taken(source) == []
    with open(name, "a") as file:
        file.write("}\n" if name.endswith("ndjson") else "x\n")
    assert taken(source) == [23]
    assert source.endless


def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(name):
    source = open_source(name, follow=True)
    assert taken(source) == [0, 1]
    add(name, 2)
    os.rename(name, f"{name}.1")
    add(f"{name}.1", 3, end="")
    add(name, 4, 5, header=name.endswith("csv"))
    assert taken(source, 8) == [2, 3, 4, 5]
    assert "was rotated" in source.notes[0]


def test_two_rotations_between_two_looks_lose_nothing(name):
    source = open_source(name, follow=True)
    assert taken(source) == [0, 1]
    for i in (2, 3):
        for number in (2, 1):
            if Path(f"{name}.{number}").exists():
                os.rename(f"{name}.{number}", f"{name}.{number + 1}")
        os.rename(name, f"{name}.1")
        add(name, i, header=name.endswith("csv"))
        os.utime(name, ns=(i * 10**9 + 2 * 10**18, i * 10**9 + 2 * 10**18))
    assert taken(source, 9) == [2, 3]


def test_an_emptied_file_is_read_from_its_beginning(name):
    source = open_source(name, follow=True)
    assert taken(source) == [0, 1]
    Path(name).write_text("")
    assert taken(source) == []
    add(name, 7, header=name.endswith("csv"))
    assert taken(source) == [7]
    assert "was emptied" in source.notes[0]


@pytest.mark.parametrize("moved", ["{}.1", "{}-20260101"])
def test_after_a_pause_it_goes_on_in_the_rotated_file(name, moved):
    source = open_source(name, follow=True)
    position = source.read(10)[0].position
    mark = json.loads(json.dumps(source.mark(position)))
    add(name, 2)
    os.rename(name, moved.format(name))
    add(name, 3, header=name.endswith("csv"))
    again = open_source(name, follow=True)
    again.resume_at(mark)
    assert taken(again, 8) == [1, 2, 3]


def test_the_position_after_a_rotation_is_one_of_the_new_file(name):
    source = open_source(name, follow=True)
    position = source.read(10)[-1].position
    os.rename(name, f"{name}.1")
    add(name, 2, header=name.endswith("csv"))
    for _ in range(4):
        if found := source.read(10):
            break
    again = open_source(name, follow=True)
    again.resume_at(source.mark(found[-1].position))
    assert taken(again) == []
    again = open_source(name, follow=True)
    again.resume_at(source.mark(position))  # no event of the new file was handled
    assert taken(again) == [2]


def test_another_file_is_refused(name):
    source = open_source(name, follow=True)
    mark = source.mark(source.read(10)[-1].position)
    os.unlink(name)
    add(name, 5, 6, 7, 8, header=name.endswith("csv"))
    with pytest.raises(DataError, match="none of the rotated files"):
        open_source(name, follow=True).resume_at(mark)


def test_other_columns_after_a_rotation_are_an_error():
    add("d.csv", 1, header=True)
    source = open_source("d.csv", follow=True)
    source.read(10)
    os.rename("d.csv", "d.csv.1")
    Path("d.csv").write_text("a,c\n1,2\n")
    with pytest.raises(DataError, match="has the columns a, c, but a, b were read before"):
        taken(source)


@pytest.mark.parametrize("source", ["-", "d.parquet", "kafka://host/topic"])
def test_what_cannot_be_followed_is_refused(source):
    with pytest.raises(ConfigError, match="cannot be followed"):
        open_source(source, follow=True)
