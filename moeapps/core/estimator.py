"""Base of the estimators: a data module, a LightningModule and a Trainer behind scikit-learn's ``fit``.

An estimator of moeapps validates what it was given, builds a data module and a LightningModule, and calls
:meth:`LightningEstimator._train`. Everything about the Trainer is decided here, once.
"""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.seed import isolate_rng
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from moeapps.core.callbacks import (
    BestWeights,
    HistoryRecorder,
    LastCheckpoint,
    StepSeeding,
    ViewWriter,
    seed_everything,
)
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError
from moeapps.core.run_folder import new_run_folder
from moeapps.core.saving import SaveMixin
from moeapps.core.state_dict import check_state_dict
from moeapps.core.statistics import RoutingMonitor
from moeapps.core.warnings import warnings_silenced

__all__ = ["LightningEstimator", "resolve_device"]


class LightningEstimator(SaveMixin, BaseEstimator):
    """Base of the estimators: scikit-learn's rules outside, Lightning inside.

    A subclass stores these constructor arguments (and its own) unchanged: ``max_epochs``, ``patience``, ``lr``,
    ``accelerator``, ``verbose``, ``log_dir``, ``random_state``. It fits inside
    :meth:`_all_or_nothing`.

    It names what a saved file has to hold in :attr:`_saved_attributes` and rebuilds its network in
    :meth:`_build_model`.
    """

    max_epochs: int
    patience: int
    lr: float
    accelerator: str
    verbose: bool
    log_dir: str | None
    random_state: Any
    model_: torch.nn.Module
    history_: pd.DataFrame
    n_features_in_: int

    _saved_attributes: tuple[str, ...] = ("n_features_in_", "n_iter_")
    """Fitted attributes (JSON values) that a saved file holds, where the estimator has them."""

    def _train(
        self,
        module: L.LightningModule,
        data: L.LightningDataModule,
        seed: int,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        max_epochs: int | None = None,
        validate: bool = True,
    ) -> pd.DataFrame:
        """Fit a module.

        Parameters
        ----------
        module : LightningModule
            What to train; afterwards its weights are the best ones, on the CPU.
        data : LightningDataModule
            Where the batches come from.
        seed : int
            Seed of weights, noise and order. The caller's random generators are left as they were.
        monitor : str, optional
            Logged metric for early stopping, after which the best weights are restored. None when the module decides
            itself when to stop.
        mode : {"min", "max"}, default="max"
            Whether less or more of it is better.
        max_epochs : int, optional
            Number of epochs; the estimator's own when None.
        validate : bool, default=True
            Whether the data has a validation part.

        Returns
        -------
        DataFrame
            What was logged, one row per epoch.
        """
        if isinstance(self.max_epochs, bool) or not isinstance(self.max_epochs, int) or self.max_epochs < 1:
            raise ConfigError(f"max_epochs must be a whole number of at least 1, got {self.max_epochs!r}")
        max_epochs = self.max_epochs if max_epochs is None else max_epochs
        history = HistoryRecorder()
        callbacks: list[Callback] = [StepSeeding(seed), history]
        if monitor is not None:
            if self.patience < 1:
                raise ConfigError(f"patience must be at least 1, got {self.patience!r}")
            # EarlyStopping counts epochs beyond the patience, BestWeights puts the best ones back
            callbacks += [
                EarlyStopping(monitor, patience=self.patience, mode=mode),
                BestWeights(monitor, mode),
            ]
        if self.verbose:
            callbacks.append(RichProgressBar())
        if self.log_dir is not None:
            callbacks += [LastCheckpoint(), RoutingMonitor(), ViewWriter()]
        with warnings_silenced(), isolate_rng(), tempfile.TemporaryDirectory() as nowhere:
            seed_everything(seed)
            folder = new_run_folder(self.log_dir) if self.log_dir is not None else None
            trainer = L.Trainer(
                accelerator=self.accelerator,
                devices=1,
                precision=getattr(self, "precision", "32-true"),
                max_epochs=max_epochs,
                limit_val_batches=None if validate else 0,
                callbacks=callbacks,
                logger=False if folder is None else CSVLogger(folder.parent, name="", version=folder.name),
                default_root_dir=self.log_dir if self.log_dir is not None else nowhere,
                enable_checkpointing=self.log_dir is not None,
                enable_progress_bar=bool(self.verbose),
                enable_model_summary=False,
                num_sanity_val_steps=0,
                log_every_n_steps=1,
                plugins=[AtomicCheckpointIO()],
            )
            try:
                trainer.fit(module, datamodule=data)
            except SystemExit:
                if trainer.interrupted:  # Lightning turns Ctrl-C into the end of the process
                    raise KeyboardInterrupt from None
                raise
        module.trainer = None
        module.cpu()
        return history.frame()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[Self]:
        """A copy to be fitted, which the estimator becomes when the block ends well.

        So a fit that fails, for whatever reason, leaves the last good model as it was.
        """
        fitted = copy.copy(self)
        yield fitted
        self.__dict__ = fitted.__dict__

    def _seed(self) -> int:
        """Draw the seed of this fit from ``random_state``."""
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments; a random generator becomes None, since a file cannot hold its state."""
        params: dict[str, Any] = self.get_params(deep=False)
        if not isinstance(params.get("random_state"), int | np.integer | None):
            params["random_state"] = None
        return params

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the estimator is not fitted.
        """
        check_is_fitted(self, "model_")
        state = {name: getattr(self, name) for name in self._saved_attributes if hasattr(self, name)}
        if hasattr(self, "feature_names_in_"):
            state["feature_names_in_"] = [str(name) for name in self.feature_names_in_]
        records = self.history_.astype(object).where(self.history_.notna(), None)
        state["history_"] = records.to_dict("list")
        return state

    def saved_tensors(self) -> dict[str, Tensor]:
        """Weights of the network."""
        return self.model_.state_dict()

    def _restore(self, state: dict[str, Any]) -> None:
        """Set the fitted attributes from a file's state."""
        state = dict(state)
        self.history_ = pd.DataFrame(state.pop("history_")).astype(float, errors="ignore")
        if "feature_names_in_" in state:
            self.feature_names_in_ = np.array(state.pop("feature_names_in_"), dtype=object)
        for name in self._saved_attributes:
            if name in state:
                setattr(self, name, state.pop(name))

    def _build_model(self) -> torch.nn.Module:
        """Build the network anew from constructor arguments and fitted attributes, for loading."""
        raise NotImplementedError

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Construct, restore, compare names and shapes, load."""
        estimator = cls(**arguments)
        estimator._restore(state)
        model = estimator._build_model()
        check_state_dict(model, tensors, source)
        model.load_state_dict(tensors)
        estimator.model_ = model.eval()
        return estimator


def resolve_device(accelerator: str) -> torch.device:
    """Device on which an estimator with this ``accelerator`` predicts: CUDA if it is there and was not ruled out."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")
