"""Base of the rankers: scikit-learn's interface, a frame in, a frame with a column per task out."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import nn

from moeapps.core.callbacks import seed_everything
from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.config import as_arguments, config_from
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.estimator import LightningEstimator
from moeapps.core.labels import probability_columns
from moeapps.core.search import Distribution
from moeapps.core.tabledata.checking import CheckMixin
from moeapps.core.tabledata.drift import DataCheck
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.core.tabledata.source import Table
from moeapps.recsys.catalogue import ItemCatalogue
from moeapps.recsys.data import EVALUATION_ROWS, RankingData
from moeapps.recsys.encoder import TableEncoder
from moeapps.recsys.implicit import INTERACTION, ImplicitFeedback
from moeapps.recsys.implicit_data import ImplicitData
from moeapps.recsys.metrics import number_table, task_table
from moeapps.recsys.module import RankingModule
from moeapps.recsys.network import RankingConfig, SequenceNetwork
from moeapps.recsys.recommender import RecommendMixin
from moeapps.recsys.schema import Schema
from moeapps.recsys.search_space import RANKING_SEARCH
from moeapps.recsys.targets import Targets

__all__ = ["Ranker"]

CATALOGUE = "catalogue."
"""How the names of the catalogue's arrays begin in a saved file."""


class Ranker(CheckMixin, RecommendMixin, LightningEstimator):
    """Schema, encoder, targets, training, prediction and saving of both rankers."""

    _search_space: ClassVar[Mapping[str, Distribution]] = RANKING_SEARCH

    model: str
    schema: Schema | None
    column_types: Mapping[str, ColumnKind] | None
    missing_values: Literal["auto"] | Sequence[str]
    ignore_columns: Sequence[str] | None
    embedding_dim: int
    batch_size: int
    validation_fraction: float
    weight_decay: float
    encoder_: TableEncoder
    targets_: Targets
    catalogue_: ItemCatalogue | None = None
    _saved_attributes: tuple[str, ...] = ("n_iter_",)

    models: ClassVar[Collection[str]]
    """What ``model`` may be."""

    def _module(self, **changes: Any) -> RankingModule:
        """The module of this ranker's arguments, with some of them changed."""
        check_one_of("model", self.model, self.models)
        config = config_from(RankingConfig, self, **changes)
        # Checkpoints hold plain dictionaries and lists, and users may give other mappings and sequences
        return RankingModule.from_config(config=RankingConfig(**_plain(as_arguments(config))))

    def _choose(self, data: RankingData | ImplicitData) -> None:
        """Choose what the data decide, before there is a network."""

    def _monitor(self, data: RankingData | ImplicitData) -> tuple[str, Literal["min", "max"]]:
        """Logged metric to select the epoch by, and whether lower or higher is better."""
        return "val/loss", "min"

    def _build_model(self) -> nn.Module:
        module = self._module()
        module.attach(self.encoder_, self.targets_)
        return module.network

    def _fit(
        self,
        frame: Table | ImplicitFeedback,
        targets: Sequence[str],
        ignored: Sequence[str],
        kinds: Any,
        validation: Table | ImplicitFeedback | None,
    ) -> None:
        check_sizes(embedding_dim=self.embedding_dim)
        if self.schema is not None and not isinstance(self.schema, Schema):
            raise ConfigError(f"schema must be a Schema or None, got {type(self.schema).__name__}")
        ignored = list(dict.fromkeys([*ignored, *(self.ignore_columns or ())]))
        seed = self._seed()  # one seed for validation rows, weights, order and noise
        if isinstance(frame, ImplicitFeedback):
            data: Any = self._implicit_data(frame, targets, ignored, validation, seed)
        else:
            data = self._table_data(frame, targets, ignored, kinds, validation, seed)
        self._module()  # refuse impossible settings before anything is read
        try:
            data.setup("fit")
            self._choose(data)
            module = self._module()
            # Lightning finds the network attached, so that its weights do not depend on what the trainer draws first
            with isolate_rng():
                seed_everything(seed)
                module.attach_data(data)
            validate = data.has_validation
            monitor, mode = self._monitor(data)
            self.history_ = self._train(
                module, data, seed, monitor=monitor if validate else None, mode=mode, validate=validate
            )
        finally:
            data.teardown("fit")
        self.encoder_, self.targets_ = data.encoder, data.targets
        self.catalogue_ = getattr(data, "catalogue", None)
        self.n_iter_ = len(self.history_)
        self.model_ = module.network.eval()

    def _table_data(
        self,
        frame: Table,
        targets: Sequence[str],
        ignored: Sequence[str],
        kinds: Any,
        validation: Any,
        seed: int,
    ) -> RankingData:
        frame = as_frame(frame) if is_table(frame) else frame
        if isinstance(frame, pd.DataFrame) and len(frame) == 0:
            raise DataError("frame must be a pandas DataFrame with at least one row")
        if isinstance(validation, ImplicitFeedback):
            raise ConfigError("validation is implicit feedback and the rows to learn from are a table: give two of one")
        return RankingData(
            frame,
            validation,
            targets=targets,
            ignored=ignored,
            kinds=None if kinds is None else dict(kinds),
            time=getattr(self, "time", None),
            **self._reading(seed),
        )

    def _implicit_data(
        self, feedback: ImplicitFeedback, targets: Sequence[str], ignored: Sequence[str], validation: Any, seed: int
    ) -> ImplicitData:
        if list(targets) not in ([], [INTERACTION]):
            raise ConfigError(f"the target of implicit feedback is {INTERACTION!r}, got targets={list(targets)}")
        if ignored:
            raise ConfigError(
                "ignored and ignore_columns have no effect on implicit feedback, which has the columns of users and "
                "items"
            )
        if validation is not None and not isinstance(validation, ImplicitFeedback):
            raise ConfigError("validation must be ImplicitFeedback too: a part of leave_last_out() or time_split()")
        return ImplicitData(feedback, validation, **self._reading(seed))

    def _reading(self, seed: int) -> dict[str, Any]:
        """Arguments that both kinds of data have."""
        return {
            "schema": self.schema,
            "column_types": None if self.column_types is None else dict(self.column_types),
            "missing_values": "auto" if self.missing_values == "auto" else list(self.missing_values),
            "batch_size": self.batch_size,
            "validation_fraction": self.validation_fraction,
            "seed": seed,
        }

    @classmethod
    def from_module(cls, module: RankingModule) -> "Ranker":
        """See :meth:`LightningEstimator.from_module`; it is of the class that has the module's model."""
        (kind,) = (kind for kind in Ranker.__subclasses__() if module.config.model in kind.models)
        ranker = kind._with_settings(as_arguments(module.config))
        ranker.encoder_, ranker.targets_, ranker.catalogue_ = module.encoder, module.targets, module.catalogue
        ranker.model_ = module.network.cpu().eval()
        return ranker

    @torch.no_grad()
    def _outputs(self, frame: pd.DataFrame) -> NDArray[Any]:
        check_is_fitted(self, "model_")
        rows = self.encoder_.transform(as_frame(frame))
        # In parts: the experts' hidden layers need far more memory than the rows
        parts = [self.model_(rows.at(slice(i, i + EVALUATION_ROWS))) for i in range(0, len(rows), EVALUATION_ROWS)]
        return self._finite(torch.cat(parts).numpy()) if parts else np.zeros((0, len(self.targets_.names)))

    def predict_proba(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Probabilities for binary targets, numbers for the others.

        Parameters
        ----------
        frame : DataFrame
            Rows with the features of the schema; targets and ignored columns may be there, too.

        Returns
        -------
        DataFrame
            One column per target, with the index of the frame.

        Raises
        ------
        DataError
            If a column is missing or unknown, or its values are of another kind; the message names it.
        """
        frame = as_frame(frame)
        outputs = self._outputs(frame)
        return pd.DataFrame(self.targets_.decode(outputs), columns=self.targets_.names, index=frame.index)

    def missing_texts(self) -> frozenset[str]:
        """Texts that mean a missing value in a table's cells."""
        return self.encoder_.missing

    @property
    def columns_(self) -> pd.DataFrame:
        """How each column is used: a row per column, with its kind (number, category, time, list; id: unused) and why.

        Also how many categories it has, how many cells were missing in training, and which texts meant that.
        """
        check_is_fitted(self, "model_")
        return self.encoder_.summary()

    def _profiles(self) -> list[ColumnProfile]:
        check_is_fitted(self, "model_")
        return self.encoder_.profile()

    def output_columns(self) -> dict[str, str]:
        """Names of the columns that a file or an answer has of binary targets: a probability is not called a label."""
        binary = [name for name in self.targets_.names if self.targets_.kinds[name] == "binary"]
        return dict(zip(binary, probability_columns(binary), strict=True))

    def unused_columns(self) -> list[str]:
        """Ids and ignored columns: ``predict`` takes frames with and without them."""
        return list(self.encoder_.schema.ignored)

    def check(self, X: Table) -> DataCheck:
        """Compare rows with those of training; see :meth:`~moeapps.MoEClassifier.check`. Lists are not compared.

        Parameters
        ----------
        X : DataFrame or path
            Rows. They may have the targets and lists.
        """
        found = super().check(X)
        known = {*self.targets_.names, *(sequence.name for sequence in self.encoder_.schema.sequences)}
        return replace(found, extra=tuple(name for name in found.extra if name not in known))

    def column_kinds(self) -> dict[str, ColumnKind]:
        """Columns of the table and what they are, for :func:`moeapps.core.predict_file`."""
        check_is_fitted(self, "model_")
        return self.encoder_.column_kinds()

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The more probable class for binary targets, numbers for the others.

        Parameters
        ----------
        frame : DataFrame
            As in :meth:`predict_proba`.

        Returns
        -------
        DataFrame
            One column per target, with the index of the frame.
        """
        predictions = self.predict_proba(frame)
        for name in self.targets_.names:
            if self.targets_.kinds[name] == "binary":
                values = np.array(self.targets_.classes.get(name, [0, 1]))
                predictions[name] = values[(predictions[name] > 0.5).to_numpy().astype(int)]
        return predictions

    def evaluate(
        self, frame: pd.DataFrame, group: ArrayLike | None = None, slices: Mapping[str, ArrayLike] | None = None
    ) -> pd.DataFrame:
        """AUC, log loss, calibration and, with users, GAUC and NDCG@10 of binary targets, R2 and MAE of the others.

        Parameters
        ----------
        frame : DataFrame
            Rows with features and targets.
        group : array of shape (N,), optional
            User of each row.
        slices : dict, optional
            Name to a mask ``(N,)`` of rows, which are measured separately, too.

        Returns
        -------
        DataFrame
            One row per task and slice; see :func:`~moeapps.recsys.task_table` and, of targets that are numbers,
            :func:`~moeapps.recsys.metrics.number_table`. Metrics that a task does not have are NaN.
        """
        frame = as_frame(frame)
        predicted = self.predict_proba(frame).reset_index(drop=True)
        binary = list(self.output_columns())
        numbers = [name for name in self.targets_.names if name not in binary]
        truth = pd.DataFrame(self.targets_.encode(frame), columns=self.targets_.names, dtype=np.float64)
        for t, name in enumerate(self.targets_.names):
            truth[name] = truth[name] * self.targets_.scale[t] + self.targets_.mean[t]
        tables = [task_table(truth[binary], predicted[binary], group, slices)] if binary else []
        tables += [number_table(truth[numbers], predicted[numbers], slices)] if numbers else []
        return pd.concat(tables, ignore_index=True)

    def rank(
        self,
        user: Mapping[str, Any],
        items: pd.DataFrame,
        n: int = 10,
        by: str | None = None,
    ) -> pd.DataFrame:
        """The n best items for a user.

        Parameters
        ----------
        user : dict
            The features that all candidates share.
        items : DataFrame
            One row per candidate, with the other features.
        n : int, default=10
            Number of items.
        by : str, optional
            Target to rank by; the first one by default.

        Returns
        -------
        DataFrame
            Rows of ``items``, highest score first, with a column ``score``.

        Raises
        ------
        ConfigError
            If ``user`` is no dict, ``by`` is no target or ``n`` is below 1.
        DataError
            If a feature is both in ``user`` and a column of ``items``, or as in :meth:`predict_proba`.
        """
        check_is_fitted(self, "model_")
        check_sizes(n=n)
        if not isinstance(user, Mapping | pd.Series):
            hint = ": give one row, as in frame.iloc[0]" if isinstance(user, pd.DataFrame) else ""
            raise ConfigError(f"user must be a dict of the features of one user, got {type(user).__name__}{hint}")
        by = self.targets_.names[0] if by is None else by
        check_one_of("by", by, self.targets_.names)
        items = as_frame(items, "items")
        joint = items.copy()
        for name, value in user.items():
            if name in items.columns:
                raise DataError(f"{name!r} is a feature of the user and a column of the items")
            # As objects first: a history is one list per row, which a frame would spread over rows
            joint[name] = pd.Series([value] * len(items), index=items.index, dtype=object)
        score = self.predict_proba(joint.infer_objects())[by].to_numpy()
        best = np.argsort(-score, kind="stable")[:n]
        return items.iloc[best].assign(score=score[best])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle of a version in which some arguments did not exist."""
        added = {"column_types": None, "missing_values": "auto", "ignore_columns": None, "sparse_optimizer": "adagrad"}
        super().__setstate__({**added, "embedding_decay": 0.0, **state})

    def _savable(self, params: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments, the schema as JSON values."""
        arguments = dict(super()._savable(params))
        if arguments["schema"] is not None:
            arguments["schema"] = arguments["schema"].to_json()
        if arguments["column_types"] is not None:
            arguments["column_types"] = dict(arguments["column_types"])
        if not isinstance(arguments["missing_values"], str):
            arguments["missing_values"] = list(arguments["missing_values"])
        if arguments["ignore_columns"] is not None:
            arguments["ignore_columns"] = list(arguments["ignore_columns"])
        return arguments

    @classmethod
    def _from_savable(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments.get("schema") is not None:
            arguments = {**arguments, "schema": Schema.from_json(arguments["schema"])}
        return arguments

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes, encoder, targets and the catalogue's items."""
        state = {**super().saved_state(), "encoder_": self.encoder_.state(), "targets_": self.targets_.state()}
        if self.catalogue_ is not None:
            state["catalogue_"] = self.catalogue_.state()
        return state

    def saved_tensors(self) -> dict[str, torch.Tensor]:
        """Weights of the network, and the catalogue's arrays."""
        arrays = {} if self.catalogue_ is None else self.catalogue_.tensors()
        return {**super().saved_tensors(), **{CATALOGUE + name: tensor for name, tensor in arrays.items()}}

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, torch.Tensor], source: Path
    ) -> Self:
        """As every estimator; then the catalogue, of a ranker that learned from implicit feedback."""
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(CATALOGUE)}
        ranker = super().from_saved(arguments, state, weights, source)
        if "catalogue_" in state:
            arrays = {name.removeprefix(CATALOGUE): t for name, t in tensors.items() if name.startswith(CATALOGUE)}
            ranker.catalogue_ = ItemCatalogue.from_state(state["catalogue_"], arrays, ranker.encoder_)
            if isinstance(ranker.model_, SequenceNetwork):
                ranker.model_.learn_neighbours(ranker.catalogue_, ranker.encoder_)
        return ranker

    def _restore(self, state: dict[str, Any]) -> None:
        self.encoder_ = TableEncoder.from_state(state["encoder_"])
        self.targets_ = Targets.from_state(state["targets_"])
        super()._restore(state)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
