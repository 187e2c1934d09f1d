"""Misspelled options and names of the commands that argparse reads."""

import subprocess
import sys

import pytest

from moeapps.cli.main import main


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("compare x.csv --taget y", "moeapps compare: error: unexpected argument '--taget'; did you mean '--target'?"),
        ("compare x.csv --taget=y", "unexpected argument '--taget'; did you mean '--target'?"),
        ("stream run --sorce -", "moeapps stream run: error: unexpected argument '--sorce'; did you mean '--source'?"),
        ("serve x.safetensors --prot 3", "unexpected argument '--prot'; did you mean '--port'?"),
        ("check --fail_on shift", "unexpected argument '--fail_on'; did you mean '--fail-on'?"),
        ("check a b --fail-on drfit", "--fail-on must be one of shift, drift, got 'drfit'; did you mean 'drift'?"),
        ("comapre x.csv", "'comapre'; did you mean 'compare'?"),
        ("stream rnu", "must be one of run, got 'rnu'; did you mean 'run'?"),
        ("list models more", "moeapps list: error: unexpected argument 'more' (see moeapps list --help)"),
        ("search x --trial 3", "moeapps search: error: unexpected argument '--trial'; did you mean '--trials'?"),
        ("stream run --targ y", "unexpected argument '--targ'; did you mean '--target'?"),
        ("predict m --inpu x", "moeapps predict: error: unexpected argument '--inpu'; did you mean '--input'?"),
        ("--vresion", "moeapps: error: unexpected argument '--vresion'; did you mean '--version'?"),
        ("score --zzzzzz 3 a b", "unexpected argument '--zzzzzz' (see moeapps score --help)"),
        ("stream run --target y", "the following arguments are required: --source"),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_the_right_one(line, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.batch_size=0", "batch_size must be a whole number of at least 1, got 0"),
        ("--model.router=topkk", "got 'topkk'; did you mean 'topk'?"),  # found when the network is built
        ("--model.num_experts=0", "num_experts must be a whole number of at least 1, got 0"),
    ],
)
def test_a_setting_that_no_network_can_have_leaves_no_run_folder(option, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classes = ["--model", "moeapps.tables.TableModule", "--data", "moeapps.tables.TableData"]
    assert main(["fit", *classes, "--data.name", "iris", option]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.rglob("version_*")) == []


def test_an_output_that_nobody_reads_any_more_is_no_error():
    command = f'"{sys.executable}" -m moeapps list | true; echo "${{PIPESTATUS[@]}}"'
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) == ("141 0\n", "")
