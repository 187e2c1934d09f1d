"""A resumed run: which files it touches, what may not differ, how its source is known again (S1, S7, S8, S9, S17)."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream import (
    CSVSource,
    DriftMoEClassifier,
    FrameSource,
    LinesSink,
    LinesSource,
    ParquetSource,
    StreamRun,
)

SMALL = ["--set", "seed=1", "--set", "n_experts=2", "--plain"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(n: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n, 2)).round(3), columns=["a", "b"])
    frame["id"] = [f"e{i}" for i in range(n)]
    frame["y"] = np.where(frame["a"] > 0, "up", "down")
    return frame


def begin(*more: str, n: int = 200, limit: int = 100) -> list[str]:
    """Run over the first events of data.csv; the command without its limit."""
    table(n).to_csv("data.csv", index=False)
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--checkpoint", "c", *SMALL, *more]
    assert main([*given, "--limit", str(limit)]) == 0
    return given


def learned() -> int:
    return moeapps.load("c/stream.safetensors").run["counts"]["learned"]


# --- S1


@pytest.mark.parametrize("option", ["--predictions", "--metrics", "--rejects"])
def test_a_resumed_run_never_touches_a_file_of_the_user(option, capsys):
    given = begin()
    Path("mine.csv").write_text("my,own\n1,2\n")
    assert main([*given, "--resume", option, "mine.csv"]) == 2
    assert f"{option} mine.csv exists and was not written by this run" in capsys.readouterr().err
    assert Path("mine.csv").read_text() == "my,own\n1,2\n"
    assert main([*given, "--resume", option, "new.csv"]) == 0
    assert learned() == 200


def test_without_a_checkpoint_a_resumed_run_empties_nothing(capsys):
    table().to_csv("data.csv", index=False)
    Path("mine.csv").write_text("my,own\n1,2\n")
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--checkpoint", "c", *SMALL, "--resume"]
    assert main([*given, "--predictions", "mine.csv"]) == 2
    assert Path("mine.csv").read_text() == "my,own\n1,2\n"


def test_what_was_written_before_the_first_checkpoint_is_written_again():
    given = begin("--predictions", "p.ndjson")
    Path("c/stream.safetensors").unlink()  # as if killed before it was there
    assert len(Path("p.ndjson").read_text().splitlines()) == 100
    assert main([*given, "--resume"]) == 0
    assert len(Path("p.ndjson").read_text().splitlines()) == 200


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
@pytest.mark.parametrize("option", ["--predictions", "--metrics", "--rejects"])
@pytest.mark.parametrize("resume", [False, True])
def test_the_source_is_never_an_output(link, option, resume, capsys):
    given = (
        begin() if resume else ["stream", "run", "--source", "data.csv", "--target", "y", "--checkpoint", "c", *SMALL]
    )
    table().to_csv("data.csv", index=False)
    content = Path("data.csv").read_bytes()
    name = "data.csv"
    if link is not None:
        name = "other.csv"
        link("data.csv", name)
    assert main([*given, option, name, *(["--resume"] if resume else [])]) == 2
    assert "also the source" in capsys.readouterr().err or not resume
    assert Path("data.csv").read_bytes() == content


def test_two_outputs_are_never_one_file(capsys):
    table().to_csv("data.csv", index=False)
    given = ["stream", "run", "--source", "data.csv", "--target", "y", *SMALL]
    assert main([*given, "--predictions", "p.csv", "--metrics", "./p.csv"]) == 2
    assert "--predictions p.csv is also --metrics" in capsys.readouterr().err
    os.symlink("p.csv", "q.csv")
    assert main([*given, "--predictions", "p.csv", "--rejects", "q.csv"]) == 2
    assert "is also --predictions" in capsys.readouterr().err
    assert not Path("p.csv").exists()


def test_an_output_that_is_a_folder_or_a_pipe_is_refused(capsys):
    table().to_csv("data.csv", index=False)
    os.mkfifo("pipe.csv")
    Path("folder.csv").mkdir()
    for name, what in (("pipe.csv", "not a regular file"), ("folder.csv", "a folder")):
        assert main(["stream", "run", "--source", "data.csv", "--target", "y", *SMALL, "--predictions", name]) == 2
        assert what in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["gone", "short", "changed"])
def test_an_output_that_is_not_as_the_run_left_it_is_refused(fault, capsys):
    given = begin("--predictions", "p.ndjson")
    content = Path("p.ndjson").read_bytes()
    if fault == "gone":
        Path("p.ndjson").unlink()
    else:
        changed = content[:50] if fault == "short" else content.replace(b'"up"', b'"UP"')
        Path("p.ndjson").write_bytes(changed)
    assert main([*given, "--resume"]) == 1
    message = {"gone": "is gone", "short": "has 50 bytes", "changed": "was changed since"}[fault]
    assert message in capsys.readouterr().err
    if fault != "gone":
        assert Path("p.ndjson").read_bytes() == changed
        Path("p.ndjson").unlink()
    assert main([*given, "--resume", "--allow-change"]) == 0
    assert len(Path("p.ndjson").read_text().splitlines()) == 100


def test_a_refused_resume_leaves_every_file_as_it_was(capsys):
    given = begin("--predictions", "p.ndjson")
    with open("p.ndjson", "a") as file:
        file.write("after the checkpoint\n")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    Path("mine.csv").write_text("a\n")
    assert main([*given, "--resume", "--metrics", "mine.csv"]) == 2
    assert {path: path.read_bytes() for path in before} == before
    assert main([*given, "--resume"]) == 0
    assert len(Path("p.ndjson").read_text().splitlines()) == 200


# --- S7


def test_a_second_process_in_the_folder_is_refused(capsys):
    given = begin()
    read, write = os.pipe()
    reader = subprocess.Popen(
        [sys.executable, "-c", "from moeapps.core.files import locked\nimport sys\n"
         "with locked('c/stream.safetensors'):\n    print('held', flush=True); sys.stdin.read()"],
        stdin=read, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(Path(moeapps.__file__).parents[1])},
    )  # fmt: skip
    os.close(read)
    assert reader.stdout.readline() == b"held\n"
    before = Path("c/stream.safetensors").read_bytes()
    assert main([*given, "--resume"]) == 2
    assert f"is being written by another process (process {reader.pid})" in capsys.readouterr().err
    assert Path("c/stream.safetensors").read_bytes() == before
    os.close(write)
    reader.wait()
    reader.stdout.close()
    assert main([*given, "--resume"]) == 0


def test_two_runs_in_one_folder_or_with_one_output_are_refused_while_the_first_is_at_work():
    frame = table()
    model = DriftMoEClassifier(seed=0, n_experts=2)
    first = StreamRun(model, FrameSource(frame), "y", Path("c"))
    first.resume()
    second = StreamRun(model, FrameSource(frame), "y", Path("c"))
    with pytest.raises(ConfigError, match="being written by another process"):
        second.run()
    first.close()
    second.run()
    assert not list(Path("c").glob(".*"))  # no lock is left


def test_two_runs_never_write_one_output(capsys):
    given = begin()
    first = StreamRun(DriftMoEClassifier(), FrameSource(table()), "y", Path("d"), predictions=LinesSink("p.ndjson"))
    first.resume()
    os.symlink("p.ndjson", "q.ndjson")
    assert main([*given, "--resume", "--predictions", "q.ndjson"]) == 2
    assert "p.ndjson is being written by another process" in capsys.readouterr().err
    first.close()
    assert main([*given, "--resume", "--predictions", "q.ndjson"]) == 0


# --- S8


@pytest.mark.parametrize(
    ("change", "message", "can"),
    [
        (["--set", "n_experts=3"], "was made with --set n_experts=2, this command has --set n_experts=3", False),
        (["--set", "on_bad=skip"], "was made with no --set on_bad, this command has --set on_bad=skip", True),
        (["--model", "driftmoe-task"], "was made with --model driftmoe, this command has --model driftmoe-task", False),
        (["--model", "driftmoe-regressor", "--target", "a"], "not a DriftMoERegressor", False),
        (["--id", "id"], "was made with no --id, this command has --id id", True),
        (["--target", "id"], "was made with --target y, this command has --target id", False),
        (["--window", "500"], "was made with --window 1000, this command has --window 500", True),
        (["--types", "a=text"], "was made with no --types a, this command has --types a=text", False),
        (["--types", "id=category"], "was made with no --types id, this command has --types id=text", True),
        (["--missing", "?"], "no --missing", True),
        (["--source", "other.csv"], "is not the file that was read before", True),
        (["--source", "data.ndjson"], "is not the source that was read before", True),
    ],
)
def test_a_resumed_run_refuses_what_differs_and_names_it(change, message, can, capsys):
    given = begin()
    table(300).iloc[100:].to_csv("other.csv", index=False)
    table().to_json("data.ndjson", orient="records", lines=True)
    before = Path("c/stream.safetensors").read_bytes()
    assert main([*given, "--resume", *change]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert Path("c/stream.safetensors").read_bytes() == before
    status = main([*given, "--resume", *change, "--allow-change"])
    assert (status == 0) == can
    if change[0] == "--source":
        assert "it is read from its beginning" in capsys.readouterr().out
        assert learned() == 300


def test_a_setting_that_was_changed_is_in_effect():
    given = begin()
    assert main([*given, "--resume", "--allow-change", "--set", "on_bad=impute"]) == 0
    assert moeapps.load("c/stream.safetensors").model.on_bad == "impute"


def test_options_without_effect_are_refused(capsys):
    table().to_csv("data.csv", index=False)
    given = ["stream", "run", "--source", "data.csv", "--target", "y", *SMALL]
    for option in (["--allow-change"], ["--replayed"], ["--kafka-config", "a=b"]):
        assert main([*given, *option]) == 2
        assert f"{option[0]} has no effect" in capsys.readouterr().err
    assert main([*given, "--id", "idd"]) == 2
    assert "--id idd: data.csv has no such column; did you mean 'id'?" in capsys.readouterr().err


# --- S9: files that grow, and files that are replaced


def test_a_half_written_line_waits_for_its_newline(capsys):
    Path("data.csv").write_text("a,y\n1,done\n2,open\n3,do")
    given = ["stream", "run", "--source", "data.csv", "--target", "y", "--checkpoint", "c", *SMALL]
    assert main(given) == 0
    assert "not read: the source ends with '3,do' and no newline" in capsys.readouterr().out
    assert learned() == 2
    with open("data.csv", "a") as file:
        file.write("ne\n4,op")
    assert main([*given, "--resume"]) == 0
    model = moeapps.load("c/stream.safetensors").model
    assert (learned(), sorted(model.classes_)) == (3, ["done", "open"])
    with open("data.csv", "a") as file:
        file.write("en")
    assert main([*given, "--resume", "--complete"]) == 0
    assert (learned(), sorted(moeapps.load("c/stream.safetensors").model.classes_)) == (4, ["done", "open"])


def rest(source) -> list:
    found = []
    while events := source.read(3):
        found += events
    return found


def test_every_cut_of_a_growing_csv_gives_the_same_events(tmp_path):
    content = 'a,text,y\n1,"two, with\na line ""break""",u\n2,plain,v\n\n3,"x\n\ny",u\n4,é,w\n'.encode()
    (tmp_path / "whole.csv").write_bytes(content)
    source = CSVSource(tmp_path / "whole.csv")
    whole = [event.fields for event in rest(source)]
    source.close()
    assert len(whole) == 4
    for cut in range(len(b"a,text,y\n"), len(content)):
        path = tmp_path / "part.csv"
        path.write_bytes(content[:cut])
        source = CSVSource(path)
        source.kinds.kinds.update(a="number", text="text", y="text")
        found = [event.fields for event in rest(source)]
        path.write_bytes(content)
        found += [event.fields for event in rest(source)]
        source.close()
        assert found == whole, cut


def test_every_cut_of_growing_json_lines_gives_the_same_events(tmp_path):
    content = b'{"a": 1, "y": "u"}\n\n{"a": 12, "y": "v"}\n[1]\n{"a": 3}\n'
    (tmp_path / "whole.ndjson").write_bytes(content)
    whole = [(event.fields, event.where) for event in rest(LinesSource(tmp_path / "whole.ndjson"))]
    for cut in range(len(content)):
        path = tmp_path / "part.ndjson"
        path.write_bytes(content[:cut])
        source = LinesSource(path)
        events = rest(source)
        mark = source.mark(events[-1].position if events else None)
        source.close()
        path.write_bytes(content)
        again = LinesSource(path)
        again.resume_at(mark)
        assert [(event.fields, event.where) for event in [*events, *rest(again)]] == whole, cut
        again.close()


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
def test_a_file_that_was_replaced_or_cut_is_an_error(kind, capsys):
    def write(frame, name=f"data.{kind}"):
        if kind == "csv":
            frame.to_csv(name, index=False)
        elif kind == "ndjson":
            frame.to_json(name, orient="records", lines=True)
        else:
            frame.to_parquet(name, index=False)

    frame = table()
    write(frame)
    shutil.copy(f"data.{kind}", f"kept.{kind}")
    given = ["stream", "run", "--source", f"data.{kind}", "--target", "y", "--checkpoint", "c", *SMALL]
    assert main([*given, "--limit", "100"]) == 0
    for other in (frame.iloc[:50], frame.iloc[50:], frame.iloc[1:], frame[frame.index != 50]):
        write(other)
        assert main([*given, "--resume"]) == 1
        assert "read before" in capsys.readouterr().err
    longer = pd.concat([frame, frame.iloc[:50]])
    write(longer)  # a file that has grown
    assert main([*given, "--resume", "--limit", "150"]) == 0
    os.rename(f"data.{kind}", f"data.1.{kind}")  # a file that was rotated: its new name is no matter
    write(frame.iloc[10:])
    assert main([*given, "--resume"]) == 1
    given[given.index(f"data.{kind}")] = f"data.1.{kind}"
    assert main([*given, "--resume"]) == 0
    assert learned() == 250


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "data.ndjson"
    path.write_bytes(b'{"a": 1, "y": "u"}\n' * 10_000)
    source = LinesSource(path)
    source.read(10)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="was cut to 0 bytes while it was read"):
        rest(source)


def test_a_frame_and_a_parquet_file_are_known_again(tmp_path):
    frame = table()
    frame.to_parquet(tmp_path / "data.parquet", row_group_size=30)
    for make in (lambda: FrameSource(frame), lambda: ParquetSource(tmp_path / "data.parquet")):
        source = make()
        position = source.read(70)[-1].position
        mark = json.loads(json.dumps(source.mark(position)))
        again = make()
        again.resume_at(mark)
        assert again.read(1)[0].fields["id"] == "e70"
        for key, value in (("row", 201), ("first", "x"), ("columns", ["a"]), ("kind", "csv")):
            with pytest.raises(DataError, match="read before"):
                make().resume_at({**mark, key: value})


# --- S17: pipes


def feed(monkeypatch, lines: list[dict]) -> None:
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=os.fdopen(read, "rb")))


def test_a_resumed_run_skips_nothing_of_a_pipe(monkeypatch, capsys):
    rows = table(90).to_dict("records")
    given = ["stream", "run", "--source", "-", "--target", "y", "--checkpoint", "c", *SMALL]
    feed(monkeypatch, rows[:40])
    assert main(given) == 0
    feed(monkeypatch, rows[40:60])
    assert main([*given, "--resume"]) == 0
    assert "the pipe goes on with what comes, nothing is skipped; --replayed skips" in capsys.readouterr().out
    assert learned() == 60


def test_a_pipe_that_sends_everything_again_is_told_by_the_user(monkeypatch, capsys):
    rows = table(90).to_dict("records")
    given = ["stream", "run", "--source", "-", "--target", "y", "--checkpoint", "c", *SMALL]
    feed(monkeypatch, rows[:40])
    assert main(given) == 0
    feed(monkeypatch, rows)
    assert main([*given, "--resume", "--replayed"]) == 0
    assert learned() == 90
    feed(monkeypatch, rows[1:])
    assert main([*given, "--resume", "--replayed"]) == 0  # too short to know
    feed(monkeypatch, [*rows[1:], *rows])
    assert main([*given, "--resume", "--replayed"]) == 1
    assert "standard input does not begin with the 90 lines that were read before" in capsys.readouterr().err
    assert learned() == 90


def test_a_file_as_standard_input_goes_on_where_it_was(monkeypatch):
    table(90).to_json("data.ndjson", orient="records", lines=True)
    given = ["stream", "run", "--source", "-", "--target", "y", "--checkpoint", "c", *SMALL]
    for more in (["--limit", "40"], ["--resume"]):
        with open("data.ndjson", "rb") as file:
            monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=file))
            assert main([*given, *more]) == 0
    assert learned() == 90


def test_a_stream_in_memory_goes_on_after_the_lines_that_were_read():
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in table(90).to_dict("records"))
    for limit in (40, None):
        model = DriftMoEClassifier(seed=0, n_experts=2)
        job = StreamRun(model, LinesSource(io.BytesIO(lines), "memory"), "y", Path("c"), limit=limit)
        job.resume()
        job.run()
        job.close()
    assert learned() == 90
