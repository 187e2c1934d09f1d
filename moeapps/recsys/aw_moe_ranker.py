"""Rank a candidate for a user with a history, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor

from moeapps.core.config import store_arguments
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.source import Table
from moeapps.moved import warn_deprecated
from moeapps.recsys.data import RankingData
from moeapps.recsys.implicit import ImplicitFeedback
from moeapps.recsys.implicit_data import ImplicitData
from moeapps.recsys.metrics import gauc
from moeapps.recsys.module import RankingModule
from moeapps.recsys.network import SEQUENCE_MODELS, settings_of_0_1
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import Schema

__all__ = ["AWMoERanker"]

LONG = 10
"""Mean length of a history from which ``history_encoder="auto"`` encodes it: with two or three entries on average it
gained nothing on validation parts, with dozens it did."""


class AWMoERanker(Ranker):
    """One binary target for a user with a history: AW-MoE (ICDE 2023), DIN (KDD 2018) or SASRec (ICDM 2018).

    The history is the schema's first :class:`~moeapps.recsys.SequenceFeature` that shares a column's categories; that
    column is the candidate.

    Parameters
    ----------
    model : {"aw_moe", "din", "sasrec"}, default="aw_moe"
        The network. SASRec reads only the history and the candidate.
    gate : {"softmax", "mean", "sum"}, default="softmax"
        How AW-MoE's gate combines the behaviours: the softmax over experts of their mean, the mean, or the
        paper's sum, which grows with the history.
    label_prior : bool, default=True
        Whether a number per candidate (and per ``user``) is added to the logit, which begins at the log odds of its
        labels in training and is learned on: the ranker begins at popularity.
    item_similarity : bool, default=True
        Whether the product of the candidate's embedding with those of the history is added to the logit; see
        :class:`~moeapps.recsys.RankingConfig`.
    item_neighbours : bool, default=True
        Whether DIN and AW-MoE, trained on implicit feedback, add the sum of the candidate's cosines to the entries of
        the history, with the weight that validation events give it; see :class:`~moeapps.recsys.RankingConfig`.
    history_encoder : {"auto", "sasrec"} or None, default="auto"
        For DIN and AW-MoE: self-attention over the history before the candidate attends to it; see
        :class:`~moeapps.recsys.RankingConfig`. ``"auto"`` is ``"sasrec"`` for AW-MoE where the histories of training
        have at least 10 entries on average and ``embedding_dim`` is even, else None.
    contrastive_weight : float, default=0.0
        Weight of the contrastive loss on AW-MoE's gate, which is part of the paper; 0 for none.
    user : str, optional
        Sparse column of the users: they have a prior, per-user AUC chooses the epoch, and their rows are not each
        other's negatives in the contrastive loss.
    time : str, optional
        Column of times of a table: the newest rows are then used for validation, not random ones. It is not a feature.
    mask_probability, temperature : float, default 0.2 and 0.1
        Of the contrastive loss; see :class:`~moeapps.recsys.RankingConfig`.
    options : dict, optional
        Further arguments of the network: those of :class:`~moeapps.recsys.AWMoE` or :class:`~moeapps.recsys.DIN`, with
        a dropout of 0.2 unless it is given, or of SASRec: ``layers``, ``heads``, ``dropout``, ``max_len``.
    embedding_dim : int, default=16
        Width of a category's embedding.
    schema, column_types, missing_values, ignore_columns, sparse_gradients, sparse_optimizer, unknown_rate
        As in :class:`MultiTaskRanker`, with the same defaults.
    weight_decay : float, default=1e-5
        As in :class:`MultiTaskRanker`.
    embedding_decay : float, default=100.0
        As in :class:`MultiTaskRanker`, which has none by default: rare items and users stay near their prior. 0 for
        none.
    lr : float, default=3e-3
        Learning rate of the optimiser, above 0.
    batch_size, max_epochs
        As in :class:`MultiTaskRanker`, with the same defaults.
    patience : int, default=5
        Epochs without improvement before training stops: per-user AUC varies more than a loss.
    validation_fraction, accelerator, verbose, log_dir, random_state, logger
        As in :class:`MultiTaskRanker`, with the same defaults. The validation part is measured by its users' mean AUC
        where users are known, else by its AUC.

    Attributes
    ----------
    auto_ : dict
        What ``history_encoder`` is, as ``"auto"`` or as it was given.
    model_, encoder_, targets_, history_, n_iter_
        As in :class:`MultiTaskRanker`.
    """

    models = SEQUENCE_MODELS
    auto_: dict[str, Any]
    _saved_attributes = (*Ranker._saved_attributes, "auto_")
    _optional_attributes = ("auto_",)  # 0.1 had none

    def __init__(
        self,
        model: str = "aw_moe",
        *,
        gate: Literal["softmax", "mean", "sum"] = "softmax",
        label_prior: bool = True,
        item_similarity: bool = True,
        item_neighbours: bool = True,
        history_encoder: Literal["auto", "sasrec"] | None = "auto",
        contrastive_weight: float = 0.0,
        user: str | None = None,
        time: str | None = None,
        mask_probability: float = 0.2,
        temperature: float = 0.1,
        options: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        column_types: Mapping[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | Sequence[str] = "auto",
        ignore_columns: Sequence[str] | None = None,
        embedding_dim: int = 16,
        sparse_gradients: bool = False,
        sparse_optimizer: str = "adagrad",
        unknown_rate: float = 0.02,
        lr: float = 3e-3,
        weight_decay: float = 1e-5,
        embedding_decay: float = 100.0,
        batch_size: int = 1024,
        max_epochs: int = 20,
        validation_fraction: float = 0.1,
        patience: int = 5,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def fit(
        self,
        frame: Table | ImplicitFeedback,
        targets: str | Sequence[str] | None = None,
        *,
        ignored: Sequence[str] = (),
        validation: Table | ImplicitFeedback | None = None,
        target: str | None = None,
    ) -> Self:
        """Learn from a frame, or from implicit feedback.

        Parameters
        ----------
        frame : DataFrame, path or ImplicitFeedback
            Rows with features, a history column of lists (oldest entry first) and the target; or a CSV or Parquet file,
            which may be larger than memory; or :func:`~moeapps.recsys.implicit_feedback`, after which the ranker can
            :meth:`recommend`.
        targets : str or list of one str, optional
            Binary column to be predicted; not needed for implicit feedback.
        ignored : list of str, default=()
            Columns that are not used.
        validation : DataFrame, path or ImplicitFeedback, optional
            Rows or events to validate on, instead of a part of ``frame``.
        target : str, optional
            Deprecated name of ``targets``.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ConfigError, DataError
            Naming the argument, column or target that cannot be used, or if there is no history.
        """
        if target is not None:
            if targets is not None:
                raise ConfigError("targets and target are the same argument: give targets only")
            warn_deprecated("target= of AWMoERanker.fit is now called targets=")
            targets = target
        names = [targets] if isinstance(targets, str) else list(targets or ())
        with self._all_or_nothing() as fitted:
            fitted._fit(frame, names, ignored, dict.fromkeys(names, "binary"), validation)
        return self

    def _monitor(self, data: RankingData | ImplicitData) -> tuple[str, Literal["min", "max"]]:
        """Per-user AUC where there are users, AUC otherwise; the loss where the validation labels are of one class."""
        labels, target = data.val_labels(), data.targets.names[0]
        if labels is None or not bool((labels == 0).any() and (labels == 1).any()):
            return super()._monitor(data)
        users = None if (user := self._user_of(data)) is None else data.val_groups(user)
        if users is not None and not np.isnan(gauc(labels[:, 0], labels[:, 0], users)):
            return f"val/gauc/{target}", "max"
        return f"val/auc/{target}", "max"

    def _user_of(self, data: RankingData | ImplicitData) -> str | None:
        """Column of the users: of implicit feedback it is known."""
        sparse = data.encoder.schema.sparse_names
        known = data.catalogue.user if isinstance(data, ImplicitData) else None
        return known if self.user is None and known in sparse else self.user

    def _module(self, **changes: Any) -> RankingModule:
        """Without the contrastive loss for DIN and SASRec, which have no gate."""
        encoder = self.history_encoder
        if encoder == "auto":  # without one until the data are known
            encoder = getattr(self, "auto_", {}).get("history_encoder")
        fixed: dict[str, Any] = {} if self.model == "aw_moe" else {"contrastive_weight": 0.0}
        return super()._module(**{"history_encoder": encoder, **fixed, **changes})

    def _choose(self, data: RankingData | ImplicitData) -> None:
        encoder = self.history_encoder
        if encoder == "auto":
            pays = self.model == "aw_moe" and self.embedding_dim % 2 == 0 and data.mean_history() >= LONG
            encoder = "sasrec" if pays else None
        self.auto_ = {"history_encoder": encoder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; in 0.1 the gate was the paper's and there was no prior."""
        added = {"history_encoder": None, "item_neighbours": False}
        super().__setstate__({**added, **(state if "gate" in state else settings_of_0_1(state))})

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """As every ranker; arguments that 0.1 did not have mean in its files what it did."""
        arguments = arguments if "gate" in arguments else settings_of_0_1(arguments)
        return super().from_saved({"item_neighbours": False, **arguments}, state, tensors, source)
