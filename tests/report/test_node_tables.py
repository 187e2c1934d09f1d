"""The page of a model that was fitted on a table of nodes and one of edges."""

import pytest

from moeapps import load
from moeapps.cli.main import main
from moeapps.report import model_report
from tests.graph.test_node_table import small, tables


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    nodes, edges = tables()
    nodes.to_csv(folder / "nodes.csv", index=False)
    edges.to_csv(folder / "edges.csv", index=False)
    nodes.drop(columns="label").to_csv(folder / "unlabelled.csv", index=False)
    small().fit(nodes, edges=edges, id="account", target="label").save(folder / "model.safetensors")
    return folder


def report(folder, *options) -> int:
    return main(["report", str(folder / "model.safetensors"), *options, "--output", str(folder / "page.html")])


def test_labelled_nodes_are_judged_under_their_ids(folder):
    data = ["--data", str(folder / "nodes.csv"), "--edges", str(folder / "edges.csv")]
    assert report(folder, *data) == 0
    page, nodes = (folder / "page.html").read_text(), tables()[0]
    assert f"{int(nodes['label'].notna().sum()):,}" in page
    explained = page.split("One node explained: ")[1].split("<")[0]
    assert explained in set(nodes["account"].astype(str))


@pytest.mark.parametrize(
    ("data", "more", "told"),
    [
        ("nodes.csv", [], "--edges is missing"),
        ("unlabelled.csv", ["--edges", "edges.csv"], "has no column 'label'"),
        ("nodes.csv", ["--edges", "edges.csv", "--target", "account"], "the labels of 'label'"),
    ],
)
def test_what_is_missing_is_named(folder, data, more, told, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert report(folder, "--data", data, *more) == 2
    assert told in capsys.readouterr().err


def test_scores_of_nodes_that_were_trained_on_come_with_a_warning_and_those_of_test_nodes_without(folder):
    data = ["--data", str(folder / "nodes.csv"), "--edges", str(folder / "edges.csv")]
    assert report(folder, *data) == 0
    assert "no node is marked as one to test" in (folder / "page.html").read_text()
    nodes, edges = tables()
    nodes["part"] = ["train", "train", "val", "test"] * (len(nodes) // 4) + ["train"] * (len(nodes) % 4)
    model = small().fit(nodes, edges=edges, id="account", target="label", split="part")
    page = model_report(model, (nodes, edges), path=folder / "tested.html").read_text()
    assert "no node is marked as one to test" not in page


def test_the_page_counts_columns_of_the_table_and_not_features(folder):
    assert report(folder, "--data", str(folder / "nodes.csv"), "--edges", str(folder / "edges.csv")) == 0
    page, model = (folder / "page.html").read_text(), load(folder / "model.safetensors")
    assert f"{len(model.node_columns_)}: " in page.split("columns</")[1][:200]
    assert "Columns, and what they are taken for" in page
