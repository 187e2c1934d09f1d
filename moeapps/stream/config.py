"""Settings of DriftMoE, declared once: what the estimators take, and what the engines are built from."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moeapps.core.checks import check_at_least_zero, check_fraction, check_one_of, check_sizes
from moeapps.core.config import config_from
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.cells import missing_texts
from moeapps.stream.compiled.mixture_state import (
    ALL,
    DATA,
    ENRICHED,
    FIXED,
    MIX,
    RAW,
    REPLACE,
    RESET,
    ROUTER,
    TASK,
    TOP,
    TOP_K,
    MixtureSettings,
)
from moeapps.stream.compiled.pool import TreeConfig
from moeapps.stream.row_encoding import OnBad, check_column_types

__all__ = ["DriftMoEConfig"]

VARIANTS = {"data": DATA, "task": TASK}
PREDICT_WITH = {"mixture": MIX, "top": TOP}
LEARN_WITH = {"all": ALL, "top_k": TOP_K}
DRIFT = {None: FIXED, "reset": RESET, "replace": REPLACE}
ROUTER_INPUTS = {"enriched": ENRICHED, "raw": RAW}


@dataclass(frozen=True)
class DriftMoEConfig:
    """Settings of :class:`DriftMoEClassifier` and :class:`DriftMoERegressor`; defaults are those of the classifier.

    Parameters
    ----------
    variant, blend, leaf_prediction
        See :class:`DriftMoEClassifier`; the regressor has ``variant="data"`` and ``blend=0``, its leaves predict means.
    n_experts, top_k, expert, predict_with, learn_with, bagging, drift, drift_delta, warning_delta, window
        Of the mixture, see :class:`DriftMoEClassifier`.
    grace_period, delta, tie_threshold, feature_share, max_nodes
        Of the trees, see :class:`~moeapps.stream.compiled.pool.TreeConfig`.
    use_router, router_inputs, router_hidden, router_lr, router_dropout, router_period, temperature
        Of the router, see :class:`DriftMoEClassifier`.
    max_features, max_categories, on_bad, missing_values, column_types
        Of the encoder, see :class:`~moeapps.stream.row_encoding.RowEncoder`.
    seed
        Seed of everything; drawn anew for each model when None.

    Raises
    ------
    ConfigError
        If a setting is impossible.
    """

    variant: Literal["data", "task"] = "data"
    n_experts: int = 12
    top_k: int = 3
    expert: Any = None
    predict_with: Literal["mixture", "top"] = "mixture"
    learn_with: Literal["all", "top_k"] = "all"
    bagging: float = 6.0
    drift: Literal["replace", "reset"] | None = "replace"
    drift_delta: float = 0.01
    warning_delta: float = 0.05
    window: int = 100
    blend: float = 30.0
    leaf_prediction: Literal["mc", "nb", "nba"] = "nba"
    grace_period: int = 100
    delta: float = 0.01
    tie_threshold: float = 0.05
    feature_share: float | list[float] = 1.0
    max_nodes: int = 1023
    use_router: bool = True
    router_inputs: Literal["enriched", "raw"] = "enriched"
    router_hidden: tuple[int, int] = (128, 64)
    router_lr: float = 3e-3
    router_dropout: float = 0.0
    router_period: int = 8
    temperature: float = 0.8
    max_features: int = 1000
    max_categories: int = 256
    on_bad: OnBad = "raise"
    missing_values: Literal["auto"] | list[str] = "auto"
    column_types: dict[Any, Literal["number", "category"]] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_one_of("variant", self.variant, VARIANTS)
        check_one_of("predict_with", self.predict_with, PREDICT_WITH)
        check_sizes(
            n_experts=self.n_experts, top_k=self.top_k, window=self.window, grace_period=self.grace_period,
            max_nodes=self.max_nodes, router_period=self.router_period, max_features=self.max_features,
            max_categories=self.max_categories,
        )  # fmt: skip
        check_at_least_zero(
            bagging=self.bagging, blend=self.blend, router_lr=self.router_lr, router_dropout=self.router_dropout
        )
        check_fraction(
            drift_delta=self.drift_delta, warning_delta=self.warning_delta, delta=self.delta,
            tie_threshold=self.tie_threshold,
        )  # fmt: skip
        check_one_of("drift", self.drift, DRIFT)
        check_one_of("learn_with", self.learn_with, LEARN_WITH)
        check_one_of("router_inputs", self.router_inputs, ROUTER_INPUTS)
        check_one_of("on_bad", self.on_bad, ("raise", "skip", "impute"))
        missing_texts([] if self.missing_values is None else self.missing_values)
        check_column_types(self.column_types)
        if self.bagging > 50:  # the kernel inverts the distribution function, which takes about that many steps
            raise ConfigError(f"bagging must be at most 50, got {self.bagging!r}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature!r}")
        if self.router_dropout >= 1:
            raise ConfigError(f"router_dropout must be below 1, got {self.router_dropout!r}")
        if len(tuple(self.router_hidden)) != 2:
            raise ConfigError(f"router_hidden must be two widths, got {self.router_hidden!r}")
        check_sizes(**{f"router_hidden[{i}]": width for i, width in enumerate(self.router_hidden)})
        if not (self.seed is None or isinstance(self.seed, int | np.integer)) or isinstance(self.seed, bool):
            raise ConfigError(f"seed must be a whole number or None, got {self.seed!r}")

    @property
    def hidden(self) -> tuple[int, int]:
        """Widths of the router's hidden layers, also where they came from a file as a list."""
        return int(self.router_hidden[0]), int(self.router_hidden[1])

    @property
    def trees(self) -> TreeConfig:
        """The settings of the trees."""
        return config_from(TreeConfig, self)

    @property
    def mixture(self) -> MixtureSettings:
        """The settings of the mixture as numbers, for the compiled loops. The task variant begins without an expert."""
        task = self.variant == "task"
        return MixtureSettings(
            n_experts=0 if task else self.n_experts,
            variant=VARIANTS[self.variant],
            top_k=self.top_k,
            temperature=self.temperature,
            predict_with=ROUTER if task and self.predict_with == "top" else PREDICT_WITH[self.predict_with],
            use_router=self.use_router,
            blend=float(self.blend),
            learn_with=ALL if task else LEARN_WITH[self.learn_with],
            bagging=float(self.bagging),
            drift=DRIFT[self.drift],
            drift_delta=self.drift_delta,
            warning_delta=self.warning_delta,
            window=self.window,
            blend_window=5 * self.window,
            router_inputs=ROUTER_INPUTS[self.router_inputs],
            router_dropout=float(self.router_dropout),
            router_lr=float(self.router_lr),
            router_period=self.router_period,
        )
