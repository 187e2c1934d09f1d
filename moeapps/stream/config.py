"""Settings of DriftMoE, declared once: what the estimators take, and what the engines are built from."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

from moeapps.core.checks import check_at_least_zero, check_fraction, check_one_of, check_sizes
from moeapps.core.config import config_from
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.cells import missing_texts
from moeapps.stream.compiled.kinds import KINDS, KindSettings
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
from moeapps.stream.compiled.number_kinds import NUMBER_KINDS, NumberSettings
from moeapps.stream.compiled.online_gate import ACCURACY, AUTO, WAYS
from moeapps.stream.compiled.pool import TreeConfig
from moeapps.stream.row_encoding import OnBad, check_column_types

__all__ = ["DriftMoEConfig", "NumberConfig"]

VARIANTS = {"data": DATA, "task": TASK}
PREDICT_WITH = {"mixture": MIX, "top": TOP}
LEARN_WITH = {"all": ALL, "top_k": TOP_K}
DRIFT = {None: FIXED, "reset": RESET, "replace": REPLACE}
ROUTER_INPUTS = {"enriched": ENRICHED, "raw": RAW}
GATES = {"auto": AUTO, **{name: way for way, name in enumerate(WAYS)}}
OF_TREES_ALONE = (
    "variant", "expert", "top_k", "predict_with", "learn_with", "blend", "router_inputs", "router_hidden", "router_lr",
    "router_dropout", "router_period", "temperature",
)  # fmt: skip
"""Settings of trees under the neural router, which experts of several kinds do not have."""
MOST_TREES = 10_000
"""Largest number of trees: room for them is made at once."""


@dataclass(frozen=True)
class DriftMoEConfig:
    """Settings of :class:`DriftMoEClassifier` and :class:`DriftMoERegressor`; defaults are those of the classifier.

    Parameters
    ----------
    variant, blend, leaf_prediction
        See :class:`DriftMoEClassifier`; the regressor has ``variant="data"`` and ``blend=0``, its leaves predict means.
    n_experts, top_k, expert, predict_with, learn_with, bagging, drift, drift_delta, warning_delta, window
        Of the mixture, see :class:`DriftMoEClassifier`.
    experts, gate, archive
        Kinds of experts, how they are mixed and how many retired trees are kept, see :class:`DriftMoEClassifier`; the
        regressor has trees only.
    grace_period, delta, tie_threshold, feature_share, max_nodes
        Of the trees, see :class:`~moeapps.stream.compiled.pool.TreeConfig`.
    use_router, router_inputs, router_hidden, router_lr, router_dropout, router_period, temperature
        Of the router, see :class:`DriftMoEClassifier`.
    max_features, max_categories, on_bad, missing_values, column_types
        Of the encoder, see :class:`~moeapps.stream.row_encoding.RowEncoder`.
    n_jobs
        Threads that learn, see :class:`DriftMoEClassifier`; the regressor has one.
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
    experts: list[str] | dict[str, int] | Literal["auto"] | None = "auto"
    gate: Literal["auto", "mean", "accuracy", "stack", "context"] = "auto"
    archive: int | Literal["auto"] = "auto"
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
    n_jobs: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_one_of("variant", self.variant, VARIANTS)
        check_one_of("predict_with", self.predict_with, PREDICT_WITH)
        check_sizes(
            n_experts=self.n_experts, top_k=self.top_k, window=self.window, grace_period=self.grace_period,
            max_nodes=self.max_nodes, router_period=self.router_period, max_features=self.max_features,
            max_categories=self.max_categories,
        )  # fmt: skip
        if self.n_experts > MOST_TREES:
            raise ConfigError(f"n_experts must be at most {MOST_TREES:,}, got {self.n_experts!r}")
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
        if not isinstance(self.router_hidden, tuple | list) or len(self.router_hidden) != 2:
            raise ConfigError(f"router_hidden must be two widths, got {self.router_hidden!r}")
        check_sizes(**{f"router_hidden[{i}]": width for i, width in enumerate(self.router_hidden)})
        self._check_kinds()
        if not isinstance(self.use_router, bool | np.bool_):
            raise ConfigError(f"use_router must be True or False, got {self.use_router!r}")
        if self.n_jobs is not None and (not _is_whole(self.n_jobs) or self.n_jobs == 0):
            raise ConfigError(
                f"n_jobs must be None, a number of threads, or -1 for one per processor, got {self.n_jobs!r}"
            )
        if self.seed is not None and not (_is_whole(self.seed) and self.seed >= 0):
            raise ConfigError(f"seed must be a whole number of at least 0, or None, got {self.seed!r}")

    @property
    def _known(self) -> dict[str, int | None]:
        """Kinds of experts that there are, and how many there can be of each."""
        return KINDS

    def _check_kinds(self) -> None:
        check_one_of("gate", self.gate, GATES)
        if self.experts is not None and not _is_auto(self.experts):
            self._check_counts()
            for name in OF_TREES_ALONE:
                if self._is_changed(name):
                    raise ConfigError(
                        f"{name}={getattr(self, name)!r} is for trees under the neural router, and experts asks for "
                        "experts of several kinds: leave one of the two out (experts=None means the trees)"
                    )
        archive: Any = self.archive
        if not _is_auto(archive):
            whole = isinstance(archive, int) and not isinstance(archive, bool)
            if not whole or not 0 <= archive <= MOST_TREES:
                raise ConfigError(
                    f"archive must be 'auto' or a whole number of at least 0 and at most {MOST_TREES:,}, "
                    f"got {archive!r}"
                )
            if archive and not self._may_archive:
                raise ConfigError(
                    f"archive={archive!r} keeps trees that a drift alarm retires: it needs trees among experts of "
                    "several kinds (experts), and drift='replace' or 'reset'"
                )
        if self.gate == "auto":
            return
        if self.kinds is None:
            raise ConfigError(f"gate={self.gate!r} is for experts of several kinds, and these are trees under a router")
        if not self.use_router and self.gate != "accuracy":
            raise ConfigError(f"use_router=False means gate='accuracy', got gate={self.gate!r}: leave one of them out")

    def _check_counts(self) -> None:
        """Names, and counts that there are settings for."""
        experts: Any = self.experts
        if isinstance(experts, str) or not isinstance(experts, Mapping | list | tuple) or not experts:
            known = ", ".join(self._known)
            raise ConfigError(
                f"experts must be 'auto', None, a list of kinds ({known}) or a dict of their counts, got {experts!r}"
            )
        if not isinstance(experts, Mapping) and len(set(map(str, experts))) < len(experts):
            raise ConfigError(f"experts names a kind twice: {experts!r}; a dict has counts")
        for name in experts:
            check_one_of("experts", name, self._known)
            if isinstance(experts, Mapping):
                check_sizes(**{f"experts[{name!r}]": experts[name]})
                most = self._known[name] or MOST_TREES
                if experts[name] > most:
                    why = ": experts of this kind differ in how much they remember, and there are no more settings"
                    why = why if self._known[name] else ""
                    raise ConfigError(f"experts[{name!r}] must be at most {most:,}, got {experts[name]!r}{why}")

    def _is_changed(self, name: str) -> bool:
        """Whether a setting differs from its default; a pair may come from a file as a list."""
        value, default = getattr(self, name), next(field.default for field in fields(self) if field.name == name)
        return list(value) != list(default) if isinstance(default, tuple) else value is not default and value != default

    @property
    def _may_archive(self) -> bool:
        return self.kinds is not None and self.kinds["tree"] > 0 and self.drift is not None

    @property
    def kinds(self) -> dict[str, int] | None:
        """How many experts there are of each kind; None for trees under the neural router, or river's models."""
        if self.experts is None or (_is_auto(self.experts) and any(self._is_changed(name) for name in OF_TREES_ALONE)):
            return None
        most = {name: self.n_experts if number is None else number for name, number in self._known.items()}
        if _is_auto(self.experts):
            return most
        given = self.experts if isinstance(self.experts, Mapping) else {name: most[name] for name in self.experts}
        return {name: int(given.get(name, 0)) for name in self._known}

    @property
    def hidden(self) -> tuple[int, int]:
        """Widths of the router's hidden layers, also where they came from a file as a list."""
        return int(self.router_hidden[0]), int(self.router_hidden[1])

    @property
    def trees(self) -> TreeConfig:
        """The settings of the trees."""
        return config_from(TreeConfig, self, tie_threshold=float(self.tie_threshold))

    @property
    def mixture(self) -> MixtureSettings:
        """The settings of the mixture as numbers, for the compiled loops. The task variant begins without an expert.

        Each has one type, whatever type of number was given: the loops are compiled for each combination of types.
        """
        task = self.variant == "task"
        return MixtureSettings(
            n_experts=0 if task else self.n_experts,
            variant=VARIANTS[self.variant],
            top_k=self.top_k,
            temperature=float(self.temperature),
            predict_with=ROUTER if task and self.predict_with == "top" else PREDICT_WITH[self.predict_with],
            use_router=bool(self.use_router),
            blend=float(self.blend),
            learn_with=ALL if task else LEARN_WITH[self.learn_with],
            bagging=float(self.bagging),
            drift=DRIFT[self.drift],
            drift_delta=float(self.drift_delta),
            warning_delta=float(self.warning_delta),
            window=self.window,
            blend_window=5 * self.window,
            router_inputs=ROUTER_INPUTS[self.router_inputs],
            router_dropout=float(self.router_dropout),
            router_lr=float(self.router_lr),
            router_period=self.router_period,
        )

    @property
    def kind_settings(self) -> KindSettings:
        """The settings of experts of several kinds as numbers, for the compiled loops."""
        kinds = self.kinds
        assert kinds is not None
        archive = 2 * kinds["tree"] * self._may_archive if _is_auto(self.archive) else self.archive
        return KindSettings(
            n_experts=kinds["tree"],
            bayes=kinds["bayes"],
            neighbours=kinds["neighbours"],
            linear=kinds["linear"],
            networks=kinds["network"],
            variant=DATA,
            gate=GATES[self.gate] if self.use_router else ACCURACY,
            bagging=float(self.bagging),
            drift=DRIFT[self.drift],
            drift_delta=float(self.drift_delta),
            warning_delta=float(self.warning_delta),
            window=self.window,
            archive=int(archive),
        )


@dataclass(frozen=True)
class NumberConfig(DriftMoEConfig):
    """Settings of :class:`DriftMoERegressor`: its own defaults, and its own kinds of experts.

    Parameters
    ----------
    **settings
        See :class:`DriftMoEConfig`.
    """

    archive: int | Literal["auto"] = 0  # of trees that predict numbers none is kept
    drift_delta: float = 0.001
    warning_delta: float = 0.01
    blend: float = 0.0  # no outputs of the router's own
    router_hidden: tuple[int, int] = (64, 32)
    router_period: int = 32

    @property
    def _known(self) -> dict[str, int | None]:
        return NUMBER_KINDS

    @property
    def kind_settings(self) -> NumberSettings:  # type: ignore[override]
        """The settings of experts of several kinds as numbers, for the compiled loops."""
        kinds = self.kinds
        assert kinds is not None
        return NumberSettings(
            n_experts=kinds["tree"],
            means=kinds["mean"],
            neighbours=kinds["neighbours"],
            linear=kinds["linear"],
            quadratic=kinds["quadratic"],
            networks=kinds["network"],
            variant=DATA,
            gate=GATES[self.gate] if self.use_router else ACCURACY,
            bagging=float(self.bagging),
            drift=DRIFT[self.drift],
            drift_delta=float(self.drift_delta),
            warning_delta=float(self.warning_delta),
            window=self.window,
            archive=0,
        )


def _is_auto(value: Any) -> bool:
    """Whether this is "auto"; a comparison with an array has no truth value."""
    return isinstance(value, str) and value == "auto"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
