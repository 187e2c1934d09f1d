"""Lines as they come, from files and pipes (S5, S9)."""

import io
import os
import threading
import time

import pytest

from moeapps.core.errors import DataError
from moeapps.stream import CSVSource, LinesSource
from moeapps.stream.io.lines import LineReader


@pytest.fixture
def pipe():
    read, write = os.pipe()
    reader = LineReader(os.fdopen(read, "rb"), "pipe")
    yield reader, write
    reader.close()


def test_a_line_of_a_pipe_is_there_at_once_and_half_a_line_never(pipe):
    reader, write = pipe
    assert (reader.is_live, reader.is_file) == (True, False)
    os.write(write, b"one\ntw")
    assert [reader.line(), reader.line(0.01)] == [b"one\n", None]
    assert (reader.rest, reader.ended, reader.offset) == (b"tw", False, 4)
    os.write(write, b"o\n")
    assert reader.line() == b"two\n"
    os.close(write)
    assert (reader.line(), reader.ended) == (None, True)


def test_a_read_of_a_pipe_without_lines_comes_back(pipe):
    reader, write = pipe
    start = time.monotonic()
    assert reader.line() is None
    assert time.monotonic() - start < 1
    os.close(write)


def test_lines_that_are_put_back_come_again(tmp_path):
    (tmp_path / "x").write_bytes(b"one\ntwo\nthree")
    reader = LineReader(tmp_path / "x", "x")
    lines = [reader.line(), reader.line()]
    reader.put_back(b"".join(lines))
    assert reader.offset == 0
    assert [reader.line(), reader.line(), reader.line()] == [*lines, None]
    assert (reader.take_rest(), reader.offset) == (b"three", 13)
    reader.close()


def test_a_file_is_known_again_by_its_content(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a line\n" * 2000)
    reader = LineReader(path, "x")
    known = reader.fingerprint(7000)
    reader.check(known)
    for other in (b"a line\n" * 999, b"A line\n" * 2000, b"a line\n" * 999 + b"A line\n" * 1000):
        path.write_bytes(other)
        with pytest.raises(DataError, match="read before"):
            reader.check(known)
    path.write_bytes(b"a line\n" * 1000 + b"more")
    reader.check(known)
    reader.close()


def test_an_object_that_is_no_file_is_read_to_its_end():
    class Chunks(io.BytesIO):
        def fileno(self):
            raise OSError

    source = LinesSource(Chunks(b'{"a": 1}\n{"a": 2}'), "memory")
    assert [event.fields for event in source.read(5)] == [{"a": 1}, {"a": 2}]
    assert not source.endless


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_a_named_pipe_waits_for_its_writer_and_ends_with_it(kind, tmp_path):
    path = tmp_path / f"events.{kind}"
    os.mkfifo(path)
    content = b'a,b,y\n1,"x\ny",u\n2,z,v\n' if kind == "csv" else b'{"a": 1}\n\n{"a": 2}'
    sent = threading.Event()

    def write():
        with open(path, "wb", buffering=0) as file:
            for byte in content:
                file.write(bytes([byte]))
        sent.set()

    writer = threading.Thread(target=write)
    writer.start()
    source = CSVSource(path) if kind == "csv" else LinesSource(path)
    found = []
    while (events := source.read(10)) or source.endless:
        found += events
    writer.join()
    source.close()
    assert [event.fields["a"] for event in found] == [1, 2]
    assert source.mark(found[-1].position)["kind"] == "pipe"
