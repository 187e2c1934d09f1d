"""A graph to predict beside that of the training: features on the same scale, edges with weights or without."""

# N nodes, E edges

import warnings

from torch import Tensor
from torch_geometric.data import Data

from moeapps.core.errors import DataError
from moeapps.graph.features import normalized
from moeapps.graph.inputs import on_disk

__all__ = ["scaled_as_trained", "warn_of_weights"]


def scaled_as_trained(graph: Data) -> None:
    """Normalise the features of a graph for a model whose training data did so; those that are already stay.

    Raises
    ------
    DataError
        If the features are in memory-mapped files, and are not normalised in them.
    """
    if not on_disk(graph):
        graph.x = normalized(graph.x)
    elif float(graph.x[:1000].sum(dim=1).max()) > 1.001:
        raise DataError(
            "the model was trained on features that were scaled to sum to 1 for each node, which would copy those of a "
            "graph in memory-mapped files into memory: write them normalised"
        )


def warn_of_weights(trained: bool | None, weight: Tensor | None, model: str) -> None:
    """Warn of edges to predict with weights where those of the training had none, or without where they had some.

    Parameters
    ----------
    trained : bool or None
        Whether the edges of the training had weights; None where a file of an older version does not say.
    weight : Tensor of shape (E,) or None
        Weights of the edges to predict.
    model : str
        What the warning calls the model.
    """
    given = weight is not None and bool((weight != 1).any())
    if trained is None or given == trained or (weight is not None and not len(weight)):
        return
    told = "weights, those to predict have none: each counts as 1"
    if not trained:
        told = "no weights, those to predict have some, which are used"
    warnings.warn(f"the edges that {model} was fitted on had {told}", UserWarning, stacklevel=5)
