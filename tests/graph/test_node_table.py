"""A graph in two tables: ids, columns of any kind, labels, splits, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import moeapps
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.graph import GNNClassifier, GNNModule, GraphTableData, MowstLinkPredictor
from moeapps.graph.graph_tables import GraphTables
from moeapps.graph.node_table import NodeTable
from moeapps.serve.schema import predict_model
from moeapps.serve.services import open_service

BIG = 1234567890123456700
"""Ids beyond what a float holds."""


def tables():
    """60 accounts in two groups, of which a sixth has no label, and their transfers."""
    rng = np.random.default_rng(0)
    group = np.arange(60) >= 30
    nodes = pd.DataFrame(
        {
            "account": np.arange(60) + BIG,
            "age": pd.array([None if i % 9 == 0 else 20 + i % 7 for i in range(60)], dtype="Int64"),
            "country": rng.choice(["de", "fr"], 60),
            "balance": rng.normal(size=60) + group,
            "flag": rng.integers(0, 2, 60),
            "label": np.where(np.arange(60) % 6 == 0, None, np.where(group, "fraud", "honest")),
        }
    )
    source = rng.integers(0, 60, 150)
    target = np.where(rng.random(150) < 0.8, source // 30 * 30 + rng.integers(0, 30, 150), rng.integers(0, 60, 150))
    return nodes, pd.DataFrame({"source": source + BIG, "target": target + BIG})


@pytest.fixture(scope="module")
def nodes():
    return tables()[0]


@pytest.fixture(scope="module")
def edges():
    return tables()[1]


@pytest.fixture(scope="module")
def files(nodes, edges, tmp_path_factory):
    """The same as files."""
    folder = tmp_path_factory.mktemp("tables")
    nodes.to_csv(folder / "nodes.csv", index=False)
    edges.to_csv(folder / "edges.csv", index=False)
    edges.to_parquet(folder / "edges.parquet")
    return folder


def small(**arguments):
    return GNNClassifier("gcn", hidden_channels=8, norm=None, max_epochs=8, random_state=0, **arguments)


@pytest.fixture(scope="module")
def model(nodes, edges):
    return small().fit(nodes, edges=edges, id="account", target="label")


def learned(nodes, edges, **options):
    return NodeTable.learn(nodes, edges, GraphTables(**{"id": "account", "target": "label", **options}))


def test_files_and_frames_are_one_graph(nodes, edges, files):
    table, frame = learned(nodes, edges)
    for other in ("edges.csv", "edges.parquet"):
        again, read = learned(files / "nodes.csv", files / other)
        assert again.column_kinds() == table.column_kinds()
        np.testing.assert_allclose(read.graph.x, frame.graph.x, atol=1e-6)
        np.testing.assert_array_equal(read.graph.edge_index, frame.graph.edge_index)
        assert read.graph.y.tolist() == frame.graph.y.tolist()


def test_columns_of_any_kind_become_features(nodes, edges):
    table, read = learned(nodes, edges)
    assert set(table.feature_names()) == {"age", "balance", "flag", "age is missing", "country=fr", "country=de"}
    x = pd.DataFrame(read.graph.x.numpy(), columns=table.feature_names())
    assert x["age is missing"].tolist() == nodes.age.isna().tolist()
    assert x["country=fr"].tolist() == (nodes.country == "fr").tolist()
    assert x.flag.nunique() == 2
    assert x.flag.min() == 0, "marks stay marks"
    assert abs(x.balance.mean()) < 0.2


def test_ids_with_leading_zeros_differ(edges):
    nodes = pd.DataFrame({"node": ["07", "7", "007"], "x": [1.0, 2.0, 3.0]})
    read = learned(nodes, pd.DataFrame({"a": ["07"], "b": ["007"]}), id=None, target=None)[1]
    assert sorted(map(tuple, read.graph.edge_index.T.tolist())) == [(0, 2), (2, 0)]


def test_edges_are_both_ways_unless_directed(nodes, edges):
    assert learned(nodes, edges)[1].graph.is_undirected()
    directed = learned(nodes, edges, undirected=False)[1].graph
    np.testing.assert_array_equal(directed.edge_index, (edges.to_numpy() - BIG).T)


def test_weights_and_names_of_the_columns_of_edges(nodes, edges):
    named = edges.set_axis(["payer", "payee"], axis=1).assign(amount=2.5, note="x")
    graph = learned(nodes, named, edge_source="payer", edge_target="payee", edge_weight="amount")[1].graph
    assert graph.edge_weight.unique().tolist() == [2.5]
    with pytest.raises(ConfigError, match=r"edge_source is missing.*'payer', 'payee', 'amount', 'note'"):
        learned(nodes, named)
    both = pd.DataFrame({"source": [BIG, BIG + 5], "target": [BIG + 5, BIG], "weight": [1.0, 2.0]})
    with pytest.raises(DataError, match=f"several weights for the edge between '{BIG}' and '{BIG + 5}'"):
        learned(nodes, both)


def test_edges_are_read_by_the_columns_of_the_training(nodes, edges):
    edges = edges.set_axis(["payer", "payee"], axis=1)
    table, read = learned(nodes, edges, undirected=False)
    again = NodeTable.from_state(json.loads(json.dumps(table.state())))
    for known in (table, again):
        turned = known.read(nodes, edges[["payee", "payer"]]).graph
        assert torch.equal(turned.edge_index, read.graph.edge_index)
        with pytest.warns(UserWarning, match="the column 'weight' is not used: .* had no weights"):
            assert known.read(nodes, edges.assign(weight=2.0)).graph.edge_weight is None
    weighted = learned(nodes, edges.assign(weight=2.0), undirected=False)[0]
    assert weighted.read(nodes, edges.assign(weight=3.0)).graph.edge_weight.unique().tolist() == [3.0]
    with pytest.raises(DataError, match="edges has no column 'weight', the weights of the edges that the model was"):
        weighted.read(nodes, edges)
    assert weighted.read(nodes, edges[:0]).graph.num_edges == 0


def test_edges_to_unknown_nodes_are_refused_or_counted(nodes, edges):
    more = pd.concat([edges, pd.DataFrame({"source": [5], "target": [BIG]})], ignore_index=True)
    with pytest.raises(DataError, match=r"1 of 151 edges name a node that nodes lacks, the first is '5' in row 150"):
        learned(nodes, more)
    with pytest.warns(UserWarning, match="1 of 151 edges"):
        graph = learned(nodes, more, missing_nodes="ignore")[1].graph
    np.testing.assert_array_equal(graph.edge_index, learned(nodes, edges)[1].graph.edge_index)


def test_an_id_that_comes_twice_is_named(nodes, edges):
    with pytest.raises(DataError, match=f"has the id '{BIG}' in rows 0 and 60"):
        learned(pd.concat([nodes, nodes.iloc[:1]], ignore_index=True), edges)


def test_a_missing_id_is_named(nodes, edges):
    with pytest.raises(DataError, match="column 'account', has no node id in row 3"):
        learned(
            nodes.astype({"account": object}).assign(account=nodes.account.astype(str).where(nodes.index != 3)), edges
        )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"id": "acount"}, r"no column 'acount', which id names; .*did you mean 'account'"),
        ({"target": "lable"}, r"which target names; .*did you mean 'label'"),
        ({"split": "country"}, r"'country' holds '(de|fr)' in row 0, expected train, val, test or nothing"),
        ({"id": "label"}, "must be different columns"),
        ({"edge_weight": "amount"}, "which edge_weight names"),
        ({"missing_nodes": "drop"}, "missing_nodes must be one of error, ignore"),
    ],
)
def test_what_is_not_in_the_tables_is_named(nodes, edges, options, told):
    with pytest.raises(ValueError, match=told):
        learned(nodes, edges, **options)


@pytest.mark.parametrize(("label", "told"), [(None, "no label"), ("old", "1 class")])
def test_a_column_without_two_labels_is_named_with_its_table(nodes, edges, tmp_path, label, told):
    nodes.assign(label=label).to_csv(tmp_path / "nodes.csv", index=False)
    data = GraphTableData(tmp_path / "nodes.csv", edges, "label", id="account")
    with pytest.raises(DataError, match=rf"nodes\.csv, column 'label', has {told}: at least two classes are needed"):
        data.setup("fit")


def test_a_column_of_splits_makes_the_masks(nodes, edges):
    parts = np.where(np.arange(60) % 5 == 0, "Val", np.where(np.arange(60) % 5 == 1, "test", "train"))
    parts[7], parts[8] = "", "NA"  # as in a file
    graph = learned(nodes.assign(part=parts), edges, split="part")[1].graph
    assert graph.val_mask.nonzero().flatten().tolist() == list(range(0, 60, 5))
    assert not graph.train_mask[[7, 8]].any()
    fitted = small().fit(nodes.assign(part=parts), edges=edges, id="account", target="label", split="part")
    assert fitted.classes_.tolist() == ["fraud", "honest"]


def test_a_column_with_its_own_value_per_row_is_no_feature(nodes, edges):
    named = nodes.assign(iban=[f"X{i}" for i in range(60)])
    with pytest.warns(UserWarning, match="its own value in 'iban'"):
        table = learned(named, edges)[0]
    assert "iban" not in table.column_kinds()


def test_whole_numbers_of_a_file_are_labels(nodes, edges, tmp_path):
    numbered = nodes.assign(label=nodes.label.map({"fraud": 10, "honest": 2}).astype("Int64"))
    numbered.to_csv(tmp_path / "nodes.csv", index=False)
    assert learned(tmp_path / "nodes.csv", edges)[1].graph.y.tolist()[:2] == [None, 2]
    numbered.astype({"label": float}).to_csv(tmp_path / "nodes.csv", index=False)  # 2.0, for the holes
    assert learned(tmp_path / "nodes.csv", edges)[1].graph.y.tolist()[:2] == [None, 2]


@pytest.mark.parametrize("kind", [bool, float, str, "{:02d}".format])
def test_labels_of_a_file_are_those_of_the_frame_to_the_model(nodes, edges, tmp_path, kind):
    given = nodes.assign(label=[kind(int(i >= 30)) for i in range(60)])
    given.to_csv(tmp_path / "nodes.csv", index=False)
    model = small().fit(given, edges=edges, id="account", target="label")
    wanted = model.evaluate(given, edges=edges)
    assert model.evaluate(tmp_path / "nodes.csv", edges=edges) == wanted
    assert model.score(tmp_path / "nodes.csv", edges=edges) == pytest.approx(wanted["accuracy"])
    if model.classes_.dtype.kind in "bif":
        with pytest.raises(DataError, match="y has the label 'red', the classes of the training are"):
            model.score(given.assign(label="red"), edges=edges)


def test_predictions_have_ids_and_label_names(model, nodes, edges):
    frame = model.predict_frame()
    assert frame.columns.tolist() == ["account", "prediction", "probability_fraud", "probability_honest"]
    assert frame.account.tolist() == nodes.account.tolist()
    some = model.predict_frame(nodes, edges, nodes=[BIG + 50, BIG + 3])
    assert some.account.tolist() == [BIG + 50, BIG + 3]
    np.testing.assert_allclose(some.iloc[0, 2:].astype(float), frame.iloc[50, 2:].astype(float), atol=1e-6)
    known = nodes.label.notna()
    assert model.score(nodes, edges=edges) == pytest.approx((frame.prediction == nodes.label)[known].mean())


def test_a_saved_model_reads_tables_as_in_training(model, files, tmp_path):
    model.save(tmp_path / "model.safetensors")
    loaded = moeapps.load(tmp_path / "model.safetensors")
    found = loaded.predict_proba(files / "nodes.csv", edges=files / "edges.csv")
    np.testing.assert_allclose(found, model.predict_proba(), atol=1e-6)
    assert str(BIG + 1) not in (tmp_path / "model.safetensors").read_bytes().decode("latin1"), "no id is in the file"


def test_other_nodes_are_read_as_in_training(model, nodes, edges):
    few = nodes.iloc[:3].drop(columns="label").assign(country=["de", "us", None])
    between = few.account.iloc[[0, 1]].to_frame("source").assign(target=few.account.iloc[2])
    with pytest.warns(UserWarning, match="country"):
        found = model.predict(few, edges=between)
    assert set(found) <= {"fraud", "honest"}
    with pytest.raises(DataError, match="no column 'age', which the model was trained with"):
        model.predict(few.drop(columns="age"), edges=between)


def test_what_goes_with_tables_only_is_refused_without(nodes, edges, files, model):
    with pytest.raises(ConfigError, match="id says what a column of a table means: edges is missing"):
        small().fit(nodes, id="account")
    with pytest.raises(ConfigError, match="is a table of nodes: edges is missing"):
        small().fit(files / "nodes.csv")
    with pytest.raises(ConfigError, match="no argument 'undirectd'; did you mean 'undirected'"):
        small().fit(nodes, edges=edges, id="account", target="label", undirectd=True)
    with pytest.raises(ConfigError, match="target is missing"):
        small().fit(nodes, edges=edges, id="account")
    with pytest.raises(DataError, match="nodes has the node '5' in row 0, which the table of nodes lacks"):
        model.predict(nodes, edges=edges, nodes=[5])


def test_a_damaged_reading_is_refused(model):
    state = json.loads(json.dumps(model.node_table_.state()))
    for changed in ({**state, "kept": [[99]]}, {**state, "id": 3}, {**state, "more": 1}, {}):
        with pytest.raises(FileFormatError, match="table of nodes is malformed"):
            NodeTable.from_state(changed)


def test_from_two_files_to_labels_by_the_command_line(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [
        "--data.nodes",
        str(files / "nodes.csv"),
        "--data.edges",
        str(files / "edges.csv"),
        "--data.target",
        "label",
    ]
    given += ["--data.id", "account"]
    fit = ["--model", "GNNModule", "--model.hidden_channels", "8", "--data", "GraphTableData", *given]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    assert main(["fit", *fit, "--data.target", "lable", "--trainer.max_epochs", "2", *quiet]) == 1
    assert not list((tmp_path / "moeapps-runs").iterdir()), "a run that never began leaves no folder"
    capsys.readouterr()
    assert main(["fit", *fit, "--trainer.max_epochs", "2", *quiet]) == 0
    checkpoint = tmp_path / "moeapps-runs" / "version_0" / "checkpoints" / "last.ckpt"
    told = capsys.readouterr().out
    assert "next: moeapps report" in told
    assert "moeapps test" not in told, "there are no nodes to test on"
    (tmp_path / "moeapps-runs" / "version_1").mkdir()
    assert main(["export", "moeapps-runs/version_1", "model.safetensors"]) == 2
    assert "the latest run beside it is moeapps-runs/version_0" in capsys.readouterr().err
    score = ["score", str(checkpoint), "--input", str(files / "nodes.csv"), "--output", "labels.csv"]
    assert main([*score, "--edges", str(files / "edges.csv"), "--keep", "country"]) == 0
    labels = pd.read_csv("labels.csv")
    assert labels.columns.tolist() == ["account", "country", "prediction", "probability_fraud", "probability_honest"]
    assert len(labels) == 60
    assert main(["predict", *fit, "--ckpt_path", str(checkpoint), "--output", "again.csv", *quiet]) == 0
    again = pd.read_csv("again.csv")
    assert again.account.tolist() == labels.account.tolist()
    assert again.prediction.tolist() == labels.prediction.tolist()
    assert main(score) == 2
    assert "--edges is missing" in capsys.readouterr().err


def test_a_request_is_a_graph_in_two_tables(model, nodes, edges, tmp_path):
    model.save(tmp_path / "model.safetensors")
    service = open_service(tmp_path / "model.safetensors")
    assert service.describe()["id"] == "account"
    rows = json.loads(nodes.drop(columns="label").to_json(orient="records"))
    request = {"nodes": rows, "edges": edges.to_numpy().tolist(), "predict": [BIG + 40]}
    (answer,) = service.predict([request])
    assert answer[0]["account"] == BIG + 40
    assert answer[0]["probability_fraud"] == pytest.approx(model.predict_proba(nodes=[BIG + 40])[0, 0], abs=1e-6)
    (refusal,) = service.predict([{**request, "edges": [[BIG, 3]]}])
    assert "name a node that nodes lacks" in refusal.message
    (refusal,) = service.predict([{**request, "edges": [[BIG, BIG + 1, 0.5]]}])
    assert "some have a weight, and those that the model was fitted on had none" in refusal.message


def test_requests_about_the_graph_of_the_server_have_ids_only(model, files, tmp_path):
    model.save(tmp_path / "model.safetensors")
    tables = (str(files / "nodes.csv"), str(files / "edges.csv"))
    service = open_service(tmp_path / "model.safetensors", tables)
    assert set(predict_model(service.describe()).model_fields) == {"predict"}
    (one, every) = service.predict([{"predict": [BIG + 40]}, {"predict": None}])
    assert one[0]["account"] == str(BIG + 40)
    assert one[0]["probability_fraud"] == pytest.approx(model.predict_proba(*tables, nodes=[BIG + 40])[0, 0], abs=1e-6)
    assert len(every) == service.describe()["nodes"] == 60
    arrays = GNNClassifier("gcn", hidden_channels=8, norm=None, max_epochs=1)
    arrays.fit(np.eye(6), np.arange(6) % 2, np.array([[0, 1], [1, 0]])).save(tmp_path / "arrays.safetensors")
    with pytest.raises(DataError, match="was not fitted on tables"):
        open_service(tmp_path / "arrays.safetensors", tables)


def test_a_training_goes_on_only_with_the_same_reading(nodes, edges):
    module = GNNModule("gcn")
    module.classes, module.node_table = np.array(["fraud", "honest"]), learned(nodes, edges)[0].state()
    data = GraphTableData(nodes.assign(country="us"), edges, "label", "account")
    data.setup()
    module._trainer = type("Trainer", (), {"datamodule": data})()
    with pytest.raises(DataError, match="moeapps score MODEL --input NODES --edges EDGES"):
        module.on_predict_start()


def test_links_of_two_tables_are_asked_for_by_id(nodes, edges, tmp_path):
    model = MowstLinkPredictor("gcn", hidden_channels=8, max_epochs=2, gate="constant", random_state=0)
    model.fit(nodes.drop(columns="label"), edges=edges, id="account")
    pairs = edges[edges.source != edges.target].iloc[:4]
    table = model.predict_table(pairs)
    assert table.source.tolist() == pairs.source.tolist()
    model.save(tmp_path / "links.safetensors")
    again = moeapps.load(tmp_path / "links.safetensors")
    found = again.predict_proba(pairs.astype(str).to_numpy(), nodes, edges)
    np.testing.assert_allclose(found[:, 1], table.probability, atol=1e-6)
    with pytest.raises(DataError, match="pairs has the node '7' in row 0, which the table of nodes lacks"):
        model.predict([[7, BIG]])


@pytest.mark.parametrize(
    ("model", "data", "remedy"),
    [
        ("LinkModule", "LinkData", "LinkTableData reads two"),
        ("GNNModule", "GraphDataModule", "is a table: GraphTableData reads two"),
    ],
)
def test_a_table_given_as_a_graph_is_named_and_not_read(model, data, remedy, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert main(["fit", "--model", model, "--data", data, "--data.source", "nodes.csv"]) != 0
    error = capsys.readouterr().err
    assert "'nodes.csv'" in error
    assert remedy in error
    assert "account" not in error, "the file's content"
