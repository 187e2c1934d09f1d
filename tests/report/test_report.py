"""The page: read from what runs really leave, safe against what stands in them, and looked at by a browser."""

import re
import shutil
import time

import numpy as np
import pandas as pd
import pytest
import yaml

from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.views import Curves, Gallery, Map, Views
from moeapps.report import Run, find_runs, page, render, write_report
from moeapps.report.hints import find_hints
from moeapps.report.runs import Score
from tests.hostile import BAD_YAML
from tests.report.browser import look, needs_browser

EXPERTS = 4


def history(loads: list[float], epochs: int = 6, **columns) -> pd.DataFrame:
    rows = {f"moe/net.mlp/load/{e}": np.full(epochs, load) for e, load in enumerate(loads)}
    return pd.DataFrame({"epoch": np.arange(epochs), "train/loss": np.linspace(1, 0.1, epochs), **rows, **columns})


@pytest.fixture
def folder(tmp_path):
    """A folder as `moeapps fit` leaves it, with two rows per epoch as Lightning's CSV logger writes them."""
    path = tmp_path / "runs/version_0"
    path.mkdir(parents=True)
    frame = history([0.7, 0.1, 0.2, 0.0], **{"moe/net.mlp/entropy": 0.5, "moe/net.mlp/dropped": 0.0})
    val = pd.DataFrame(
        {"epoch": range(6), "val/loss": np.linspace(1, 0.5, 6), "val/accuracy": np.linspace(0.2, 0.9, 6)}
    )
    pd.concat([frame, val]).sort_values("epoch", kind="stable").to_csv(path / "metrics.csv", index=False)
    config = {
        "seed_everything": 1,
        "model": {"class_path": "a.Model", "init_args": {"lr": 0.1}},
        "trainer": {"max_epochs": 6},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    Views(
        [Map("experts <by> class", ["a", "b"], ["0", "1"], [[0.25, 0.75], [None, 1.0]], "class")],
        [Curves("confidence", [0.0, 1.0], {"c": [0.0, None]}, "dispersion", "fraction")],
        ["a word of the <model>"],
    ).save(path)
    return path


def test_a_run_of_fit_is_read(folder):
    (run,) = find_runs([str(folder.parent)])
    assert run.name == "runs/version_0"
    assert run.facts == {"model": "a.Model", "epochs at most": "6", "seed": "1"}
    assert run.config["model.init_args.lr"] == "0.1"
    assert len(run.history) == 6
    assert run.history["val/accuracy"].iloc[-1] == 0.9
    assert run.history["train/loss"].iloc[-1] == pytest.approx(0.1)
    assert {score.name: (score.values, score.smaller) for score in run.scores} == {
        "val/loss": ([0.5], True),
        "val/accuracy": ([0.9], False),
    }


def test_the_page_shows_scores_curves_maps_and_hints_and_needs_nothing_else(folder, tmp_path):
    page = write_report([str(folder)], str(tmp_path / "out/report.html")).read_text()
    assert "0.9000" in page
    assert re.search(r'<td class="heat" style="--part: 64">0.75</td>', page)
    assert "experts &lt;by&gt; class" in page
    assert "a word of the &lt;model&gt;" in page
    assert "<by>" not in page
    assert page.count("<svg") == page.count('role="img"') == page.count("aria-label=", page.index("<svg")) == 5
    assert "val/accuracy: highest at epoch 5 (0.9). val/accuracy: from 0.2 to 0.9 over epoch" in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|@import|url\((?!#)", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    shared = {name for name in ids if ids.count(name) > 1}
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', page))
    assert not shared & used  # matplotlib numbers its groups anew in every picture; nothing refers to those


def test_warnings_name_what_is_wrong(folder):
    (run,) = find_runs([str(folder)])
    hints = find_hints(run)
    assert hints[0] == "a word of the <model>"
    assert any("net.mlp: expert 3 got no token in the last epoch" in hint for hint in hints)
    assert not any("expert 0 gets" in hint for hint in hints)  # 70 % is below three times a fair quarter
    undecided, certain = np.linspace(1, np.log(4), 6), np.linspace(1, 0, 6)
    wrong = {"moe/net.mlp/entropy": undecided, "moe/net.mlp/dropped": 0.2}
    found = "\n".join(find_hints(Run("x", folder, history=history([0.8, 0.1, 0.05, 0.05], **wrong))))
    assert "expert 0 gets 80 % of the load (an equal share is 25 %)" in found
    assert "the router is undecided (entropy 100%" in found
    assert "capacity refused 20% of the assignments" in found
    run = Run("x", folder, history=history([0.3, 0.3, 0.2, 0.2], **{"moe/net.mlp/entropy": certain}))
    assert "certain of every token" in "\n".join(find_hints(run))
    healthy = Run(
        "x", folder, history=history([0.25] * 4, **{"moe/net.mlp/entropy": 0.7, "val/loss": [6, 5, 4, 3, 2, 1]})
    )
    assert find_hints(healthy) == []


@pytest.mark.parametrize("entropy", [0.0, np.log(4)], ids=["hash", "thor"])
def test_a_router_that_does_not_learn_gets_no_advice(entropy, folder):
    run = Run("x", folder, history=history([0.4, 0.2, 0.2, 0.2], **{"moe/net.mlp/entropy": entropy}))
    assert find_hints(run) == []
    even = history([0.25] * 4, **{"moe/net.mlp/entropy": np.linspace(1.3, np.log(4), 6)})  # soft: equal by design
    assert find_hints(Run("x", folder, history=even)) == []


@pytest.mark.parametrize(("late", "renewed", "said"), [(0.5, 0, True), (0.5, 1, False), (0.88, 0, False)])
def test_a_fallen_accuracy_without_a_renewed_expert_is_named(late, renewed, said, tmp_path):
    frame = pd.DataFrame({"instance": range(100, 2100, 100), "windowed": [0.9] * 10 + [late] * 10, "total": 0.7})
    frame["renewed"] = renewed
    frame.to_csv(tmp_path / "metrics.csv", index=False)
    (run,) = find_runs([str(tmp_path)])
    assert ("the accuracy fell from 90% to" in "\n".join(find_hints(run))) == said
    errors = Run("x", tmp_path, history=run.history.assign(windowed=run.history["windowed"] * 0.999))
    assert "accuracy fell" not in "\n".join(find_hints(errors))  # no share of whole events: an error of numbers


def test_scores_are_those_of_the_kept_epoch(folder, tmp_path):
    Views(kept_epoch=2).save(folder)
    (run,) = find_runs([str(folder)])
    assert {score.name: score.values[0] for score in run.scores}["val/loss"] == pytest.approx(0.8)
    page = render([run])
    assert "val/loss: 0.8 at epoch 2, which is kept, lowest at epoch 5" in page
    assert "kept epoch: 2" in page


def test_a_picture_and_its_caption_are_shown_and_escaped(folder):
    gallery = Gallery.of("wrong", [("<cat>", b"\x89PNG\r\n\x1a\n")])
    Views(galleries=[gallery]).save(folder)
    page = render(find_runs([str(folder)]))
    assert 'src="data:image/png;base64,iVBORw0KGgo=" alt="&lt;cat&gt;"' in page


def test_an_axis_that_does_not_start_at_zero_says_so(folder):
    page = render([Run("x", folder, history=pd.DataFrame({"epoch": [0, 1], "val/accuracy": [0.8, 0.9]}))])
    assert "(axis starts at 0.8)" in page
    page = render([Run("x", folder, history=pd.DataFrame({"epoch": [0, 1], "val/accuracy": [0.0, 0.9]}))])
    assert "axis starts" not in page


def test_even_loads_have_no_picture(folder):
    assert "load of net.mlp" not in render([Run("x", folder, history=history([0.25] * 4))])
    assert "load of net.mlp: expert 0 gets most in the end, 40 %" in render(
        [Run("x", folder, history=history([0.4, 0.2, 0.2, 0.2]))]
    )


def test_drift_warnings_are_lines_in_the_chart_of_the_accuracy_over_time(tmp_path):
    frame = pd.DataFrame({"instance": range(100, 1100, 100), "windowed": 0.8, "total": 0.75, "warnings": 0})
    frame["time"] = pd.date_range("2024-01-01", periods=10)
    frame.loc[5:, "warnings"] = 1
    frame.to_csv(tmp_path / "metrics.csv", index=False)
    page = render(find_runs([str(tmp_path)]))
    assert "drift warning: 2024-01-06" in page
    assert "over time" in page


@pytest.mark.parametrize(
    ("losses", "said"), [([5, 4, 3, 2, 1, 1, 1, 2, 3, 3], True), ([5, 4, 3, 2, 0.1, 2, 2, 2, 1.9, 1.9], False)]
)
def test_overfitting_is_a_trend_and_not_one_lucky_epoch(losses, said, tmp_path):
    run = Run("x", tmp_path, history=pd.DataFrame({"epoch": range(10), "val/loss": losses}))
    assert ("overfits" in "\n".join(find_hints(run))) == said


def test_runs_that_differ_in_their_seed_only_are_one_with_a_spread(folder):
    other = folder.parent / "version_1"
    shutil.copytree(folder, other)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump({**config, "seed_everything": 2}))
    frame = pd.read_csv(other / "metrics.csv")
    frame.loc[frame["epoch"] == 5, "val/accuracy"] = 0.7
    frame.to_csv(other / "metrics.csv", index=False)
    (run,) = find_runs([str(folder.parent)])
    assert run.facts["seed"] == "1, 2"
    assert "0.8000 ± 0.1414 (2 seeds)" in render([run])


def test_different_runs_stand_side_by_side_best_first(folder):
    other = folder.parent / "version_1"
    shutil.copytree(folder, other)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"]["lr"] = 0.5
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    frame = pd.read_csv(other / "metrics.csv")
    frame["val/accuracy"] += 0.05
    frame.to_csv(other / "metrics.csv", index=False)
    page = render(find_runs([str(folder), str(other), str(folder)]))
    table = page[page.index("<h3>val/accuracy</h3>") :]
    assert table.index("0.9500") < table.index("0.9000")
    assert "Differences between the configurations (1)" in page
    assert "<code>model.init_args.lr</code></th><td>0.1</td><td>0.5</td>" in page


def test_a_run_of_a_stream_is_read_from_its_metrics(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    frame = pd.DataFrame(
        {"instance": range(100, 1100, 100), "windowed": 0.8, "total": 0.75, "rejected": 3, "renewed": 0}
    )
    frame.loc[5:, "renewed"] = 1
    frame["expert 0"], frame["expert 1"], frame["expert 2"] = 0.5, 0.499, 0.001
    frame.to_csv(run / "metrics.csv", index=False)
    for path in (run, run / "metrics.csv"):
        page = render(find_runs([str(path)]))
        assert "0.7500" in page
        assert "expert 2 had almost no weight in the last quarter" in page
        assert "3 events could not be read" in page
        assert "over instance; 1 marks" in page


def test_experts_of_several_kinds_are_compared_by_kind(tmp_path):
    frame = pd.DataFrame({"instance": range(100, 1100, 100), "windowed": 0.8, "total": 0.75})
    for name, share in {"tree 0": 0.0, "tree 1": 0.6, "bayes 0": 0.001, "linear 0": 0.399}.items():
        frame[f"expert {name}"] = share
    frame.to_csv(tmp_path / "metrics.csv", index=False)
    page = render(find_runs([str(tmp_path)]))
    assert "experts of the kind bayes had almost no weight in the last quarter: experts= can leave them out" in page
    assert page.count("had almost no weight") == 1
    assert "share of each kind of experts" in page
    assert "tree: from 0.6 to 0.6; bayes: from 0.001 to 0.001" in page


def test_many_rows_of_a_map_are_cut_to_the_most_telling(tmp_path):
    values = [[0.5, 0.5] for _ in range(100)]
    values[70] = [1.0, 0.0]
    page = render([Run("x", tmp_path, views=Views([Map("m", [f"class {i}" for i in range(100)], ["0", "1"], values)]))])
    assert "class 70" in page
    assert "70 rows closer to the mean are not shown" in page


@pytest.mark.parametrize(("text", "message"), BAD_YAML, ids=range(len(BAD_YAML)))
def test_a_hostile_configuration_is_refused_within_a_second(folder, text, message):
    (folder / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    begin = time.perf_counter()
    with pytest.raises(FileFormatError, match=re.escape(message)):
        find_runs([str(folder)])
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize("name", ["views.json", "run.json"])
@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "\x00", "NaN", "null", "[]", b"\xff"], ids=range(7))
def test_json_of_a_run_that_is_none_is_refused(folder, name, text):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FileFormatError, match=f"{name} is damaged"):
        find_runs([str(folder)])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("views.json", "{", "views.json is damaged"),
        ("views.json", '{"maps": [{"x": 1}], "curves": [], "hints": []}', "views.json is damaged"),
        ("run.json", '{"name": "x"}', "run.json is damaged"),
        ("run.json", '{"name": "x", "facts": {}, "scores": [{"a": 1}]}', "run.json is damaged"),
        ("metrics.csv", 'a,b\n1,"2', "metrics.csv cannot be read as a table"),
        ("config.yaml", "a: [", "config.yaml, line 2: not a YAML file"),
    ],
)
def test_damaged_files_are_named_and_nothing_is_written(folder, tmp_path, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(FileFormatError, match=message):
        write_report([str(folder)], str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(DataError, match=r"nothing does not exist, expected the folder of a run"):
        find_runs([str(tmp_path / "nothing")])
    with pytest.raises(DataError, match="holds no run"):
        find_runs([str(tmp_path)])
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(FileFormatError, match="not the metrics of a stream"):
        find_runs([str(tmp_path / "a.csv")])
    with pytest.raises(DataError, match="is neither a folder nor a file"):
        find_runs(["/dev/zero"])
    with pytest.raises(ConfigError, match=r"--output must be an .html file, got 'a.pdf'"):
        write_report([str(tmp_path)], "a.pdf")
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no run" in capsys.readouterr().err


@needs_browser
@pytest.mark.parametrize(
    ("width", "theme", "paper"), [(360, "dark", "rgb(20, 23, 26)"), (1200, "light", "rgb(251, 251, 250)")]
)
def test_a_browser_finds_nothing_to_complain_about(folder, tmp_path, width, theme, paper):
    shutil.copytree(folder, folder.parent / "version_1")
    with open(folder.parent / "version_1/config.yaml", "a") as file:
        file.write("other: 1\n")
    look(write_report([str(folder.parent)], str(tmp_path / "report.html")), width, theme, paper)


def test_runs_of_different_targets_of_one_table_are_not_compared(tmp_path):
    runs = [
        Run(name, tmp_path, facts={"target": target}, scores=[Score("val/loss", [0.5], True)])
        for name, target in (("a", "churned"), ("b", "revenue"), ("c", "revenue"))
    ]
    (table,) = page._scores(runs)
    assert [row["name"] for row in table["rows"]] == ["b", "c"]


@pytest.mark.parametrize(
    ("scale", "told"), [(1.0, "accuracy was lowest at instance 500"), (9.7, "absolute error was largest")]
)
def test_the_score_of_a_stream_is_called_what_it_is_and_its_alarms_are_counted(tmp_path, scale, told):
    windowed = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.9]) if scale == 1 else np.array([1, 1, 1, 1, 9.7, 1])
    frame = pd.DataFrame({"instance": range(100, 700, 100), "windowed": windowed, "total": windowed})
    frame.assign(drifts=[0, 0, 0, 0, 1, 2], renewed=3, **{"R2 total": 0.25}).to_csv(
        tmp_path / "metrics.csv", index=False
    )
    (run,) = find_runs([tmp_path])
    assert [one.name for one in run.scores] == ["accuracy" if scale == 1 else "mean absolute error", "R2"]
    assert run.facts["drift alarms"] == "2"
    page = write_report([tmp_path], tmp_path / "page.html").read_text()
    assert told in page


def test_a_run_with_hundreds_of_metrics_is_read_without_a_warning(tmp_path):
    frame = pd.DataFrame(np.ones((4, 300)), columns=[f"train/moe/{i}" for i in range(300)])
    frame.iloc[::2, ::3] = np.nan
    frame.assign(epoch=[0, 0, 1, 1], step=range(4)).to_csv(tmp_path / "metrics.csv", index=False)
    (run,) = find_runs([str(tmp_path)])
    assert run.history["epoch"].tolist() == [0, 1]
