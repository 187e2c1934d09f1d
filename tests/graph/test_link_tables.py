"""Links of a graph in two tables: training, files of pairs, requests, and what is refused."""

import contextlib
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import LinkModule, LinkTableData, MowstLinkPredictor
from moeapps.graph.link_scoring import predict_links_file
from moeapps.serve.schema import predict_model
from moeapps.serve.services import open_service


def tables():
    """40 people in two cities and their calls, some of them twice, in both directions, or to themselves."""
    rng = np.random.default_rng(0)
    ids = [f"P{number:02}" for number in range(40)]
    people = pd.DataFrame({"person": ids, "age": rng.integers(20, 60, 40), "city": np.repeat(["Rome", "Oslo"], 20)})
    ends = rng.integers(0, 20, (2, 120)) + rng.choice([0, 20], 120)
    calls = pd.DataFrame({"caller": np.take(ids, ends[0]), "called": np.take(ids, ends[1])})
    back = calls.iloc[:30].rename(columns={"caller": "called", "called": "caller"})
    loops = pd.DataFrame({"caller": ids[:3], "called": ids[:3]})
    return people, pd.concat([calls, back, calls.iloc[:10], loops], ignore_index=True)


@pytest.fixture(scope="module")
def people():
    return tables()[0]


@pytest.fixture(scope="module")
def calls():
    return tables()[1]


def data(people, calls, **options):
    found = LinkTableData(people, calls, "person", "caller", "called", **options)
    found.setup()
    return found


def linked(pairs, y):
    """The linked pairs of a part, each as a set of two nodes."""
    return {frozenset(pair) for pair in pairs[:, y == 1].T.tolist()}


@pytest.fixture(scope="module")
def folder(people, calls, tmp_path_factory):
    """The tables as files, a run of two epochs, and its model."""
    place = tmp_path_factory.mktemp("links")
    people.to_csv(place / "people.csv", index=False)
    calls.to_csv(place / "calls.csv", index=False)
    pairs = pd.DataFrame({"note": ["a", "b"], "called": ["P01", "P30"], "caller": ["P00", "P02"]})
    pairs.to_csv(place / "pairs.csv", index=False)
    given = ["--data.nodes", "people.csv", "--data.edges", "calls.csv", "--data.id", "person"]
    given += ["--data.edge_source", "caller", "--data.edge_target", "called", "--trainer.max_epochs", "2"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    small = ["--model.strong", "gcn", "--model.hidden_channels", "8", "--model.gate", "constant"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert main(["fit", "--model", "LinkModule", *small, "--data", "LinkTableData", *given, *quiet]) == 0
        with contextlib.redirect_stdout(io.StringIO()) as told:
            assert main(["export", "moeapps-runs/version_0", "links.safetensors"]) == 0
    (place / "told.txt").write_text(told.getvalue())
    return place


def test_export_names_the_tables_in_the_next_commands(folder):
    told = (folder / "told.txt").read_text()
    assert "moeapps score links.safetensors --input PAIRS --nodes people.csv --edges calls.csv" in told
    assert "moeapps serve links.safetensors --nodes people.csv --edges calls.csv\n" in told


@pytest.fixture(scope="module")
def model(folder):
    return moeapps.load(folder / "links.safetensors")


@pytest.mark.parametrize("undirected", [True, False])
def test_a_held_out_link_is_no_edge_of_any_part_that_trains_or_is_asked(people, calls, undirected):
    found = data(people, calls, undirected=undirected, test_fraction=0.2)
    whole = {tuple(pair) for pair in found.part("test").known.T.tolist()}
    for name in ("val", "test"):
        part = found.part(name)
        asked = part.pairs[:, part.y == 1]
        edges = {tuple(edge) for edge in part.edges.index.T.tolist()}
        assert not edges & set(map(tuple, asked.T.tolist())), "a copy of the edge"
        if undirected:
            assert not edges & set(map(tuple, asked.flip(0).T.tolist())), "its reverse"
        assert not {tuple(pair) for pair in part.pairs[:, part.y == 0].T.tolist()} & whole
    train, val, test = (linked(found.part(name).pairs, found.part(name).y) for name in ("train", "val", "test"))
    if undirected:
        assert not train & val
        assert not (train | val) & test


def test_loops_and_copies_are_no_links_of_their_own(people, calls):
    found = data(people, calls)
    sizes = {name: int((found.part(name).y == 1).sum()) for name in ("train", "val", "test")}
    distinct = {frozenset(pair) for pair in calls.to_numpy().tolist()}
    assert sum(sizes.values()) == sum(len(pair) == 2 for pair in distinct)


def test_a_column_of_the_edges_divides_the_links(people, calls):
    once = calls[calls.caller < calls.called].drop_duplicates()
    parts = np.resize(["train", "test", None, "val", "train"], len(once))
    found = data(people, once.assign(part=parts), edge_split="part")
    names = found.node_ids.tolist()
    for name in ("val", "test"):
        part = found.part(name)
        told = {frozenset(names[node] for node in pair) for pair in linked(part.pairs, part.y)}
        assert told == {frozenset(pair) for pair in once[parts == name].to_numpy().tolist()}
    assert found.part("train").pairs.shape[1] == int(((parts != "val") & (parts != "test")).sum())
    assert found.has_test_data


def test_without_a_row_to_test_there_is_no_test_and_validation_is_drawn(people, calls):
    found = data(people, calls.assign(part="train"), edge_split="part")
    assert not found.has_test_data
    assert found.part("val").pairs.shape[1] > 0
    with pytest.raises(ConfigError, match="no row of 'part' says test"):
        found.part("test")


def test_the_reverse_of_a_test_edge_cannot_be_trained_on(people, calls):
    rows = pd.DataFrame({"caller": ["P01", "P00"], "called": ["P00", "P01"], "part": ["train", "test"]})
    rows = pd.concat([calls[(calls.caller > "P05") & (calls.called > "P05")].assign(part="train"), rows])
    with pytest.raises(DataError, match=r"'P00' and 'P01' is in two parts, train in row \d+ and test in row \d+"):
        data(people, rows, edge_split="part")
    directed = data(people, rows, edge_split="part", undirected=False)
    assert (directed.part("test").y == 1).sum() == 1, "with directions they are two links"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda calls: calls.replace("P01", "P99"), {}, "name a node that nodes lacks, the first is 'P99'"),
        (lambda calls: calls.iloc[:0], {}, "no edge between two different nodes"),
        (lambda calls: calls.assign(called=calls.caller), {}, "no edge between two different nodes"),
        (lambda calls: calls, {"edge_split": "prt"}, "no column 'prt', which edge_split names"),
        (lambda calls: calls.assign(part="dev set"), {"edge_split": "part"}, "'part' holds 'dev set' in row 0"),
        (lambda calls: calls.assign(part="test"), {"edge_split": "part"}, "held out none is left to train on"),
        (lambda calls: calls.rename(columns={"called": "caled"}), {}, "no column 'called', which edge_target names"),
    ],
)
def test_tables_that_cannot_be_trained_on_are_refused_by_name(people, calls, change, options, message):
    with pytest.raises((DataError, ConfigError), match=message):
        data(people, change(calls), **options)


def test_ids_are_the_same_as_numbers_and_as_text(people, calls):
    number = {f"P{i:02}": i for i in range(40)}
    numbered = calls.replace(number).astype(int)
    as_text = data(people.assign(person=[str(i) for i in range(40)]), numbered)
    as_numbers = data(people.assign(person=range(40)), numbered.astype(str))
    torch.testing.assert_close(as_text.part("val").pairs, as_numbers.part("val").pairs)
    with pytest.raises(DataError, match="the first is '08' in row 0; did you mean '8'"):
        data(people.assign(person=range(40)), calls.map(lambda text: text.removeprefix("P")))


def test_what_was_trained_by_fit_scores_a_file_of_pairs(folder, model, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    score = ["score", "links.safetensors", "--input", "pairs.csv", "--output", "scores.csv"]
    graph = ["--nodes", "people.csv", "--edges", "calls.csv"]
    assert main([*score, *graph, "--keep", "note"]) == 0
    scores = pd.read_csv("scores.csv")
    assert scores.columns.tolist() == ["caller", "called", "note", "probability"], "columns are found by name"
    assert scores.note.tolist() == ["a", "b"]
    expected = model.predict_proba([["P00", "P01"], ["P02", "P30"]], "people.csv", "calls.csv")[:, 1]
    np.testing.assert_allclose(scores.probability, expected, atol=1e-6)
    assert main([*score, *graph, "--weights"]) == 0
    weights = pd.read_csv("scores.csv").filter(like="weight_")
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    capsys.readouterr()
    assert main([*score, *graph[:2]]) == 2
    assert "--edges is missing" in capsys.readouterr().err
    assert main([*score, *graph, "--recommend", "3"]) == 2
    assert "--recommend is not for a MowstLinkPredictor" in capsys.readouterr().err


def test_a_file_of_pairs_may_be_a_python_argument_too(folder, model, monkeypatch):
    monkeypatch.chdir(folder)
    graph = model.read_graph("people.csv", "calls.csv")
    table = model.predict_table("pairs.csv", graph)
    assert table.source.tolist() == ["P00", "P02"]
    turned = model.predict_table(pd.DataFrame({"called": ["P01"], "caller": ["P00"]}), graph)
    assert (turned.source[0], turned.target[0]) == ("P00", "P01"), "columns of a frame are found by name, too"
    assert model.predict_table(pd.DataFrame({"a": ["P01"], "b": ["P00"]}), graph).source[0] == "P01"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("caller,called\nP00,P1\n", "'called', has the node 'P1' in row 0, which the table of nodes lacks .an id"),
        (
            "caller,called\nP00,P02\np01,P02\n",
            "the node 'p01' in row 1, which the table of nodes lacks; did you mean 'P01'",
        ),
        ("caller,called\nP00,P00\n", "has the node 'P00' with itself in row 0"),
        ("caller,called\nP00,\n", "has no node id in row 0"),
        (
            "calller,called\nP00,P01\n",
            "no column 'caller', which the edges of the training.*did you mean 'calller'",
        ),
        ("caller,called\n", "has no row: there is no pair"),
        ("", "empty"),
    ],
)
def test_a_file_of_pairs_that_cannot_be_asked_for_is_refused_by_name(folder, model, tmp_path, content, message):
    (tmp_path / "pairs.csv").write_text(content)
    tables = (folder / "people.csv", folder / "calls.csv")
    with pytest.raises(Exception, match=message) as caught:
        predict_links_file(model, tmp_path / "pairs.csv", *tables, tmp_path / "scores.csv")
    assert "pairs.csv" in str(caught.value)
    assert not (tmp_path / "scores.csv").exists()


def test_columns_of_pairs_that_nobody_named_are_told_what_to_be_called(people, calls, tmp_path):
    plain = calls.set_axis(["source", "target"], axis=1)
    model = MowstLinkPredictor("gcn", hidden_channels=8, max_epochs=1, gate="constant", random_state=0)
    model.fit(people, edges=plain, id="person")
    pd.DataFrame({"a": ["P00"], "b": ["P01"], "c": [1], "d": [2]}).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(DataError, match="call them source and target; it has 'a', 'b', 'c', 'd'"):
        model.predict(tmp_path / "pairs.csv")
    arrays = MowstLinkPredictor("gcn", hidden_channels=8, max_epochs=1, gate="constant", random_state=0)
    index = calls.apply(lambda column: column.str[1:].astype(int)).to_numpy().T
    arrays.fit(people[["age"]].to_numpy(), np.hstack([index, index[::-1]])).save(tmp_path / "arrays.safetensors")
    service = open_service(tmp_path / "arrays.safetensors")
    request = {"x": people[["age"]].to_numpy().tolist(), "edges": index.T.tolist(), "pairs": [[0, 1]]}
    assert predict_model(service.describe())(**request)
    (answer,) = service.predict([request])
    assert (answer[0]["source"], answer[0]["target"]) == (0, 1)


def test_a_request_of_pairs_is_about_the_graph_of_the_server(folder, model, people, calls):
    tables = (str(folder / "people.csv"), str(folder / "calls.csv"))
    held = open_service(folder / "links.safetensors", tables)
    assert held.describe()["nodes"] == 40
    body = predict_model(held.describe())
    assert set(body.model_fields) == {"pairs"}
    (answer,) = held.predict([{"pairs": [["P00", "P01"], ["P02", "P30"]]}])
    assert [row["source"] for row in answer] == ["P00", "P02"]
    expected = model.predict_proba([["P00", "P01"], ["P02", "P30"]], *tables)[:, 1]
    np.testing.assert_allclose([row["probability"] for row in answer], expected, atol=1e-6)
    (refusal,) = held.predict([{"pairs": [["P00", "P99"]]}])
    assert "has the node 'P99' in row 0" in refusal.message
    service = open_service(folder / "links.safetensors")
    assert set(predict_model(service.describe()).model_fields) == {"nodes", "edges", "pairs"}
    rows = json.loads(people.to_json(orient="records"))
    (own,) = service.predict([{"nodes": rows, "edges": calls.to_numpy().tolist(), "pairs": [["P00", "P01"]]}])
    assert own[0]["probability"] == pytest.approx(answer[0]["probability"], abs=1e-6)


def test_a_training_goes_on_only_with_the_same_reading(people, calls):
    module = LinkModule("gcn")
    module.node_table = data(people, calls).node_table.state()
    module._trainer = type("Trainer", (), {"datamodule": data(people.assign(city="Bern"), calls)})()
    with pytest.raises(DataError, match="moeapps score MODEL --input PAIRS --nodes NODES --edges EDGES"):
        module.compare_reading(
            False, "predict pairs with moeapps score MODEL --input PAIRS --nodes NODES --edges EDGES"
        )


def test_the_checkpoint_predicts_the_test_links_with_their_ids(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run = "moeapps-runs/version_0"
    given = ["--config", f"{run}/config.yaml", "--ckpt_path", f"{run}/checkpoints/last.ckpt"]
    assert main(["predict", *given, "--output", "test.csv"]) == 0
    found = pd.read_csv("test.csv")
    assert found.columns.tolist() == ["source", "target", "probability"]
    assert set(found.source) <= {f"P{number:02}" for number in range(40)}
    assert main(["predict", *given, "--data.nodes", "calls.csv", "--output", "test.csv"]) != 0
    assert "has no column 'person', which id names" in capsys.readouterr().err
