"""Estimators of other packages inside a saved file: what comes back, what is refused, and what a file cannot do."""

import ast
import contextlib
import io
import json
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_classification
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from moeapps import MoEClassifier
from moeapps.core import skops_file
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.foreign import pack_estimator, pack_estimators, unpack_estimator, unpack_estimators
from moeapps.core.loaded_trees import check_loaded

SOURCE = Path("model.safetensors")
X, Y = make_classification(200, 4, random_state=0)
FRAME = pd.DataFrame(X, columns=list("abcd")).assign(city=pd.Categorical(np.where(X[:, 0] > 0, "Ulm", "Bonn")))

ESTIMATORS = {
    "boosting": HistGradientBoostingClassifier(max_iter=5),
    "boosting, regression": HistGradientBoostingRegressor(max_iter=5),
    "forest": RandomForestClassifier(5, random_state=0),
    "forest, regression": RandomForestRegressor(5, random_state=0),
    "extra trees": ExtraTreesClassifier(5, random_state=0),
    "old boosting": GradientBoostingClassifier(n_estimators=5, random_state=0),
    "old boosting from zero": GradientBoostingClassifier(n_estimators=5, init="zero", random_state=0),
    "tree": DecisionTreeClassifier(random_state=0),
    "AdaBoost": AdaBoostClassifier(n_estimators=3, random_state=0),
    "bagging": BaggingClassifier(n_estimators=3, max_features=0.5, random_state=0),
    "logistic regression": LogisticRegression(),
    "SGD": SGDClassifier(loss="log_loss", random_state=0),
    "scaled": make_pipeline(StandardScaler(), LogisticRegression()),
    "imputed": make_pipeline(SimpleImputer(), Ridge()),
    "columns": make_pipeline(
        make_column_transformer((StandardScaler(), [0, 1]), (OneHotEncoder(handle_unknown="ignore"), [2])), SVC()
    ),
    "neighbors": KNeighborsClassifier(algorithm="brute"),
    "network": MLPClassifier((4,), tol=1.0, n_iter_no_change=2, random_state=0),
    "naive Bayes": GaussianNB(),
    "calibrated": CalibratedClassifierCV(LogisticRegression(), cv=2),
    "own": MoEClassifier(num_experts=2, max_epochs=2, random_state=0),
    "own, scaled": make_pipeline(StandardScaler(), "passthrough", MoEClassifier(num_experts=2, max_epochs=1)),
}


def again(estimator, **options):
    return unpack_estimator(*pack_estimator(estimator), SOURCE, **options)


def predictions(estimator, rows):
    return (estimator.predict_proba if hasattr(estimator, "predict_proba") else estimator.predict)(rows)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_predicts_the_same_to_the_bit_after_loading(name):
    fitted = clone(ESTIMATORS[name]).fit(X, Y)
    document, tensors = pack_estimator(fitted)
    document = json.loads(json.dumps(document, allow_nan=False))
    loaded = unpack_estimator(document, tensors, SOURCE)
    assert np.array_equal(predictions(loaded, X), predictions(fitted, X))
    assert type(loaded) is type(fitted)
    assert sorted(loaded.get_params(deep=False)) == sorted(fitted.get_params(deep=False))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_that_is_not_fitted_comes_back_with_its_parameters(name):
    estimator = clone(ESTIMATORS[name])
    assert repr(again(estimator)) == repr(estimator)


def test_boosting_on_categories_of_a_frame_comes_back():
    fitted = HistGradientBoostingClassifier(max_iter=3).fit(FRAME, Y)
    assert np.array_equal(predictions(again(fitted), FRAME), predictions(fitted, FRAME))


def test_equal_estimators_make_equal_bytes():
    first, second = (HistGradientBoostingClassifier(max_iter=3, random_state=0).fit(X, Y) for _ in range(2))
    assert skops_file.dump(first) == skops_file.dump(second)
    assert skops_file.dump(first) == skops_file.dump(again(first))


def test_several_estimators_share_one_set_of_tensors():
    estimators = {"0-linear": LogisticRegression().fit(X, Y), "1-own": clone(ESTIMATORS["own"]).fit(X, Y)}
    documents, tensors = pack_estimators(estimators)
    assert all(name.startswith(("nested.0-linear.", "nested.1-own.")) for name in tensors)
    loaded = unpack_estimators(documents, {**tensors, "own.weight": torch.zeros(1)}, SOURCE)
    for name, estimator in estimators.items():
        assert np.array_equal(predictions(loaded[name], X), predictions(estimator, X))
    with pytest.raises(FileFormatError, match="belongs to no estimator"):
        unpack_estimators(documents, {**tensors, "nested.2-x.skops": torch.zeros(1)}, SOURCE)


# ---------------------------------------------------------------------- what is not trusted


def test_lightgbm_loads_once_its_types_are_named():
    lightgbm = pytest.importorskip("lightgbm")
    fitted = lightgbm.LGBMClassifier(n_estimators=3, verbose=-1).fit(X, Y)
    with pytest.warns(UserWarning, match=r"expert 'lgbm' \(LGBMClassifier\) will load only with moeapps.load"):
        documents, tensors = pack_estimators({"0-lgbm": fitted})
    with pytest.raises(FileFormatError, match="expert 'lgbm' holds types that are not trusted") as caught:
        unpack_estimators(documents, tensors, SOURCE)
    assert "\n" not in str(caught.value)
    trusted = ast.literal_eval(str(caught.value).partition("trusted=")[2].removesuffix(")"))
    parts = {"skops": tensors["nested.0-lgbm.skops"]}
    loaded = unpack_estimator(documents["0-lgbm"], parts, SOURCE, trusted)
    assert np.array_equal(predictions(loaded, X), predictions(fitted, X))
    assert "lightgbm.sklearn.LGBMClassifier" in trusted


def test_types_may_be_named_as_types():
    fitted = KNeighborsClassifier(algorithm="kd_tree").fit(X, Y)
    with pytest.warns(UserWarning, match="KDTree"):
        packed = pack_estimator(fitted)
    tree = fitted._tree
    with pytest.raises(FileFormatError, match="EuclideanDistance64"):
        unpack_estimator(*packed, SOURCE, [type(tree)])
    loaded = unpack_estimator(*packed, SOURCE, [type(tree), "sklearn.metrics._dist_metrics.EuclideanDistance64"])
    assert np.array_equal(predictions(loaded, X), predictions(fitted, X))


def test_a_function_of_a_script_is_refused_when_it_is_saved():
    pipeline = make_pipeline(FunctionTransformer(lambda rows: rows), LogisticRegression()).fit(X, Y)
    with pytest.raises(ConfigError, match=r"functiontransformer.*<lambda>.*Put it into a module"):
        pack_estimator(pipeline)


def test_an_own_estimator_inside_a_foreign_one_is_refused_when_it_is_saved():
    with pytest.raises(ConfigError, match="a VotingClassifier that holds a MoEClassifier"):
        pack_estimator(VotingClassifier([("own", MoEClassifier())]))


def test_a_cache_of_pickles_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="memory"):
        pack_estimator(make_pipeline(StandardScaler(), Ridge(), memory=str(tmp_path)))
    voting = VotingClassifier([("a", make_pipeline(StandardScaler(), LogisticRegression(), memory=str(tmp_path)))])
    with pytest.raises(ConfigError, match="memory"):
        pack_estimator(voting)
    content = skops_file.dump(voting)  # as someone else may write it
    with pytest.raises(FileFormatError, match="memory"):
        unpack_estimator({"kind": "foreign"}, {"skops": torch.tensor(list(content), dtype=torch.uint8)}, SOURCE)


def test_without_skops_saving_and_loading_say_what_to_install(monkeypatch):
    packed = pack_estimator(LogisticRegression())
    own = pack_estimator(make_pipeline(clone(ESTIMATORS["own"]).fit(X, Y)))
    monkeypatch.setitem(sys.modules, "skops.io", None)
    monkeypatch.setitem(sys.modules, "skops", None)
    with pytest.raises(ConfigError, match=r'expert.*LogisticRegression.*pip install "moeapps\[skops\]"'):
        pack_estimators({"0-linear": LogisticRegression()})
    with pytest.raises(ImportError, match=r'pip install "moeapps\[skops\]"'):
        unpack_estimator(*packed, SOURCE)
    assert len(unpack_estimator(*own, SOURCE).predict(X)) == len(X)  # own ones need no skops


class Trap(ClassifierMixin, BaseEstimator):
    """Leaves a trace when it is restored."""

    sprung = False

    def __setstate__(self, state):
        Trap.sprung = True


def test_a_type_that_is_not_trusted_is_never_restored():
    estimator = VotingClassifier([("trap", Trap())])
    with pytest.warns(UserWarning, match="Trap"):
        packed = pack_estimator(estimator)
    with pytest.raises(FileFormatError, match="Trap"):
        unpack_estimator(*packed, SOURCE)
    assert not Trap.sprung


# ---------------------------------------------------------------------- what a file cannot do


def edited(content, change):
    """The archive with another schema; ``change`` gets the schema and the entries."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    schema = json.loads(parts.pop("schema.json"))
    change(schema, parts)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
        archive.writestr("schema.json", json.dumps(schema))
    return buffer.getvalue()


def nodes(schema, **wanted):
    return [n for n in skops_file._nodes(schema) if all(n.get(f"__{key}__") == value for key, value in wanted.items())]


def refused(content, message):
    with pytest.raises(FileFormatError, match=message):
        unpack_estimator(
            {"kind": "foreign"}, {"skops": torch.frombuffer(bytearray(content), dtype=torch.uint8)}, SOURCE
        )


def test_a_bomb_is_refused_by_its_size():
    content = skops_file.dump(LogisticRegression().fit(X, Y))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.npy", bytes(50_000_000))
        archive.writestr("schema.json", zipfile.ZipFile(io.BytesIO(content)).read("schema.json"))
    refused(bomb.getvalue(), "compressed")

    def huge(schema, parts):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
        parts["0.npy"] = stream.getvalue()

    refused(edited(content, huge), "announces")

    def again_and_again(schema, parts):
        node = next(n for n in nodes(schema, loader="NdArrayNode") if "file" in n)
        parts[node["file"]] = parts[node["file"]] + bytes(100_000)
        schema["extra"] = [dict(node) for _ in range(1000)]

    refused(edited(content, again_and_again), "again and again")


def test_numbers_of_objects_are_refused():
    content = skops_file.dump(LogisticRegression().fit(X, Y))
    refused(edited(content, lambda schema, parts: schema.update(__id__=1)), "numbers objects")


@pytest.mark.parametrize("field", ["left_child", "right_child", "feature"])
@pytest.mark.parametrize("number", [10**6, -2, 0])
def test_a_node_that_points_outside_its_tree_is_refused(field, number):
    if (field, number) == ("feature", 0):
        pytest.skip("the first feature is one")
    forest = RandomForestClassifier(2, random_state=0).fit(X, Y)
    content = skops_file.dump(forest)

    def change(schema, parts):
        tree = nodes(schema, loader="TreeNode")[1]
        file = tree["content"]["content"]["nodes"]["file"]
        array = np.load(io.BytesIO(parts[file]))
        array[field][0] = number
        stream = io.BytesIO()
        np.save(stream, array)
        parts[file] = stream.getvalue()

    refused(edited(content, change), "contradicts itself")


@pytest.mark.parametrize(("field", "number"), [("left", 10**6), ("right", 0), ("feature_idx", 99), ("bitset_idx", 7)])
def test_a_node_of_boosting_that_points_outside_is_refused(field, number):
    model = HistGradientBoostingClassifier(max_iter=2).fit(FRAME[["city"]], FRAME["city"])
    nodes_ = model._predictors[0][0].nodes
    assert nodes_["is_categorical"][0]
    nodes_[field][0] = number
    refused(skops_file.dump(model), "contradicts itself")


def test_a_forest_of_trees_for_another_number_of_columns_is_refused():
    forest = RandomForestClassifier(2, random_state=0).fit(X, Y)
    forest.n_features_in_ = 2
    refused(skops_file.dump(forest), "contradicts itself")
    boosting = GradientBoostingClassifier(n_estimators=2).fit(X, np.arange(len(Y)) % 3)
    boosting.estimators_ = np.tile(boosting.estimators_, (1, 4))  # compiled code would write beyond the result
    refused(skops_file.dump(boosting), "contradicts itself")


def test_a_tree_of_more_outputs_than_it_has_classes_for_is_refused():
    content = skops_file.dump(DecisionTreeClassifier().fit(X, Y))

    def change(schema, parts):
        nodes(schema, loader="TreeNode")[0]["__reduce__"]["args"]["content"][2]["content"] = "1000000000"

    refused(edited(content, change), "number of outputs")


def test_sparse_matrices_are_checked():
    neighbors = KNeighborsClassifier(algorithm="brute").fit(csr_matrix(X), Y)
    check_loaded(neighbors)
    neighbors._fit_X.indices[0] = 1000
    with pytest.raises(FileFormatError, match="csr"):
        check_loaded(neighbors)


@pytest.mark.parametrize("name", ["boosting", "forest", "columns"])
def test_whatever_is_flipped_cut_or_edited_is_refused_or_predicts(name):
    rng = np.random.default_rng(0)
    fitted = clone(ESTIMATORS[name]).fit(X, Y)
    document, tensors = pack_estimator(fitted)
    parts = sorted(tensors)
    outcomes = set()
    for _ in range(40):
        changed = dict(tensors)
        part = parts[rng.integers(len(parts))]
        content = bytearray(changed[part].numpy().tobytes())
        if rng.random() < 0.2:
            content = content[: rng.integers(len(content))]
        for _ in range(rng.integers(1, 20)):
            if content:
                content[rng.integers(len(content))] = rng.integers(256)
        changed[part] = torch.frombuffer(content or bytearray(1), dtype=torch.uint8)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                loaded = unpack_estimator(document, changed, SOURCE)
            except FileFormatError as error:
                outcomes.add("refused" if str(error).startswith(str(SOURCE)) else "without the name of the file")
            else:
                outcomes.add("loaded")
                with contextlib.suppress(Exception):  # an error of Python, and never the end of the process
                    loaded.predict(X)
    assert "refused" in outcomes
    assert outcomes <= {"refused", "loaded"}


@pytest.mark.parametrize(
    "document",
    [
        None, [], {}, {"kind": "x"}, {"kind": "plain", "value": 1}, {"kind": "own"}, {"kind": "foreign"},
        {"kind": "own", "class": "os.system", "arguments": {}, "state": {}},
        {"kind": "unfitted", "class": "os.system", "arguments": {}, "state": {}},
        {"kind": "unfitted", "class": "moeapps.tables.MoEClassifier", "arguments": {"x": 1}, "state": {}},
        {"kind": "pipeline"}, {"kind": "pipeline", "steps": [[1, 2]]}, {"kind": "pipeline", "steps": [["a", {}]]},
        {"kind": "pipeline", "steps": [], "transform_input": 3},
    ],
)  # fmt: skip
def test_a_malformed_document_is_refused(document):
    with pytest.raises(FileFormatError):
        unpack_estimator(document, {}, SOURCE)
    with pytest.raises(FileFormatError):
        unpack_estimator(document, {"a.b": torch.zeros(3), "skops": torch.zeros(3)}, SOURCE)
