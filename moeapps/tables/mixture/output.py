"""What a mixture did, for others to show: a table of predictions with weights, and the views of a report."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from moeapps.core.files import atomic_write
from moeapps.core.tabledata.scoring import label_columns, number_columns
from moeapps.core.views import Curves, Map, Views
from moeapps.tables.mixture.regions import REGION_DEPTH, find_regions

if TYPE_CHECKING:
    from moeapps.core.mixing import Cascade, CascadeAnswer, GatedMixture

__all__ = ["MixtureOutput"]

_NOT_ASKED = 0.01
"""Mean weight below which an expert is named as one that the mixture could do without."""


class MixtureOutput:
    """Methods that return and save a mixture's predictions with the weights behind them."""

    task: Any
    inference: Any
    expert_names_: list[str]
    experts_: list[Any]
    mixture_: "GatedMixture"
    cascade_: "Cascade | None"
    costs_: pd.Series
    classes_: Any
    _answers: Any
    _decode_target: Any
    cost_curve: Any
    score: Any

    def predict_table(self, X: Any) -> pd.DataFrame:
        """Predictions with the weights behind them; the experts run once.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows.

        Returns
        -------
        DataFrame
            ``prediction`` and ``probability_<class>`` (regression: ``prediction``, or ``prediction_0``, ... for
            several targets), ``weight_<expert>`` and, with ``inference="cascade"``, ``asked_<expert>``.
        """
        answer = self._answers(X)
        index = X.index if isinstance(X, pd.DataFrame) else None
        if self.task == "classification":
            predictions = label_columns(self.classes_, answer.mixed, index)
        else:
            predictions = number_columns(self._decode_target(answer.mixed), index)
        parts = {"weight": answer.weights, **({"asked": answer.asked} if self.inference == "cascade" else {})}
        columns = {
            f"{what}_{name}": values[:, e]
            for what, values in parts.items()
            for e, name in enumerate(self.expert_names_)
        }
        return pd.concat([predictions, pd.DataFrame(columns, index=index)], axis=1)

    def views(self, X: Any, y: Any) -> Views:
        """Maps and curves for ``moeapps report``: load per expert, candidates, regions, cost against score.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows that the mixture was not fitted on.
        y : array of shape (n,) or (n, T)
            Their targets.
        """
        check_is_fitted(self, "mixture_")
        return _make_views(self, X, y, self._answers(X))

    def save_run(self, folder: str | os.PathLike[str], X: Any, y: Any) -> Path:
        """Write a run folder for ``moeapps report``.

        Parameters
        ----------
        folder : str or path
            Where to; it is made if it does not exist.
        X : DataFrame or array of shape (n, P)
            Rows that the mixture was not fitted on.
        y : array of shape (n,) or (n, T)
            Their targets.

        Returns
        -------
        Path
            The folder.
        """
        views = self.views(X, y)
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        views.save(path)
        facts = {
            "model": type(self).__name__,
            "experts": ", ".join(self.expert_names_),
            "gate": self.mixture_.name,
            "rows of this report": f"{len(y):,}",
        }
        score = {"name": "accuracy" if self.task == "classification" else "R2", "values": [float(self.score(X, y))]}
        with atomic_write(path / "run.json") as file:
            file.write(json.dumps({"name": type(self).__name__, "facts": facts, "scores": [score]}).encode())
        return path


def _make_views(mixture: Any, X: Any, y: Any, answer: "CascadeAnswer") -> Views:
    """Views of a mixture, from what it answered for rows and their targets."""
    names, weights, asked = mixture.expert_names_, answer.weights, answer.asked
    lead = np.bincount(weights.argmax(axis=1), minlength=len(names)) / max(len(weights), 1)
    load = pd.DataFrame(
        {
            "mean weight": weights.mean(axis=0),
            "share of rows it leads": lead,
            "share of rows asked": asked.mean(axis=0),
            "part of the cost": (mixture.costs_ / mixture.costs_.sum()).to_numpy(),
        },
        index=names,
    )
    maps = [Map.of("load of the experts", load, "expert", "")]
    if len(candidates := mixture.mixture_.candidates):
        numbers = candidates.set_index("candidate").select_dtypes("number")
        shown = [f"{name} (chosen)" if name == mixture.mixture_.name else str(name) for name in numbers.index]
        maps.append(Map.of("gates that competed", numbers.set_axis(shown), "candidate", ""))
    table = mixture._table(X, reset=False)
    regions = find_regions(mixture.gate_features_, table, weights, names, {}, REGION_DEPTH)
    weight = regions.set_index("where")[[f"weight {name}" for name in names]].set_axis(names, axis=1)
    maps.append(Map.of("mean weight of experts by region", weight, "where"))
    curves = []
    if mixture.cascade_ is not None:
        curve = mixture.cost_curve(X, y).sort_values("cost")
        measure = "accuracy" if mixture.task == "classification" else "r2"
        title = "cost of the cascade against its score"
        lines = {measure: curve[measure]}
        curves.append(Curves.of(title, curve["cost"].tolist(), lines, "cost, as a fraction of asking all", measure))
    return Views(maps, curves, _hints(names, weights))


def _hints(names: list[str], weights: Any) -> list[str]:
    light = [name for name, mean in zip(names, weights.mean(axis=0), strict=True) if mean < _NOT_ASKED]
    if not light or len(names) < 2:
        return []
    which = f"expert{'s' * (len(light) > 1)} {', '.join(light)}"
    return [f"{which} had less than {_NOT_ASKED:.0%} of the weight: the mixture predicts nearly the same without"]
