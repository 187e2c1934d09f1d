"""Base of the estimators: a data module, a LightningModule and a Trainer behind scikit-learn's ``fit``.

An estimator of moeapps validates what it was given, builds a data module and a LightningModule, and calls
:meth:`LightningEstimator._train`. Everything about the Trainer is decided here, once.
"""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Self

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from moeapps.core.arguments import NamedArguments
from moeapps.core.averaging import RisingAverage
from moeapps.core.callbacks import (
    BestWeights,
    HistoryRecorder,
    LastCheckpoint,
    ProgressBar,
    StepSeeding,
    ViewWriter,
    seed_everything,
)
from moeapps.core.card import training_record
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError, FileFormatError, NonFiniteError
from moeapps.core.loggers import check_loggers, close_loggers, estimator_loggers
from moeapps.core.rebuilding import rebuild
from moeapps.core.run_folder import new_run_folder
from moeapps.core.saved_arguments import arguments_to_json, check_fields, check_kinds, fits, is_module
from moeapps.core.saved_tensors import refuse_non_finite
from moeapps.core.saving import SaveMixin
from moeapps.core.statistics import RoutingMonitor
from moeapps.core.warnings import warnings_silenced

__all__ = ["LightningEstimator", "resolve_device"]


class LightningEstimator(NamedArguments, SaveMixin, BaseEstimator):
    """Base of the estimators: scikit-learn's rules outside, Lightning inside.

    A subclass stores these constructor arguments (and its own) unchanged: ``max_epochs``, ``patience``, ``lr``,
    ``accelerator``, ``verbose``, ``log_dir``, ``logger``, ``random_state``. It fits inside
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
    logger: Any
    random_state: Any
    model_: torch.nn.Module
    history_: pd.DataFrame
    n_features_in_: int
    n_iter_: int
    _fit_params: dict[str, Any] | None = None
    """Constructor arguments as they were at the fit that built ``model_``; ``set_params`` may change them later."""

    _saved_attributes: tuple[str, ...] = ("n_features_in_", "n_iter_")
    """Fitted attributes (JSON values) that a saved file holds; the class annotates them."""

    _optional_attributes: tuple[str, ...] = ()
    """Those of them that some files lack, those of 0.1 or those of today."""

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
        ema_decay: float = 0.0,
        max_time: float | None = None,
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
        ema_decay : float, default=0.0
            Decay of a moving average of the weights, which is validated and kept; none when 0.
        max_time : float, optional
            Seconds after which training ends, at the end of its learning rate's schedule; no limit when None.

        Returns
        -------
        DataFrame
            Logged metrics, one row per epoch.

        Raises
        ------
        NonFiniteError
            If a loss, the metric that chooses the epoch, or a weight at the end is NaN or infinite: what has diverged
            never passes for a fitted model.
        """
        max_epochs = self.max_epochs if max_epochs is None else max_epochs
        if isinstance(max_epochs, bool) or not isinstance(max_epochs, int) or max_epochs < 1:
            raise ConfigError(f"max_epochs must be a whole number of at least 1, got {max_epochs!r}")
        history = HistoryRecorder()
        callbacks: list[Callback] = [StepSeeding(seed), history]
        if ema_decay:
            callbacks.append(RisingAverage(ema_decay))  # before BestWeights, whose weights are the last to be put back
        if monitor is not None:
            if self.patience < 1:
                raise ConfigError(f"patience must be at least 1, got {self.patience!r}")
            # EarlyStopping counts epochs beyond the patience, BestWeights puts the best ones back
            callbacks += [
                EarlyStopping(monitor, patience=self.patience, mode=mode),
                BestWeights(monitor, mode),
            ]
        if self.verbose:
            callbacks.append(ProgressBar())
        check_loggers(self.logger, self.log_dir)
        if self.log_dir is not None:
            callbacks += [LastCheckpoint(), RoutingMonitor(), ViewWriter()]
        with warnings_silenced(), isolate_rng(), tempfile.TemporaryDirectory() as nowhere:
            seed_everything(seed)
            folder = new_run_folder(self.log_dir) if self.log_dir is not None else None
            own, others = estimator_loggers(self.logger, folder)
            trainer = L.Trainer(
                accelerator=self.accelerator,
                devices=1,
                precision=getattr(self, "precision", "32-true"),
                max_epochs=max_epochs,
                max_time=None if max_time is None else timedelta(seconds=max_time),
                limit_val_batches=None if validate else 0,
                callbacks=callbacks,
                logger=[*own, *others] or False,
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
            finally:
                close_loggers(own)
        module.trainer = None
        module.cpu()
        refuse_non_finite(module.state_dict(), self.non_finite_tensors)
        frame = history.frame()
        if monitor in frame and len(frame) and not np.isfinite(frame[monitor].to_numpy(dtype=float)).any():
            raise NonFiniteError(
                f"training has diverged: {monitor} was never a finite number. Lower lr, or scale the data"
            )
        best = next((callback for callback in callbacks if isinstance(callback, BestWeights)), None)
        self._training_record = training_record(frame, trainer, None if best is None else best.best_epoch)
        return frame

    @contextmanager
    def _all_or_nothing(self, continued: bool = False) -> Iterator[Self]:
        """A copy to be fitted, which the estimator becomes when the block ends well.

        So a fit that fails, for whatever reason, leaves the last good model as it was.

        Parameters
        ----------
        continued : bool, default=False
            Whether the network of an earlier fit is trained on, whose arguments are then kept.
        """
        fitted = copy.copy(self)
        yield fitted
        if not continued:
            fitted._fit_params = {
                name: copy.deepcopy(value) if isinstance(value, dict | list) else value
                for name, value in fitted.get_params(deep=False).items()
            }
        self.__dict__ = fitted.__dict__

    def _as_fitted(self) -> dict[str, Any]:
        """Constructor arguments of the fit that built the network."""
        params: dict[str, Any] = self.get_params(deep=False) if self._fit_params is None else self._fit_params
        return params

    @staticmethod
    def _finite(outputs: NDArray[Any]) -> NDArray[Any]:
        """Outputs of the network, as they are.

        Raises
        ------
        NonFiniteError
            If one is NaN or infinite.
        """
        if not np.isfinite(outputs).all():
            raise NonFiniteError(
                "the predictions are not finite numbers: the training has diverged (lower lr), or these inputs are far "
                "outside those of training"
            )
        return outputs

    def _seed(self) -> int:
        """Draw the seed of this fit from ``random_state``."""
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments of the fit; a random generator and loggers of the user's become None."""
        return self._savable(self._as_fitted())

    def _savable(self, params: dict[str, Any]) -> dict[str, Any]:
        """Constructor arguments as :func:`~moeapps.core.saving.arguments_to_json` takes them."""
        if not isinstance(params.get("random_state"), int | np.integer | None):
            params = {**params, "random_state": None}
        if not isinstance(params.get("logger"), str | None):
            params = {**params, "logger": None}
        return params

    @classmethod
    def _from_savable(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Undo :meth:`_savable`, for some or all arguments."""
        return arguments

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
        fit = arguments_to_json(self.saved_arguments())
        now = arguments_to_json(self._savable(self.get_params(deep=False)))
        changed = {name: value for name, value in now.items() if value != fit.get(name) and not is_module(value)}
        if changed:  # by set_params: the network is that of the fit, the estimator's arguments are these
            state["changed_arguments"] = changed
        return state

    def saved_tensors(self) -> dict[str, Tensor]:
        """Weights of the network.

        Raises
        ------
        ConfigError
            If surgery was done on ``model_`` by hand, and the file could not be loaded.
        """
        tensors: dict[str, Tensor] = self.model_.state_dict()
        if any(getattr(module, "changed_by_surgery", False) for module in self.model_.modules()):
            self._check_loadable(tensors)
        return tensors

    def _check_loadable(self, tensors: dict[str, Tensor]) -> None:
        """Refuse to write what :meth:`from_saved` would refuse to read."""
        try:
            with isolate_rng():
                self.from_saved(self.saved_arguments(), self.saved_state(), tensors, Path("the network after surgery"))
        except FileFormatError as error:
            raise ConfigError(
                "the arguments of this estimator do not describe its network any more, so that a saved file could not "
                f"be loaded: keep model_ with torch.save, or export it ({error})"
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        """Set the fitted attributes from a file's state.

        Raises
        ------
        FileFormatError
            If one is missing or malformed.
        """
        check_fields(self, state, [name for name in self._saved_attributes if name in {*state, *self._needed()}])
        names = state.get("feature_names_in_", [])
        if not fits(state["history_"], dict[str, list[Any]]) or not fits(names, list[str]) or state["n_iter_"] < 0:
            raise FileFormatError("its history or the names of its features are malformed")
        if names and len(names) != state.get("n_features_in_", len(names)):
            raise FileFormatError("it has names for another number of features than it was fitted on")
        state = dict(state)
        history = pd.DataFrame(state.pop("history_"))
        empty = [name for name in history if history[name].dtype.kind == "O"]  # None where nothing was logged
        self.history_ = history.astype(dict.fromkeys(empty, float), errors="ignore")
        if "feature_names_in_" in state:
            self.feature_names_in_ = np.array(state.pop("feature_names_in_"), dtype=object)
        for name in self._saved_attributes:
            if name in state:
                setattr(self, name, state.pop(name))

    def _needed(self) -> set[str]:
        """Attributes that every saved file has."""
        return set(self._saved_attributes) - set(self._optional_attributes)

    def _build_model(self) -> torch.nn.Module:
        """Build the network anew from constructor arguments and fitted attributes, for loading."""
        raise NotImplementedError

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Construct as at the fit, restore, rebuild the network, then set what ``set_params`` had changed since."""
        changed = state.get("changed_arguments", {})
        if unknown := set(changed) - set(arguments):
            raise FileFormatError(f"{source}: {cls.__name__} has no argument {min(unknown)!r}")
        check_kinds(cls, changed, source)
        estimator = cls(**cls._from_savable(arguments))
        estimator._restore(state)
        estimator.model_ = rebuild(estimator._build_saved_model, tensors, source)
        estimator._fit_params = estimator.get_params(deep=False)
        return estimator.set_params(**cls._from_savable(changed))

    @classmethod
    def from_module(cls, module: Any) -> Any:
        """The estimator that predicts as a trained module does; :func:`moeapps.load` calls it for a checkpoint.

        It has the module's settings as arguments. ``history_`` is empty and ``n_iter_`` 0: the training is not part of
        it.

        Parameters
        ----------
        module : LightningModule
            A trained module, which has ``to_estimator`` unless a subclass does its work here.

        Raises
        ------
        ConfigError
            If the training has not come far enough to predict, or the estimator has no argument for a setting.
        """
        return module.to_estimator()

    @classmethod
    def _with_settings(cls, *sources: Mapping[str, Any]) -> Self:
        """An estimator with those settings of a module that it has as arguments, marked as fitted by no epoch."""
        settings = {name: value for source in sources for name, value in source.items()}
        known = cls._get_param_names()
        estimator = cls(**{name: copy.copy(value) for name, value in settings.items() if name in known})
        estimator.history_, estimator.n_iter_ = pd.DataFrame(), 0
        estimator._fit_params = estimator.get_params(deep=False)
        return estimator

    def _build_saved_model(self) -> torch.nn.Module:
        """:meth:`_build_model` in the precision that predictions are made in."""
        return self._build_model()


def resolve_device(accelerator: str) -> torch.device:
    """Device on which an estimator with this ``accelerator`` predicts: CUDA if it is there and was not ruled out."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")
