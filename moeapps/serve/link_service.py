"""The service of models of links: pairs of nodes, of a graph that the server holds or that the request brings."""

import warnings
from typing import Any

import numpy as np
import pandas as pd

from moeapps.serve.graph_service import GraphService
from moeapps.serve.service import Request, object_array, records

__all__ = ["LinkService"]


class LinkService(GraphService):
    """Predictors of links; a request has pairs of ids, or of node numbers where the model was not fitted on tables."""

    kind = "links"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model reads a graph, and predicts pairs with the weights of its experts."""
        return hasattr(model, "read_graph") and hasattr(model, "predict_table")

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """For each pair both nodes, the probability that they are linked, and the weights of the experts."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if "x" in request:
                pairs: Any = np.array(request["pairs"], dtype=np.int64)
                x = np.array(request["x"], dtype=np.float32)
                edges, weights = self.numbered_edges(request["edges"])
                return records(self.model.predict_table(pairs, x, edges, **weights))
            ends, names = zip(*request["pairs"], strict=True), self.columns_of_edges()[:2]
            frame = pd.DataFrame({name: object_array(list(end)) for name, end in zip(names, ends, strict=True)})
            return records(self.model.predict_table(frame, *self.tables(request)))
