"""Masks, splits, node numbers, labels and features from what users have."""

from decimal import Decimal
from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy import sparse
from torch_geometric.data import Batch, Data, HeteroData, InMemoryDataset, TemporalData

import moeapps
from moeapps.core.errors import ConfigError, DataError, DataTypeError
from moeapps.graph import GNNClassifier, GraphDataModule, MowstClassifier
from moeapps.graph.inputs import as_graph
from moeapps.graph.labels import as_labels, class_names, encode_labels
from moeapps.graph.masks import node_index, read_mask
from tests.graph.helpers import small_graph

QUICK = {"max_epochs": 2, "random_state": 0, "accelerator": "cpu", "norm": "batch_norm"}
MIXTURE = partial(MowstClassifier, ["gcn", "sage"], gate="mean")  # choosing a gate takes longer than the training


def name_of(value) -> str:
    return f"{type(value).__module__.partition('.')[0]} {type(value).__name__} {getattr(value, 'dtype', '')}"


MASK = np.arange(8) % 3 == 1  # nodes 1, 4, 7


@pytest.mark.parametrize(
    "mask",
    [
        MASK, MASK.astype(int), MASK.astype(np.uint8), MASK.astype(float), MASK.astype(object), MASK.tolist(),
        MASK.astype(int).tolist(), torch.tensor(MASK), torch.tensor(MASK).int(), torch.tensor(MASK).byte(),
        torch.tensor(MASK).half(), torch.tensor(MASK).float().to_sparse(), pd.Series(MASK),
        pd.Series(MASK, dtype="boolean"), pd.Series(MASK.astype(int), dtype="Int64"), pd.DataFrame({"train": MASK}),
        pl.Series(MASK), pa.array(MASK), MASK[:, None], [1, 4, 7], np.array([7, 1, 4], dtype=np.uint8),
        torch.tensor([4, 1, 7]), pd.Series([1, 4, 7]), range(1, 8, 3),
    ],
    ids=name_of,
)  # fmt: skip
def test_a_mask_of_any_kind_and_node_numbers_mean_the_same_nodes(mask):
    assert read_mask("train_mask", mask, 8).tolist() == MASK.tolist()
    if np.ndim(mask) == 1:
        assert sorted(node_index(mask, 8).tolist()) == [1, 4, 7]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (MASK[:-1].astype(int), r"one entry per node \(8\), got 7 of 0 and 1"),
        (MASK[:-1], r"one entry per node \(8\), got 7"),
        (MASK[:-1].astype(float), r"one entry per node \(8\), got 7"),
        (np.zeros(0, dtype=bool), r"one entry per node \(8\), got 0"),
        (pd.Series(MASK, dtype="boolean").mask(~MASK), "missing value in row 0"),
        ([True, None] * 4, "missing value in row 1"),
        (np.ma.masked_array(MASK, mask=MASK), "missing value in row 1"),
        (np.where(MASK, "train", "test"), "bool per node or a list of node numbers"),
        (np.where(MASK, 1, -1), r"outside 0\.\.7, got -1\.\.1"),
        (MASK.astype(np.uint8) * 255, r"outside 0\.\.7, got 0\.\.255"),
        ([3.0, 5.0], "with 3.0; node numbers are integers"),
        ([3, 3, 5], "node number 3 2 times"),
        (np.arange(8) % 3, "node number 0 3 times"),
        ({1, 4}, "bool per node or a list of node numbers"),
        (np.stack([MASK, ~MASK]), r"one row per node \(8\).*transpose it"),
        (5, "bool per node or a list of node numbers"),
    ],
    ids=str,
)
def test_a_mask_that_could_mean_two_things_or_none_is_refused(mask, message):
    with pytest.raises(DataError, match=f"train_mask .*{message}"):
        read_mask("train_mask", mask, 8)


def test_of_two_nodes_zero_and_one_are_ambiguous_as_a_mask_and_numbers_as_nodes():
    for mask in ([0, 1], [1, 0]):
        with pytest.raises(DataError, match="a mask of 0 and 1, or node numbers"):
            read_mask("train_mask", mask, 2)
        assert node_index(mask, 2).tolist() == mask
    assert read_mask("train_mask", [False, True], 2).tolist() == [False, True]
    assert node_index([0, 1], 3).tolist() == [0, 1]
    assert node_index([], 3).tolist() == []


def test_integer_masks_train_the_same_model_as_bool_masks():
    data = small_graph()
    expected = MowstClassifier("gcn", **QUICK).fit(data)
    for dtype in (torch.int64, torch.float32):
        other = small_graph()
        for name in ("train_mask", "val_mask", "test_mask"):
            other[name] = data[name].to(dtype)
        model = MowstClassifier("gcn", **QUICK).fit(other)
        assert np.array_equal(model.predict_proba(), expected.predict_proba())
        assert model.score(other) == expected.score(data)
    flags = data.test_mask.int().numpy()
    assert np.array_equal(expected.predict(nodes=flags), expected.predict(nodes=data.test_mask))
    with pytest.raises(DataError, match=r"take one column, as in nodes=data.test_mask\[:, 0\]"):
        expected.predict(nodes=np.stack([flags, flags], axis=1))


def test_masks_by_other_names_are_refused_instead_of_training_on_the_test_nodes():
    data = small_graph()
    data.valid_mask = data.val_mask
    del data.val_mask
    with pytest.raises(DataError, match="the graph has valid_mask and no val_mask: data.val_mask = data.valid_mask"):
        GNNClassifier("gcn", **QUICK).fit(data)
    assert as_graph(data, val_mask=data.valid_mask).val_mask.any()
    data.val_mask = data.valid_mask
    assert as_graph(data).val_mask.equal(data.val_mask)


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("kind", [GNNClassifier, MIXTURE], ids=["one", "mixture"])
def test_nodes_that_are_asked_for_twice_get_their_prediction_twice(kind, batch_size):
    data = small_graph()
    model = kind(batch_size=batch_size, **QUICK).fit(data)
    nodes = [5, 5, 17, 1, 5]
    assert np.allclose(model.predict_proba(nodes=nodes), model.predict_proba()[nodes], atol=1e-6)


def splits(data: Data) -> Data:
    """Three splits: the masks change places."""
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask], dim=1)
    for name in ("train_mask", "val_mask", "test_mask"):
        data[name], masks = masks, masks.roll(1, 1)
    return data


@pytest.mark.parametrize("kind", [GNNClassifier, MowstClassifier])
def test_scores_are_those_of_the_split_that_was_fitted_also_after_loading(kind, tmp_path):
    data = splits(small_graph())
    model = kind("gcn", **QUICK).fit(data, split=2)
    test = data.test_mask[:, 2]
    model.save(tmp_path / "model")
    for one in (model, moeapps.load(tmp_path / "model")):
        right = one.predict(data)[test] == data.y[test].numpy()
        assert one.split_ == 2
        assert one.score(data) == pytest.approx(right.mean())
        assert one.evaluate(data) == one.evaluate(data, nodes=test)
        assert one.evaluate(data) != one.evaluate(data, nodes=data.test_mask[:, 0])
        if kind is MowstClassifier:
            assert one.cost_curve(data, thresholds=[0.5])["score"][0] == pytest.approx(right.mean())
    assert model.score(small_graph()) == model.score(small_graph(), nodes=small_graph().test_mask)


def test_a_split_that_no_mask_has_is_refused():
    data, several = small_graph(), splits(small_graph())
    model = GNNClassifier("gcn", **QUICK).fit(several, split=1)
    for split, graph, message in (
        (1, data, "split=1, but no mask has several splits"),
        (3, several, "split=3 is outside the 3 splits of train_mask"),
        (-1, several, "split must be the number of a column"),
        (True, several, "split must be the number of a column"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            GNNClassifier("gcn", **QUICK).fit(graph, split=split)
    fewer = small_graph()
    fewer.test_mask = several.test_mask[:, :1].repeat(1, 2)[:, :2]
    assert model.predict(fewer).shape == (60,)  # a prediction needs no mask
    several.test_mask = None
    one = GNNClassifier("gcn", **QUICK).fit(several, split=2)  # one test mask for all splits
    assert one.score(data) == one.score(data, nodes=data.test_mask)


def test_a_file_that_does_not_know_its_split_refuses_masks_with_several():
    data = splits(small_graph())
    model = GNNClassifier("gcn", **QUICK).fit(data, split=1)
    del model.split_  # as saved by 0.1
    with pytest.raises(DataError, match=r"give nodes=data.test_mask\[:, split\]"):
        model.score(data)
    assert model.score(small_graph()) == model.score(small_graph(), nodes=small_graph().test_mask)


Y = np.array([0, 1, 2, 0, 1, 2])
BIG = [2**62 + 1, 2**62 + 2]  # one float for both
GAP = Y == 2


@pytest.mark.parametrize(
    ("labels", "classes", "dtype"),
    [
        (pd.Series(Y, dtype="Int64").mask(GAP), [0, 1], "i"),
        (pd.Series(Y, dtype="category").mask(GAP), [0, 1], "i"),
        (pd.Series(list("abcabc"), dtype="string").mask(GAP), ["a", "b"], "O"),
        (pd.Series(list("abcabc")).mask(GAP), ["a", "b"], "O"),
        (pd.Series(pd.Categorical(list("abzabz"), categories=list("zyxba"))).mask(GAP), ["a", "b"], "O"),
        (["a", "b", np.nan] * 2, ["a", "b"], "O"),
        (["a", "b", None] * 2, ["a", "b"], "O"),
        (["a", "b", "nan"] * 2, ["a", "b", "nan"], "U"),
        (pd.Series(Y == 1, dtype="boolean").mask(GAP), [False, True], "b"),
        (Y.astype(float), [0, 1, 2], "f"),
        (np.where(GAP, np.nan, Y), [0, 1], "f"),
        (torch.tensor(Y).to(torch.bfloat16), [0, 1, 2], "f"),
        (Y[:, None], [0, 1, 2], "i"),
        (pd.DataFrame({"y": Y}), [0, 1, 2], "i"),
        (pd.Series([*BIG, None] * 2, dtype="Int64"), BIG, "i"),
        ([*BIG, None] * 2, BIG, "i"),
        (pl.Series([*BIG, None] * 2), BIG, "i"),
        (pa.array([*BIG, None] * 2), BIG, "i"),
        (pd.Series([2**63 + 1, 2**63 + 2, None] * 2, dtype="UInt64"), [2**63 + 1, 2**63 + 2], "u"),
        ([Decimal(3), Decimal(4), None] * 2, [3, 4], "i"),
        (np.ma.masked_array(Y, mask=GAP), [0, 1], "i"),
        (np.where(GAP, -1, Y), [0, 1], "i"),
    ],
    ids=lambda value: (
        None if isinstance(value, list | str) else f"{type(value).__name__}-{getattr(value, 'dtype', '')}"
    ),
)
def test_labels_of_any_kind_keep_their_values_and_missing_ones_are_unlabeled(labels, classes, dtype):
    read = as_labels(labels, 6)
    found = class_names(read)
    assert (found.tolist(), found.dtype.kind) == (classes, dtype)
    codes = encode_labels(read, found).tolist()
    assert codes == [0, 1, 2 if len(classes) == 3 else -1] * 2
    again = as_labels(read, 6)
    assert class_names(again).tolist() == classes


def test_bool_labels_are_all_labels():
    assert class_names(as_labels(Y == 1, 6)).tolist() == [False, True]
    assert encode_labels(as_labels(Y == 1, 6), np.array([False, True])).tolist() == [0, 1, 0] * 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, "a", 2, 1, "a", 2], "mixes labels of several kinds: 1 .int. at node 0, 'a' .str. at node 1"),
        (pd.date_range("2020", periods=6), "datetime64.*integers, text or bool"),
        (np.array([b"a", b"b"] * 3), "S1; class labels are integers, text or bool"),
        ([Decimal("0.5"), Decimal(1)] * 3, "kind decimal, at node 0"),
        (Y + 0j, "complex128"),
        (Y + 2.0**60, "beyond 2..53 floats do not hold every whole number"),
        (np.eye(3)[Y], "one label per node, got .6, 3.; of one column per class take the argmax"),
    ],
    ids=str,
)
def test_labels_of_a_kind_that_is_no_class_are_refused(labels, message):
    with pytest.raises(DataError, match=message):
        as_labels(labels, 6)


def test_labels_of_pandas_train_and_come_back():
    data = small_graph()
    y = pd.Series(list("abc") * 20, dtype="string").mask(np.arange(60) > 50)
    model = MowstClassifier("gcn", **QUICK).fit(
        data.x, y, data.edge_index, train_mask=data.train_mask, val_mask=data.val_mask
    )
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert set(model.predict()) <= {"a", "b", "c"}
    assert model.score(data.x, y, data.edge_index) == model.score(data.x, y, data.edge_index, nodes=range(51))
    data.y = pd.Series(data.y.numpy(), dtype="Int64").mask(np.arange(60) > 50)
    assert MowstClassifier("gcn", **QUICK).fit(data).classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", [GNNClassifier, MowstClassifier])
def test_labels_minus_one_and_one_are_refused_with_what_to_do(kind):
    data = small_graph()
    data.y = torch.where(data.y == 1, 1, -1)
    with pytest.raises(DataError, match=r"1 class.*-1 \(below 0\) means unlabeled: if that is a class, encode"):
        kind(**QUICK).fit(data)
    data.y = small_graph().y - 2
    with pytest.raises(DataError, match=r"2 values below 0 \(-2, -1\)"):
        kind(**QUICK).fit(data)


def test_a_class_below_zero_in_the_masks_is_told(caplog):
    data = small_graph()
    data.y = data.y - 1
    GNNClassifier("gcn", **QUICK).fit(data)
    assert "y is -1 (below 0) at 20 of the nodes to use, which means unlabeled" in caplog.text
    caplog.clear()
    data.train_mask, data.val_mask, data.test_mask = (
        data[name] & (data.y >= 0) for name in ("train_mask", "val_mask", "test_mask")
    )
    GNNClassifier("gcn", **QUICK).fit(data)
    assert "below 0" not in caplog.text


def hetero() -> HeteroData:
    data, graph = HeteroData(), small_graph()
    for name in ("x", "y", "train_mask", "val_mask", "test_mask"):
        data["paper"][name] = graph[name]
    data["paper", "cites", "paper"].edge_index = graph.edge_index
    return data


class Graphs(InMemoryDataset):
    def __init__(self):
        super().__init__(None)
        self.data, self.slices = self.collate([small_graph()])


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (hetero(), r"X is a HeteroData.*to_homogeneous\(\)"),
        (Graphs(), r"X is a Graphs of 1 graphs: give one Data, as in dataset\[0\]"),
        ([small_graph(), small_graph()], "X is a list of 2 graphs"),
        (TemporalData(src=torch.arange(3), dst=torch.arange(3), t=torch.arange(3)), "X is a TemporalData"),
    ],
    ids=["HeteroData", "dataset", "list", "TemporalData"],
)
def test_graphs_of_other_kinds_are_refused_in_fit_predict_and_data_module(graph, message):
    model = GNNClassifier("gcn", **QUICK).fit(small_graph())
    for attempt in (MowstClassifier().fit, model.fit, model.predict, model.score, lambda g: GraphDataModule(g).setup()):
        with pytest.raises(DataError, match=message):
            attempt(graph)


def test_what_the_errors_advise_for_other_graphs_works():
    expected = GNNClassifier("gcn", **QUICK).fit(small_graph()).predict()
    assert np.array_equal(GNNClassifier("gcn", **QUICK).fit(hetero().to_homogeneous()).predict(), expected)
    assert np.array_equal(GNNClassifier("gcn", **QUICK).fit(Graphs()[0]).predict(), expected)
    assert GNNClassifier("gcn", **QUICK).fit(Batch.from_data_list([small_graph()] * 2)).predict().shape == (120,)


@pytest.mark.parametrize(
    "x",
    [
        pd.DataFrame({"a": [True, False], "b": pd.array([1, 2], dtype="Int64")}),
        pd.DataFrame({"a": pd.array([1, 0], dtype="boolean"), "b": [Decimal(1), Decimal(2)]}),
        pd.DataFrame({"a": [1.0, 0], "b": [1, 2]}, dtype=object),
        pd.DataFrame({"a": pd.arrays.SparseArray([1.0, 0]), "b": pd.array([1, 2], dtype="int8[pyarrow]")}),
        pl.DataFrame({"a": [True, False], "b": [1, 2]}),
        pa.table({"a": [1.0, 0.0], "b": [1, 2]}),
        sparse.csr_array([[1, 1], [0, 2]]),
        torch.tensor([[1, 1], [0, 2]]).to_sparse(),
        torch.tensor([[1.0, 1], [0, 2]]).to_sparse_csr(),
        np.array([[1, 1.0], [False, 2]], dtype=object),
        [[1, 1], [0, 2]],
    ],
    ids=name_of,
)
def test_features_of_every_container_are_the_same_numbers(x):
    assert as_graph(x).x.tolist() == [[1, 1], [0, 2]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (pd.DataFrame({"a": [1, 2], "c": ["x", "y"]}), "column 'c' of x holds no numbers but text: 'x' in row 0"),
        (pd.DataFrame({"c": ["1", "2"]}), "column 'c' .* text: '1' in row 0"),
        (pd.DataFrame({"c": [1, "?"]}, index=["ann", "bob"]), r"column 'c' .* mixed: '\?' in row 'bob'"),
        (pd.DataFrame({"c": pd.Categorical([1, 2])}), "column 'c' .* category: 1"),
        (pd.DataFrame({"c": pd.to_datetime(["2020", "2021"])}), "column 'c' .* datetime"),
        (pd.DataFrame({"c": pd.to_timedelta([1, 2])}), "column 'c' .* timedelta"),
        (pd.DataFrame({"c": [1j, 2]}), "column 'c' .* complex"),
        (pd.DataFrame({"c": [[1], [2]]}), "column 'c' .* mixed"),
        (pl.DataFrame({"c": ["1", "2"]}), "column 'c' .* text"),
        (pd.DataFrame({"b": [1, 2], "c": pd.array([1, None], dtype="Int64")}), r"first are \[1\] \(columns \['c'\]\)"),
        (pd.DataFrame({"b": [1, 2], "c": [1, 1e39]}), r"infinite features in 1 of 2 nodes.*\['c'\]"),
        (np.ma.masked_array([[1, 2]], mask=[[True, False]]), "NaN or infinite features in 1 of 1 nodes"),
        (np.array([["1", "2"]]), "array of <U1"),
        (np.array([[1, "2"]], dtype=object), "got '2' in row 0, column 1"),
        (np.array([["2020"]], dtype="M8[D]"), "datetime64"),
        (torch.ones(2, 2) * 1j, "complex"),
        ([[1, 2], [3]], "matrix of numbers"),
        (np.array([[{"a": 1}]], dtype=object), "matrix of numbers"),
    ],
    ids=str,
)
def test_features_that_are_no_numbers_name_column_and_row_in_fit_and_predict(x, message):
    with pytest.raises(DataError, match=message):
        as_graph(x)
    with pytest.raises(DataError, match=message):
        GNNClassifier("gcn", **QUICK).fit(x, [0, 1][: len(x)])
    with pytest.raises((DataError, DataTypeError), match=message):
        GNNClassifier("gcn", **QUICK).fit(np.eye(4), [0, 1, 0, 1]).predict(x)


def test_a_graph_without_edges_is_told_when_the_model_was_fitted_with_some():
    data = small_graph()
    model = GNNClassifier("gcn", **QUICK).fit(data)
    with pytest.warns(UserWarning, match=f"no edges, the one that GNNClassifier was fitted on had {data.num_edges}"):
        model.predict(data.x)
    with pytest.warns(UserWarning, match="no edges"):
        model.score(Data(x=data.x, y=data.y))
    assert model.predict(data.x[:1]).shape == (1,)  # one node alone
    assert GNNClassifier("mlp", **QUICK).fit(data).predict(data.x).shape == (60,)  # uses none


def test_labels_and_masks_of_a_graph_to_predict_are_not_looked_at():
    data = small_graph()
    model = GNNClassifier("gcn", **QUICK).fit(data)
    expected = model.predict(data)
    data.y, data.train_mask, data.test_mask = torch.rand(60, 4), torch.rand(7), "none"
    assert np.array_equal(model.predict(data), expected)


def test_columns_in_another_order_than_the_features_are_refused():
    data = small_graph()
    x = pd.DataFrame(data.x.numpy(), index=[f"n{i}" for i in range(60)])
    y = pd.Series(data.y.numpy(), index=x.index)
    mask = pd.Series(data.train_mask.numpy(), index=x.index)
    model = GNNClassifier("gcn", **QUICK).fit(x, y, data.edge_index, train_mask=mask)
    plain = GNNClassifier("gcn", **QUICK).fit(data.x, data.y, data.edge_index, train_mask=data.train_mask)
    assert np.array_equal(model.predict_proba(), plain.predict_proba())
    assert GNNClassifier("gcn", **QUICK).fit(x, y.reset_index(drop=True), data.edge_index).n_iter_ == 2  # has no names
    with pytest.raises(DataError, match=r"index of y has the same entries.*give y.loc\[x.index\]"):
        GNNClassifier("gcn", **QUICK).fit(x, y[::-1], data.edge_index)
    with pytest.raises(DataError, match="index of train_mask has the same entries"):
        GNNClassifier("gcn", **QUICK).fit(x, y, data.edge_index, train_mask=mask[::-1])
    with pytest.raises(DataError, match="index of y has the same entries"):
        model.score(x, y[::-1], data.edge_index)


def test_a_split_or_number_of_nodes_that_contradicts_the_data_is_refused():
    with pytest.raises(ConfigError, match="split=2, but no mask has several splits"):
        GraphDataModule(small_graph(), split=2).setup()
    data = small_graph()
    data.num_nodes = 61
    with pytest.raises(DataError, match="num_nodes=61, and x has 60 rows"):
        as_graph(data)


@pytest.mark.gpu
def test_a_graph_on_another_device_is_the_same_graph():
    data, there = small_graph(), small_graph().to("cuda")
    for kind in (GNNClassifier, MowstClassifier):
        expected, model = kind(**QUICK).fit(data), kind(**QUICK).fit(there)
        assert np.array_equal(model.predict_proba(there), expected.predict_proba(data))
        assert model.score(there, nodes=there.test_mask) == expected.score(data)


@pytest.mark.parametrize("kind", ["integer", "bool"])
def test_labels_with_gaps_can_be_scored_as_they_were_fitted(kind):
    data = small_graph()
    y = np.asarray(data.y).astype(object) if kind == "integer" else (np.asarray(data.y) > 0).astype(object)
    y[[2, 5]] = None
    X, edges = data.x.numpy(), data.edge_index
    model = GNNClassifier("gcn", **QUICK).fit(X, y, edges)
    known = np.array([label is not None for label in y])
    right = (model.predict(X, edges)[known] == y[known]).mean()
    assert model.score(X, y, edges) == pytest.approx(right)


def test_a_node_that_is_not_there_is_named_as_it_stands_in_the_data():
    x = pd.DataFrame(np.eye(4), index=list("abcd"))
    with pytest.raises(DataError, match="names the node 0, which is not in the index"):
        as_graph(x, None, pd.DataFrame({"source": [0], "target": [1]}))
