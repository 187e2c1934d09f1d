"""Rank a candidate for a user with a history, behind scikit-learn's interface."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import pandas as pd
from torch import nn

from moeapps.core.errors import DataError
from moeapps.recsys.module import RankingModule
from moeapps.recsys.network import SequenceNetwork
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import Schema

__all__ = ["AWMoERanker"]


class AWMoERanker(Ranker):
    """One binary target for a user with a history: AW-MoE, or DIN as its baseline.

    The history is the schema's first :class:`~moeapps.recsys.Sequence` that shares a column's categories; that column
    is the candidate.

    Parameters
    ----------
    model : str
        ``"aw_moe"`` or ``"din"``.
    contrastive_weight : float
        Of the contrastive loss on the gate; 0 for none. Only for ``"aw_moe"``.
    mask_probability : float
        Of a behaviour, in the other view of the contrastive loss.
    temperature : float
        Of the contrastive loss.
    options, schema, embedding_dim, lr, weight_decay, batch_size, max_epochs, validation_fraction, patience
        As in :class:`MultiTaskRanker`.
    accelerator, verbose, log_dir, random_state
        As in :class:`MultiTaskRanker`.
    """

    def __init__(
        self,
        model: str = "aw_moe",
        *,
        contrastive_weight: float = 0.05,
        mask_probability: float = 0.2,
        temperature: float = 0.1,
        options: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        embedding_dim: int = 16,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        batch_size: int = 1024,
        max_epochs: int = 20,
        validation_fraction: float = 0.1,
        patience: int = 2,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.contrastive_weight = contrastive_weight
        self.mask_probability = mask_probability
        self.temperature = temperature
        self.options = options
        self.schema = schema
        self.embedding_dim = embedding_dim
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.accelerator = accelerator
        self.verbose = verbose
        self.log_dir = log_dir
        self.random_state = random_state

    def fit(self, frame: pd.DataFrame, target: str, *, ignored: Sequence[str] = ()) -> Self:
        """Learn from a frame.

        Parameters
        ----------
        frame : DataFrame
            Rows with features, a history column of lists (oldest first) and the target.
        target : str
            Binary column to be predicted.
        ignored : list of str
            Columns not to look at.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ValueError
            Naming the argument, column or target that cannot be used, or that there is no history.
        """
        fitted = copy.copy(self)
        fitted._fit(frame, [target], ignored, {target: "binary"})
        self.__dict__ = fitted.__dict__
        return self

    def _build_model(self) -> SequenceNetwork:
        schema = self.encoder_.schema
        found = [i for i, sequence in enumerate(schema.sequences) if sequence.shares is not None]
        if not found:
            raise DataError(
                "there is no history: AWMoERanker needs a Sequence that shares a Sparse column, such as "
                "Sequence('history', shares='item_id')"
            )
        target = [feature.name for feature in schema.sparse].index(str(schema.sequences[found[0]].shares))
        return SequenceNetwork(self.encoder_, found[0], target, self.model, self.options, self.embedding_dim)

    def _module(self, network: nn.Module) -> RankingModule:
        weight = self.contrastive_weight if self.model == "aw_moe" else 0.0
        return RankingModule(
            network,
            ["binary"],
            self.targets_.names,
            lr=self.lr,
            weight_decay=self.weight_decay,
            contrastive_weight=weight,
            mask_probability=self.mask_probability,
            temperature=self.temperature,
        )
