"""Settings of DriftMoE, declared once: what the estimators take, and what the engines are built from."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from moeapps.core.checks import check_at_least_zero, check_fraction, check_one_of, check_sizes
from moeapps.core.config import config_from
from moeapps.core.errors import ConfigError
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
from moeapps.stream.encoding import OnBad

__all__ = ["DriftMoEConfig"]

VARIANTS = {"data": DATA, "task": TASK}
PREDICT_WITH = {"mixture": MIX, "top": TOP}
LEARN_WITH = {"all": ALL, "top_k": TOP_K}
DRIFT = {None: FIXED, "reset": RESET, "replace": REPLACE}
ROUTER_INPUTS = {"enriched": ENRICHED, "raw": RAW}


@dataclass(frozen=True)
class DriftMoEConfig:
    """Settings of :class:`DriftMoEClassifier` and :class:`DriftMoERegressor`.

    Parameters
    ----------
    variant : {"data", "task"}, default "data"
        "data": ``n_experts`` trees that know all classes. "task": one binary tree per class, and the router predicts
        the class. Numbers have "data" only.
    n_experts : int, default 12
        Number of trees of the data variant, E.
    top_k : int, default 3
        Experts that learn each instance where ``learn_with="top_k"``.
    expert : river model, optional
        Cloned once per expert in place of the built-in trees.
    predict_with : {"mixture", "top"}, default "mixture"
        All experts by weight, or the one with the largest (in the task variant: the router alone).
    learn_with : {"all", "top_k"}, default "all"
        Which experts learn an instance.
    bagging : float in [0, 50], default 6.0
        Rate of the Poisson weights of online bagging; 0 gives every instance weight 1.
    drift : {"replace", "reset"} or None, default "replace"
        What follows when ADWIN finds that an expert's error rises: the background tree grown since the warning
        replaces it, it starts anew, or nothing.
    drift_delta, warning_delta : float in (0, 1], default 0.01 and 0.05
        Confidences of the two ADWIN windows of each expert.
    window : int, default 100
        Instances over which recent accuracies are averaged (exponentially).
    blend : float, default 30.0
        How sharply pool and router are weighted by their recent accuracies; 0 leaves the router's own class
        probabilities out.
    leaf_prediction : {"mc", "nb", "nba"}, default "nba"
        Leaves predict by majority class, naive Bayes, or the better of the two.
    grace_period : int, default 100
        Weight that a leaf sees between two attempts to split.
    delta : float in (0, 1], default 0.01
        Confidence of the Hoeffding bound.
    tie_threshold : float in (0, 1], default 0.05
        A split is made without a clear winner once the bound is below this.
    feature_share : float or list of float, default 1.0
        Share of the features that each leaf observes; a list is cycled through by the trees.
    max_nodes : int, default 1023
        Largest number of nodes per tree.
    use_router : bool, default True
        Whether the router weights the experts; else their recent accuracy does.
    router_inputs : {"enriched", "raw"}, default "enriched"
        Standardised features and the experts' recent accuracies, or the features as they are.
    router_hidden : pair of int, default (128, 64)
        Widths of the router's hidden layers.
    router_lr : float, default 0.003
        Learning rate of the router's Adam.
    router_dropout : float in [0, 1), default 0.0
        Dropout after the router's first layer, in training.
    router_period : int, default 8
        Instances per step of the router.
    temperature : float, default 0.8
        Of the softmax over the experts, with ``predict_with="top"``.
    max_features, max_categories : int, default 1000 and 256
        Largest number of feature names, and of codes per categorical feature.
    on_bad : {"raise", "skip", "impute"}, default "raise"
        What to do with an instance with a bad value: refuse it, skip it, or take the value for missing.
    seed : int, optional
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
