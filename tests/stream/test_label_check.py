"""What the first events say of the labels, of the lines and of the header, before anything is learned from them."""

from pathlib import Path

import numpy as np
import pytest

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.stream.label_check import LabelCheck

SMALL = ["--set", 'experts={"bayes": 1}', "--plain"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def judged(labels, metrics=None, classes=True):
    check = LabelCheck("y", metrics, classes)
    for label in labels:
        check.see(label)
    return check.finish()


def test_a_classifier_is_not_given_a_target_of_measured_numbers():
    values = np.random.default_rng(0).normal(size=200).round(3)
    with pytest.raises(ConfigError, match=r"--target y: \d+ different labels .* --model driftmoe-regressor .* y=text"):
        judged(values)
    assert judged(values, classes=False) == []
    assert judged(["1.5", "2.0", "0.5"] * 60) == []


def test_whole_numbers_or_texts_that_hardly_ever_repeat_are_told_and_not_refused():
    assert "100 different labels among the first 100" in judged(range(100))[0]
    assert "driftmoe-regressor" not in judged([f"u{i}" for i in range(100)])[0]


def test_a_metric_without_a_positive_label_is_refused_where_no_label_is_one():
    plain = {"ROCAUC": ("1", "True", "true", "yes")}
    with pytest.raises(ConfigError, match="--metric ROCAUC: none of the labels ok, fail .* --metric ROCAUC=ok"):
        judged(["ok", "fail"], plain)
    assert judged([0, 1], plain) == judged([False, True], plain) == []
    assert judged([0, 0], plain) == [], "the first events may have no positive one"


def test_a_misspelled_positive_label_is_told():
    assert judged(["ok", "fail"], {"F1=fial": ("fial",)})[0].endswith("did you mean 'fail'?")


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_a_refused_target_leaves_the_folder_free_for_the_right_command(kind, capsys):
    rng = np.random.default_rng(0)
    rows = [(f"{a:.3f}", "up" if a > 0 else "down") for a in rng.normal(size=240)]
    lines = [f'{{"a": {a}, "y": "{y}"}}' for a, y in rows] if kind == "ndjson" else ["a,y", *map(",".join, rows)]
    Path(f"d.{kind}").write_text("\n".join(lines) + "\n")
    command = ["stream", "run", "--source", f"d.{kind}", "--checkpoint", "c", *SMALL]
    assert main([*command, "--target", "a"]) == 2
    assert "--model driftmoe-regressor" in capsys.readouterr().err
    assert main([*command, "--target", "y"]) == 0
    assert capsys.readouterr().out.endswith("next: moeapps report c\n")


def test_lines_that_are_csv_are_told_at_the_first_one(capsys):
    Path("d.ndjson").write_text("a,y\n1,u\n2,v\n")
    assert main(["stream", "run", "--source", "d.ndjson", "--target", "y", *SMALL]) == 3
    assert "the first line is no JSON object: 'a,y'" in capsys.readouterr().out


def test_spaces_in_the_header_of_a_csv_file_are_told():
    Path("d.csv").write_text("a, y\n1, u\n2, v\n")
    with pytest.warns(UserWarning, match=r"d.csv: spaces in the header.*\(' y'\).*skipinitialspace=True"):
        assert main(["stream", "run", "--source", "d.csv", "--target", "y", *SMALL]) == 2


@pytest.mark.parametrize(("text", "status", "message"), [
    ("a;y\n1;u\n", 1, "looks separated by ';'"),
    ("a,y\n", 0, "no event: the source has none"),
])  # fmt: skip
def test_a_csv_file_with_another_separator_or_no_record_is_named(text, status, message, capsys):
    Path("d.csv").write_text(text)
    assert main(["stream", "run", "--source", "d.csv", "--target", "y", *SMALL]) == status
    told = capsys.readouterr()
    assert message in told.out + told.err


def test_a_positive_label_is_known_whatever_its_type():
    check = LabelCheck("y", {"F1=1": ("1",), "F1": ("1", "True", "true", "yes")})
    for label in (0.0, 1.0, "", None):
        check.see(label)
    assert check.finish() == []
    assert check.seen == 2
