"""Trees and sparse matrices of a loaded estimator: every index is compared with what it points into.

scikit-learn's compiled code follows the indices of a tree's nodes without a look, so a file with other ones could end
the process at the first prediction. Here children have to come after their parent (scikit-learn writes them so), which
also rules out circles, and features have to be those of the estimator that holds the tree.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.ensemble import IsolationForest
from sklearn.ensemble._forest import BaseForest
from sklearn.ensemble._gb import BaseGradientBoosting
from sklearn.ensemble._hist_gradient_boosting.gradient_boosting import BaseHistGradientBoosting
from sklearn.tree import BaseDecisionTree
from sklearn.tree._tree import Tree

from moeapps.core.errors import FileFormatError

__all__ = ["check_loaded", "parts_of"]

_BITSET = 8
"""32-bit words for the 256 categories of a boosting tree's node."""


def check_loaded(estimator: Any) -> None:
    """Refuse an estimator whose trees or sparse matrices contradict themselves.

    Parameters
    ----------
    estimator : object
        What skops has built; everything that it holds is looked at.

    Raises
    ------
    FileFormatError
        Naming what does not fit.
    """
    for part in parts_of(estimator):
        try:
            _check(part)
        except FileFormatError:
            raise
        except Exception as error:  # an attribute that is missing, or of another kind
            raise FileFormatError(
                f"a {type(part).__name__} in it is damaged: {type(error).__name__}: {error}"
            ) from error


def _check(part: Any) -> None:
    if issparse(part):
        part.check_format(full_check=True)
    elif isinstance(part, BaseDecisionTree):
        if "tree_" in vars(part):
            _check_tree(part.tree_, part.n_features_in_)
    elif isinstance(part, IsolationForest) and hasattr(part, "estimators_"):
        raise FileFormatError("an IsolationForest cannot be loaded: it predicts nothing that an expert predicts")
    elif isinstance(part, BaseForest) and "estimators_" in vars(part):
        _check_members(part, list(part.estimators_))
    elif isinstance(part, BaseGradientBoosting) and "estimators_" in vars(part):
        _check_members(part, list(part.estimators_.ravel()))
        rows = np.zeros((1, part.n_features_in_), dtype=np.float32)
        # compiled code adds to as many columns as there are trees in a row
        width = part._raw_predict_init(rows).shape[1]
        leaves = {member.tree_.value.shape[1:] for member in part.estimators_.ravel()}
        _require(part.estimators_.ndim == 2 and part.estimators_.shape[1] == width and leaves == {(1, 1)}, part)
    elif isinstance(part, BaseHistGradientBoosting) and "_predictors" in vars(part):
        _check_boosting(part)


def _require(condition: bool, part: Any) -> None:
    if not condition:
        raise FileFormatError(f"a {type(part).__name__} in it contradicts itself")


def _check_members(ensemble: Any, members: list[Any]) -> None:
    """Trees of an ensemble are asked without another look at the number of columns."""
    features = ensemble.n_features_in_
    for member in members:
        _require(isinstance(member, BaseDecisionTree) and member.n_features_in_ == features, ensemble)
        _check_tree(member.tree_, features)


def _check_tree(tree: Any, features: int) -> None:
    _require(type(tree) is Tree and 0 < tree.node_count <= tree.capacity and tree.n_features == features, tree)
    left, right = tree.children_left, tree.children_right
    inner = left != -1
    own = np.flatnonzero(inner)
    _require_children(own, left[inner], right[inner], tree.node_count, tree)
    feature = tree.feature[inner]
    _require(bool(((feature >= 0) & (feature < features)).all()), tree)
    _require(bool(np.bincount(np.concatenate([left[inner], right[inner]]), minlength=1).max() <= 1), tree)
    depth, level = 0, np.zeros(1, dtype=np.int64)
    while len(level := level[inner[level]]):
        depth, level = depth + 1, np.concatenate([left[level], right[level]])
    _require(depth <= tree.max_depth, tree)  # decision_path makes room for so many


def _require_children(own: NDArray[Any], left: NDArray[Any], right: NDArray[Any], count: int, part: Any) -> None:
    for children in (left, right):
        _require(bool(((children > own) & (children < count)).all()), part)


def _check_boosting(model: Any) -> None:
    features = model.n_features_in_
    _require(not vars(model).get("_in_fit", False), model)
    width = features
    if model._preprocessor is not None:
        width = _encoded_width(model, features)
    categorical = np.asarray(model._bin_mapper.is_categorical_)
    _require(width == features and categorical.shape == (features,), model)
    for predictor in (predictor for iteration in model._predictors for predictor in iteration):
        nodes, bitsets = predictor.nodes, predictor.raw_left_cat_bitsets
        _require(nodes.ndim == 1 and len(nodes) > 0 and bitsets.ndim == 2 and bitsets.shape[1] == _BITSET, predictor)
        inner = nodes["is_leaf"] == 0
        chosen = nodes[inner]
        left, right = chosen["left"].astype(np.int64), chosen["right"].astype(np.int64)
        _require_children(np.flatnonzero(inner), left, right, len(nodes), predictor)
        feature = chosen["feature_idx"].astype(np.int64)
        _require(bool(((feature >= 0) & (feature < features)).all()), predictor)
        sets = chosen["is_categorical"] != 0
        _require(bool((chosen["bitset_idx"][sets] < len(bitsets)).all()), predictor)
        _require(bool(np.asarray(categorical[feature[sets]], dtype=bool).all()), predictor)


def _encoded_width(model: Any, features: int) -> int:
    """Number of columns that a boosting model's own encoder of categories makes, seen by a row of known categories."""
    chosen = np.flatnonzero(np.asarray(model.is_categorical_))
    categories = model._preprocessor.named_transformers_["encoder"].categories_
    _require(len(chosen) == len(categories), model)
    columns = [pd.Series([0.0])] * features
    for position, values in zip(chosen, categories, strict=True):
        columns[position] = pd.Series(values[:1])
    names = getattr(model, "feature_names_in_", range(features))
    row: Any = pd.concat(columns, axis=1, keys=names)
    return int(
        model._preprocess_X(row if hasattr(model, "feature_names_in_") else row.to_numpy(), reset=False).shape[1]
    )


def parts_of(value: Any) -> Iterator[Any]:
    """An object and everything that it holds in attributes, lists, dictionaries and arrays of objects; each once."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, str | bytes | int | float | type | None) or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, list | tuple | set):
            waiting.extend(part)
        elif isinstance(part, np.ndarray):
            waiting.extend(part.ravel().tolist() if part.dtype == object else ())
        elif hasattr(part, "__dict__"):
            waiting.extend(vars(part).values())
