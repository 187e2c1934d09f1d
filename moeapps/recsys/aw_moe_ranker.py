"""Rank a candidate for a user with a history, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from moeapps.recsys.data import RankingData, Table
from moeapps.recsys.module import RankingModule
from moeapps.recsys.network import SEQUENCE_MODELS
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
    user : str, optional
        Sparse column of the users, whose rows are not each other's negatives in the contrastive loss; without it every
        row counts as a user of its own.
    mask_probability : float
        Of a behaviour, in the other view of the contrastive loss.
    temperature : float
        Of the contrastive loss.
    options, schema, embedding_dim, sparse_gradients, unknown_rate, lr, weight_decay, batch_size, max_epochs
        As in :class:`MultiTaskRanker`.
    validation_fraction, patience
        As in :class:`MultiTaskRanker`.
    accelerator, verbose, log_dir, random_state
        As in :class:`MultiTaskRanker`.
    """

    models = SEQUENCE_MODELS

    def __init__(
        self,
        model: str = "aw_moe",
        *,
        contrastive_weight: float = 0.05,
        user: str | None = None,
        mask_probability: float = 0.2,
        temperature: float = 0.1,
        options: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        embedding_dim: int = 16,
        sparse_gradients: bool = False,
        unknown_rate: float = 0.02,
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
        self.user = user
        self.mask_probability = mask_probability
        self.temperature = temperature
        self.options = options
        self.schema = schema
        self.embedding_dim = embedding_dim
        self.sparse_gradients = sparse_gradients
        self.unknown_rate = unknown_rate
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

    def fit(self, frame: Table, target: str, *, ignored: Sequence[str] = (), validation: Table | None = None) -> Self:
        """Learn from a frame.

        Parameters
        ----------
        frame : DataFrame or path
            Rows with features, a history column of lists (oldest first) and the target; or a CSV or Parquet file.
        target : str
            Binary column to be predicted.
        ignored : list of str
            Columns not to look at.
        validation : DataFrame or path, optional
            Rows to validate on, instead of a part of ``frame``.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ValueError
            Naming the argument, column or target that cannot be used, or that there is no history.
        """
        with self._all_or_nothing() as fitted:
            fitted._fit(frame, [target], ignored, {target: "binary"}, validation)
        return self

    def _monitor(self, data: RankingData) -> tuple[str, Literal["min", "max"]]:
        """The area under the curve, which is what a ranking is judged by; the loss where there is no area."""
        labels = data.val_labels()
        both = labels is not None and bool((labels == 0).any() and (labels == 1).any())
        return (f"val/auc/{data.targets.names[0]}", "max") if both else super()._monitor(data)

    def _module(self, **changes: Any) -> RankingModule:
        """DIN has no gate, so that the contrastive loss is left out."""
        return super()._module(**changes, **({} if self.model == "aw_moe" else {"contrastive_weight": 0.0}))
