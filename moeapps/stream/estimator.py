"""What the stream estimators share: river's one-by-one interface, scikit-learn's fit and predict, saving."""

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from moeapps.core.checks import check_at_least_zero, check_fraction, check_one_of, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.compiled.mixture import (
    EVENTS,
    FIXED,
    INSTANCES,
    MAX_EVENTS,
    MIX,
    REPLACE,
    RESET,
    ROUTER,
    TOP,
    WARN,
    MixtureSettings,
)
from moeapps.stream.compiled.network import layers_of
from moeapps.stream.encoding import FeatureEncoder, NewThings
from moeapps.stream.engine import RiverEngine, TreeEngine
from moeapps.stream.river_face import RiverFace
from moeapps.stream.saving import StreamSaving
from moeapps.stream.sklearn_face import SklearnFace

if TYPE_CHECKING:
    from moeapps.stream.router import StreamRouter

__all__ = ["StreamEstimator"]

DRIFT = {None: FIXED, "reset": RESET, "replace": REPLACE}


class StreamEstimator(StreamSaving, SklearnFace, RiverFace):
    """Base of :class:`DriftMoEClassifier` and :class:`DriftMoERegressor`.

    Constructor arguments are stored unchanged and checked at the first instance. What was learned is in ``_engine``
    (numbers) and ``_encoder`` (names); both stay None until then.
    """

    n_experts: int
    top_k: int
    expert: Any
    predict_with: str
    learn_with: str
    bagging: float
    drift: Literal["reset", "replace"] | None
    drift_delta: float
    warning_delta: float
    window: int
    grace_period: int
    delta: float
    tie_threshold: float
    feature_share: Any
    max_nodes: int
    use_router: bool
    router_inputs: str
    router_hidden: Any
    router_lr: float
    router_dropout: float
    router_period: int
    temperature: float
    max_features: int
    max_categories: int
    on_bad: Literal["raise", "skip", "impute"]
    seed: int | None

    _numbers = False
    _blend = 0.0
    _engine: TreeEngine | RiverEngine | None
    _encoder: FeatureEncoder

    def _forget(self) -> None:
        """The state of a model that has learned nothing."""
        self._engine = None
        self._encoder = FeatureEncoder(self.max_features, self.max_categories)
        self._skipped = 0
        self._real_seed: int | None = None
        self._names: list[str] | None = None
        self._width: int | None = None

    # --- construction

    def _check_arguments(self) -> None:
        check_sizes(
            n_experts=self.n_experts, top_k=self.top_k, window=self.window, grace_period=self.grace_period,
            max_nodes=self.max_nodes, router_period=self.router_period, max_features=self.max_features,
            max_categories=self.max_categories,
        )  # fmt: skip
        check_at_least_zero(bagging=self.bagging, router_lr=self.router_lr, router_dropout=self.router_dropout)
        check_fraction(
            drift_delta=self.drift_delta, warning_delta=self.warning_delta, delta=self.delta,
            tie_threshold=self.tie_threshold,
        )  # fmt: skip
        check_one_of("drift", self.drift, DRIFT)
        check_one_of("learn_with", self.learn_with, ("all", "top_k"))
        check_one_of("router_inputs", self.router_inputs, ("enriched", "raw"))
        check_one_of("on_bad", self.on_bad, ("raise", "skip", "impute"))
        if self.bagging > 50:
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

    def _settings(self) -> MixtureSettings:
        task = getattr(self, "variant", "data") == "task"
        return MixtureSettings(
            experts=0 if task else self.n_experts,
            task=task,
            top_k=self.top_k,
            temperature=self.temperature,
            predict={"mixture": MIX, "top": ROUTER if task else TOP}[self.predict_with],
            use_router=self.use_router,
            blend=self._blend,
            train_top_k=self.learn_with == "top_k" and not task,
            bagging=float(self.bagging),
            drift=DRIFT[self.drift],
            drift_delta=self.drift_delta,
            warning_delta=self.warning_delta,
            forget=1.0 / self.window,
            forget_blend=1.0 / (5 * self.window),
            enriched=self.router_inputs == "enriched",
            dropout=float(self.router_dropout),
            lr=float(self.router_lr),
            period=self.router_period,
        )

    def _start(self) -> TreeEngine | RiverEngine:
        """Check the arguments and build the engine."""
        check_one_of("predict_with", self.predict_with, ("mixture", "top"))
        self._check_arguments()
        self._real_seed = int(np.random.SeedSequence().generate_state(1)[0]) if self.seed is None else int(self.seed)
        return self._new_engine(self._real_seed)

    def _new_engine(self, seed: int) -> TreeEngine | RiverEngine:
        hidden = (int(self.router_hidden[0]), int(self.router_hidden[1]))
        settings = self._settings()
        if self.expert is not None:
            return RiverEngine(settings, self.expert, hidden, seed, self._numbers, self._decode_row)
        pool: dict[str, Any] = {
            "grace_period": self.grace_period,
            "delta": self.delta,
            "tie_threshold": self.tie_threshold,
            "feature_share": self.feature_share,
            "max_nodes": self.max_nodes,
        }
        return TreeEngine(settings, {**pool, **self._pool_arguments()}, hidden, seed, self._numbers)

    def _pool_arguments(self) -> dict[str, Any]:
        return {}

    def _decode_row(self, row: NDArray[np.float64]) -> dict[Hashable, Any]:
        return self._encoder.decode(row)

    # --- learning

    def _learn_rows(
        self, table: NDArray[np.float64], new: NewThings, targets: Any, added: Mapping[Hashable, int]
    ) -> Any:
        """Learn rows, growing where features or labels (``added``: by row) appear for the first time."""
        engine = self._engine or self._start()
        encoder = self._encoder
        encoder.max_features, encoder.max_categories = self.max_features, self.max_categories
        said = np.empty(len(table), dtype=np.float64 if self._numbers else np.int64)
        cuts = sorted({0, *(row for row, _ in new.features.values()), *added.values()})
        for first, last in zip(cuts, [*cuts[1:], len(table)], strict=True):
            foreseen = self._foresee(engine, table[first : first + 1])
            for _, nominal in encoder.commit(new, first):
                engine.add_features(1, nominal)
            if encoder.codes:
                engine.add_values(min(encoder.num_values, self.max_categories))
            labels = [label for label, row in added.items() if row == first]
            if labels:
                self._add_labels(labels, engine)
            if engine.n_features == 0:  # instances without any feature: one column that is always missing
                engine.add_features(1, False)
                encoder.columns[_NOTHING] = 0
                encoder.nominal.append(False)
                table = np.full((len(table), 1), np.nan)
            width = len(encoder.columns)
            rows = np.ascontiguousarray(table[first:last, :width])
            if rows.shape[1] < width:
                rows = np.column_stack([rows, np.full((len(rows), width - rows.shape[1]), np.nan)])
            said[first:last] = engine.learn(rows, self._codes(targets[first:last]))
            said[first] = foreseen
        encoder.count(new)
        self._engine = engine
        return said

    def _foresee(self, engine: TreeEngine | RiverEngine, row: NDArray[np.float64]) -> float:
        """Prediction for an instance that brings something new, before room is made for it; NaN or -1 for none."""
        if engine.n_features == 0 or engine.n_classes == 0:
            return math.nan if self._numbers else -1
        out, _ = engine.predict(np.ascontiguousarray(row[:, : engine.n_features]))
        return float(out[0, 0] if self._numbers else out[0].argmax())

    def _add_labels(self, labels: list[Hashable], engine: TreeEngine | RiverEngine) -> None:
        raise NotImplementedError

    def _codes(self, targets: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _check_targets(self, targets: Any) -> dict[Hashable, int]:
        raise NotImplementedError

    def learn_one(self, x: dict[Hashable, Any], y: Any) -> None:
        """Learn one instance.

        Args:
            x: Features by name: numbers, or categories (text, or anything else that can be hashed); a missing feature
                is None, NaN, or not there. New names are welcome.
            y: The target.

        Raises:
            DataError: If the target cannot be learned, or a feature has a bad value and ``on_bad`` is "raise". Nothing
                has been learned or changed then.
        """
        self._learn_one(x, y)

    def _learn_one(self, x: dict[Hashable, Any], y: Any) -> Any:
        """Learn one instance and return what was predicted for it before (a code); None if it was skipped."""
        added = self._check_targets([y])
        new = NewThings()
        try:
            row = self._encoder.encode_one(x, self.on_bad == "impute", new)
        except DataError:
            if self.on_bad != "skip":
                raise
            self._skipped += 1
            return None
        assert row is not None
        if new.features or new.values or added or self._engine is None:
            row = row + (self._encoder.encode_new(x, new) if new.features else [])
            return self._learn_rows(np.array([row], dtype=np.float64).reshape(1, -1), new, [y], added)[0]
        if new.bad or new.ignored:
            self._encoder.count(new)
        return self._engine.learn(np.array([row]), self._codes([y]))[0]

    def test_then_train(
        self, rows: Sequence[dict[Hashable, Any]], targets: Sequence[Any]
    ) -> tuple[list[Any], dict[int, DataError]]:
        """Predict each instance, then learn it: what a stream processor does, in one pass.

        The same as :meth:`predict_one` and :meth:`learn_one` in turns, but an instance that is refused does not stop
        the others.

        Args:
            rows: n instances.
            targets: Their n targets.

        Returns:
            The n predictions (None where there was none), and why an instance was refused, by its place.
        """
        said: list[Any] = [None] * len(rows)
        refused: dict[int, DataError] = {}
        waiting: list[list[float]] = []
        places: list[int] = []

        def flush() -> None:
            if waiting:
                assert self._engine is not None
                codes = self._engine.learn(np.array(waiting), self._codes([targets[place] for place in places]))
                for place, code in zip(places, codes.tolist(), strict=True):
                    said[place] = self._label_of(code)
                waiting.clear()
                places.clear()

        for place, (x, y) in enumerate(zip(rows, targets, strict=True)):
            new = NewThings()
            try:
                added = self._check_targets([y])
                row = self._encoder.encode_one(x, self.on_bad == "impute", new)
            except DataError as error:
                if self.on_bad == "skip":
                    self._skipped += 1
                refused[place] = error
                continue
            assert row is not None
            if new.features or new.values or added or self._engine is None:
                flush()
                row = row + self._encoder.encode_new(x, new)
                code = self._learn_rows(np.array([row], dtype=np.float64).reshape(1, -1), new, [y], added)[0]
                said[place] = self._label_of(code)
                continue
            self._encoder.count(new)
            waiting.append(row)
            places.append(place)
        flush()
        return said, refused

    def _label_of(self, code: Any) -> Any:
        """The prediction that an engine's number stands for."""
        raise NotImplementedError

    def learn_many(self, X: pd.DataFrame, y: Any) -> None:
        """Learn the rows of a frame, one after the other: the same as :meth:`learn_one` in a loop, bit for bit.

        Args:
            X: ``(n, F)`` frame; columns are features.
            y: ``(n,)`` targets.

        Raises:
            DataError: As :meth:`learn_one`; then no row has been learned.
        """
        self._learn_many(X, y)

    def _learn_many(self, X: pd.DataFrame, y: Any) -> tuple[Any, NDArray[np.bool_]]:
        """Learn and return what was predicted before (codes), and which rows were learned."""
        if not isinstance(X, pd.DataFrame):
            raise DataError(f"X must be a pandas DataFrame, got {type(X).__name__}")
        targets = list(y) if not isinstance(y, pd.Series | np.ndarray) else y.tolist()
        if len(targets) != len(X):
            raise DataError(f"X has {len(X)} rows, y has {len(targets)}")
        kept = np.ones(len(X), dtype=bool)
        new = NewThings()
        try:
            table = self._encoder.encode_frame(X, self.on_bad == "impute", new)
        except DataError:
            if self.on_bad != "skip":
                raise
            new = NewThings()
            kept = self._good_rows(X)
            X, targets = X[kept], [target for target, good in zip(targets, kept, strict=True) if good]
            table = self._encoder.encode_frame(X, False, new)
        added = self._check_targets(targets)
        self._skipped += int(len(kept) - kept.sum())
        return (self._learn_rows(table, new, targets, added) if len(table) else np.empty(0)), kept

    def _good_rows(self, X: pd.DataFrame) -> NDArray[np.bool_]:
        """Rows without a bad value, found one by one, since what is bad depends on what came before."""
        trial = copy.deepcopy(self._encoder)
        good = np.zeros(len(X), dtype=bool)
        for i, x in enumerate(X.to_dict("records")):
            new = NewThings()
            try:
                trial.encode_one(x, False, new)
            except DataError:
                continue
            trial.commit(new)
            good[i] = True
        return good

    # --- predicting

    def _outputs(self, table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert self._engine is not None
        return self._engine.predict(np.ascontiguousarray(table))

    def _encode_one(self, x: dict[Hashable, Any]) -> NDArray[np.float64]:
        row = self._encoder.encode_one(x, self.on_bad != "raise")
        return np.array([row], dtype=np.float64).reshape(1, -1)

    def _encode_frame(self, X: pd.DataFrame) -> NDArray[np.float64]:
        if not isinstance(X, pd.DataFrame):
            raise DataError(f"X must be a pandas DataFrame, got {type(X).__name__}")
        return self._encoder.encode_frame(X, self.on_bad != "raise")

    def expert_weights(self, X: Any) -> pd.DataFrame:
        """Weights of the experts in the prediction of each row: ``(n, E)``, rows sum to 1.

        Args:
            X: A frame, an array, or a dict (one instance).
        """
        self._need_fitted()
        if isinstance(X, Mapping):
            return pd.DataFrame(self._outputs(self._encode_one(dict(X)))[1])
        frame = X if isinstance(X, pd.DataFrame) else pd.DataFrame(np.asarray(X))
        return pd.DataFrame(self._outputs(self._encode_frame(frame))[1], index=frame.index)

    def torch_router(self) -> "StreamRouter":
        """Copy of the router as a torch module, in evaluation mode.

        Its inputs are what the router sees: with ``router_inputs="raw"`` the features in the order of
        ``router_features_``; with "enriched", before them 2 a - 1 for each expert's recent accuracy a (data variant),
        and every feature standardised and cut off at 5. Outputs beyond the experts are the router's logits of classes.
        """
        from moeapps.stream.router import StreamRouter

        self._need_fitted()
        assert self._engine is not None
        network = self._engine.mixture.network
        inputs, *hidden, outputs = (int(size) for size in network.sizes)
        router = StreamRouter(
            inputs, outputs, min(self.top_k, outputs), (hidden[0], hidden[1]), self.router_dropout, self.temperature
        )
        router.load_layers(tuple(torch.from_numpy(part) for part in layers_of(network.parameters, network.sizes)))
        return router.eval()

    @property
    def router_features_(self) -> list[Hashable]:
        """Names of the features, in the order of their columns."""
        return list(self._encoder.columns)

    # --- what happened

    @property
    def n_seen_(self) -> int:
        """Instances learned so far."""
        return 0 if self._engine is None else int(self._engine.mixture.counters[INSTANCES])

    @property
    def n_skipped_(self) -> int:
        """Instances left out because of a bad value (``on_bad="skip"``)."""
        return self._skipped

    @property
    def n_bad_(self) -> int:
        """Bad values that were taken for missing (``on_bad="impute"``)."""
        return self._encoder.bad

    @property
    def n_ignored_(self) -> int:
        """Values of features beyond ``max_features``."""
        return self._encoder.ignored

    @property
    def drift_events_(self) -> pd.DataFrame:
        """Births and deaths of experts: ``instance``, ``expert``, ``event`` ("warning" or "renewed").

        The last 1,024 of them; at a warning a background tree is born, at a renewal the expert dies.
        """
        if self._engine is None:
            return pd.DataFrame(columns=["instance", "expert", "event"])
        mixture = self._engine.mixture
        total = int(mixture.counters[EVENTS])
        order = np.arange(max(0, total - MAX_EVENTS), total) % MAX_EVENTS
        frame = pd.DataFrame(mixture.events[order], columns=["instance", "expert", "event"])
        frame["event"] = np.where(frame["event"] == WARN, "warning", "renewed")
        return frame

    @property
    def activation_(self) -> NDArray[np.float64]:
        """``(E,)`` sum of the weights that each expert had in the predictions of all learned instances."""
        return np.zeros(0) if self._engine is None else self._engine.mixture.activation.copy()

    @property
    def nbytes_(self) -> int:
        """Bytes of the learned arrays."""
        if isinstance(self._engine, TreeEngine):
            return sum(array.nbytes for array in tree_arrays(self._engine).values())
        return 0


_NOTHING = "(no features)"
"""Name of the column that stands in where instances have no features at all."""
