"""What the stream estimators share: river's one-by-one interface, scikit-learn's fit and predict, saving."""

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from moeapps.core.config import config_from
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.compiled.mixture_state import EVENTS, INSTANCES, MAX_EVENTS, WARN
from moeapps.stream.compiled.network import layers_of
from moeapps.stream.config import DriftMoEConfig
from moeapps.stream.encoding import Encoded, FeatureEncoder, OnBad, UnseenFeatures
from moeapps.stream.engine import KindEngine, NumberEngine, RiverEngine, TreeEngine
from moeapps.stream.labels import targets_of
from moeapps.stream.river_face import RiverFace
from moeapps.stream.row_encoding import NO_FEATURES
from moeapps.stream.saving import StreamSaving
from moeapps.stream.several_kinds import SeveralKinds
from moeapps.stream.sklearn_face import SklearnFace, order_of

if TYPE_CHECKING:
    from moeapps.stream.router import StreamRouter

__all__ = ["StreamEstimator"]


class StreamEstimator(SeveralKinds, StreamSaving, SklearnFace, RiverFace):
    """Base of :class:`DriftMoEClassifier` and :class:`DriftMoERegressor`.

    Constructor arguments are stored unchanged and checked at the first instance. What was learned is in ``_engine``
    (numbers) and ``_encoder`` (names).

    How an instance is learned:

    1. The target is checked, and the encoder turns the features into a row (:class:`Encoded`). Nothing has changed so
       far, so an instance with a bad value can be refused.
    2. Where something is unseen (a feature, a category, a label), the engine predicts with what it knows, then features
       and labels are committed and the engine grows.
    3. The engine predicts and learns the row (:mod:`~moeapps.stream.compiled.mixture` lists the steps).

    A batch is cut before each row that has something unseen, so a batch and a loop over its rows end in the same state.
    """

    expert: Any
    on_bad: OnBad
    max_features: int
    max_categories: int
    missing_values: Any
    column_types: Any
    n_jobs: int | None

    _numbers = False
    _engine: TreeEngine | RiverEngine | None
    _features: FeatureEncoder

    def _reset(self) -> None:
        """Set the state of a model that has learned nothing."""
        self._engine = None
        self._start_params = None
        self._features = FeatureEncoder(self.max_features, self.max_categories, self.on_bad, [], None)
        self._skipped = 0
        self._real_seed: int | None = None
        self._names: list[str] | None = None
        self._width: int | None = None
        self._order: list[Hashable] | None = None

    @property
    def _encoder(self) -> FeatureEncoder:
        """The encoder, with the present settings: ``set_params`` may change them between two instances."""
        encoder = self._features
        encoder.configure(
            self.max_features, self.max_categories, self.on_bad, self.missing_values, self.column_types
        )  # fmt: skip
        return encoder

    # --- construction

    def _config(self) -> DriftMoEConfig:
        """The settings, checked."""
        return config_from(DriftMoEConfig, self)

    def _start(self) -> TreeEngine | RiverEngine:
        """Check the arguments and build the engine."""
        config = self._config()
        self._start_params = {
            name: copy.deepcopy(value) if isinstance(value, dict | list) else value
            for name, value in self.get_params(deep=False).items()
        }
        self._real_seed = (
            int(np.random.SeedSequence().generate_state(1)[0]) if config.seed is None else int(config.seed)
        )
        return self._new_engine(self._real_seed)

    def _new_engine(self, seed: int) -> TreeEngine | RiverEngine:
        config = self._config()
        if self.expert is not None:
            return RiverEngine(config.mixture, self.expert, config.hidden, seed, self._numbers, self._decode_row)
        if config.kinds is not None:
            engine: type[KindEngine] = NumberEngine if self._numbers else KindEngine
            return engine(config.kind_settings, config.trees, seed, config.n_jobs)
        return TreeEngine(config.mixture, config.trees, config.hidden, seed, self._numbers)

    def _decode_row(self, row: NDArray[np.float64]) -> dict[Hashable, Any]:
        return self._features.decode(row)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; a pickle of 0.1 has the encoder and the settings of its engine under other names."""
        older = {"missing_values": [], "column_types": None, "_order": order_of(state["_names"], state["_width"])}
        super().__setstate__({**older, **state})
        if "_encoder" in self.__dict__:
            self._features = self.__dict__.pop("_encoder")
            if self._engine is not None:
                self._engine.settings = self._config().mixture._replace(n_experts=self._engine.settings.n_experts)
                if isinstance(self._engine, TreeEngine):
                    self._engine.tree_config = self._config().trees

    # --- learning

    def _learn_encoded(
        self, encoded: Encoded, targets: Any, added: Mapping[Hashable, int], **late: NDArray[Any]
    ) -> NDArray[Any]:
        """Learn rows, growing where features or labels (``added``: by row) appear for the first time.

        ``late`` may have the experts' ``votes`` of when a single instance came.

        Returns
        -------
        array of shape (n,)
            What was predicted before: classes, or numbers.
        """
        encoder = self._features
        table = encoded.table
        if len(table) > 1 and isinstance(self._engine, KindEngine):
            self._engine.n_jobs = getattr(self, "n_jobs", None)  # set_params may have changed it
        if encoded.unseen is None and not added and self._engine is not None:
            if encoded.bad_names or encoded.ignored:
                encoder.count(encoded)
            return self._engine.learn(table, self._codes(targets), **late)
        engine = self._engine or self._start()
        predictions = np.empty(len(table), dtype=np.float64 if self._numbers else np.int64)
        first_rows = [row for row, _ in encoded.unseen.features.values()] if encoded.unseen else []
        labels: dict[int, list[Hashable]] = {}
        for label, row in added.items():
            labels.setdefault(row, []).append(label)
        cuts = sorted({0, *first_rows, *labels})
        for first, last in zip(cuts, [*cuts[1:], len(table)], strict=True):
            before = self._predict_before_growth(engine, table[first : first + 1], encoded.unseen)
            if self._grow(engine, encoded, first, labels.get(first, [])):
                table = np.column_stack([np.full(len(table), np.nan), table])
            rows = _padded(table[first:last], engine.n_features)
            predictions[first:last] = engine.learn(rows, self._codes(targets[first:last]), **late)
            predictions[first] = before
        encoder.count(encoded)
        self._engine = engine
        return predictions

    def _grow(self, engine: TreeEngine | RiverEngine, encoded: Encoded, row: int, labels: list[Hashable]) -> bool:
        """Commit what is unseen up to a row, and make room for it in the engine.

        Returns
        -------
        bool
            Whether a first column had to be added that is always missing, since no feature is known.
        """
        encoder = self._features
        if encoded.unseen is not None:
            nominal, room = encoder.commit(encoded.unseen, row)
            if nominal:
                engine.add_features(nominal)
            if room:
                engine.add_values(room)
        if labels:
            self._add_labels(labels, engine)
        if engine.n_features > 0:
            return False
        engine.add_features([False])
        encoder.columns[NO_FEATURES] = 0
        encoder.nominal.append(False)
        return True

    def _predict_before_growth(
        self, engine: TreeEngine | RiverEngine, row: NDArray[np.float64], unseen: UnseenFeatures | None
    ) -> float:
        """Prediction for an instance with something unseen, from what was known before it; NaN or -1 for none."""
        if engine.n_features == 0 or engine.n_classes == 0:
            return math.nan if self._numbers else -1
        known = np.array(row[:, : engine.n_features])
        for name in unseen.values if unseen is not None else ():
            column = self._features.columns.get(name)
            if column is not None and known[0, column] >= len(self._features.codes[name]):
                known[0, column] = -1.0  # as a category that predict_one does not know
        out, _ = engine.predict(known)
        return float(out[0, 0] if self._numbers else out[0].argmax())

    def _add_labels(self, labels: list[Hashable], engine: TreeEngine | RiverEngine) -> None:
        raise NotImplementedError

    def _codes(self, targets: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _check_targets(self, targets: Any) -> dict[Hashable, int]:
        raise NotImplementedError

    def _label_of(self, code: Any) -> Any:
        """The label, or number, that an engine's prediction stands for."""
        raise NotImplementedError

    def learn_one(self, x: dict[Hashable, Any], y: Any, votes: Any = None) -> None:
        """Learn one instance.

        Parameters
        ----------
        x : dict
            Features by name: numbers, or categories (text, or anything else that can be hashed). A missing feature is
            None, NaN, or absent. New names may appear at any time.
        y : label or float
            The target.
        votes : array, optional
            What :meth:`votes_one` gave when the instance came, where the label is late and other instances have been
            learned since: the experts are then judged by what they knew.

        Raises
        ------
        DataError
            If the target cannot be learned, the votes are not this model's, or a feature has a bad value and ``on_bad``
            is "raise". Nothing has been learned or changed then.
        """
        added = self._check_targets([y])
        late = {} if votes is None else {"votes": self._checked_votes(votes)}
        try:
            encoded = self._encoder.encode(x)
        except DataError:
            if self.on_bad != "skip":
                raise
            self._skipped += 1
            return
        self._learn_encoded(encoded, [y], added, **late)

    def test_then_train(
        self, rows: Sequence[dict[Hashable, Any]], targets: Sequence[Any]
    ) -> tuple[list[Any], dict[int, DataError]]:
        """Predict each instance, then learn it, in one pass, as a prequential evaluation or a stream processor does.

        The same as :meth:`predict_one` and :meth:`learn_one` in turns, but an instance that is refused does not stop
        the others.

        Parameters
        ----------
        rows : sequence of dict
            n instances.
        targets : sequence
            Their n targets.

        Returns
        -------
        predictions : list
            n predictions; None where there was none.
        refused : dict
            Why an instance was refused, by its index.
        """
        predictions: list[Any] = [None] * len(rows)
        refused: dict[int, DataError] = {}
        waiting: list[Sequence[float]] = []  # rows with nothing unseen are learned together, in one compiled call
        indices: list[int] = []

        def learn(encoded: Encoded, indices: list[int], added: Mapping[Hashable, int]) -> None:
            codes = self._learn_encoded(encoded, [targets[index] for index in indices], added)
            for index, code in zip(indices, codes.tolist(), strict=True):
                predictions[index] = self._label_of(code)

        encoder = self._encoder
        for index, (x, y) in enumerate(zip(rows, targets, strict=True)):
            try:
                added = self._check_targets([y])
                encoded = encoder.encode(x)
            except DataError as error:
                if self.on_bad == "skip":
                    self._skipped += 1
                refused[index] = error
                continue
            if encoded.unseen is None and not added and self._engine is not None:
                if encoded.bad_names or encoded.ignored:
                    encoder.count(encoded)
                waiting.extend(encoded.rows)
                indices.append(index)
                continue
            if waiting:
                learn(Encoded(waiting), indices, {})
                waiting, indices = [], []
            learn(encoded, [index], added)
        if waiting:
            learn(Encoded(waiting), indices, {})
        return predictions, refused

    def check_one(self, x: dict[Hashable, Any], y: Any) -> None:
        """Raise the DataError that :meth:`learn_one` would raise, and learn nothing."""
        self._check_targets([y])
        if self.on_bad != "skip":
            self._encoder.encode(x)

    def learn_many(self, X: pd.DataFrame, y: Any) -> None:
        """Learn the rows of a frame, one after the other: the same as :meth:`learn_one` in a loop, bit for bit.

        Parameters
        ----------
        X : DataFrame of shape (n, F)
            Columns are features; also a polars frame or an Arrow table.
        y : array of shape (n,)
            Targets.

        Raises
        ------
        DataError
            As :meth:`learn_one`; then no row has been learned.
        """
        self._learn_frame(X, y)

    def test_then_train_many(self, X: pd.DataFrame, y: Any) -> list[Any]:
        """:meth:`learn_many`, and what was predicted for each row before it; None where there was no prediction."""
        codes, good = self._learn_frame(X, y)
        learned = iter(codes.tolist())
        return [self._label_of(next(learned)) if kept else None for kept in good]

    def _learn_frame(self, X: pd.DataFrame, y: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What was predicted for the learned rows, and which rows these are."""
        X = as_frame(X, "X")
        targets = targets_of(y)
        if len(targets) != len(X):
            raise DataError(f"X has {len(X)} rows, y has {len(targets)}")
        good, skipped = np.ones(len(X), dtype=bool), 0
        try:
            encoded = self._encoder.encode_frame(X)
        except DataError:
            if self.on_bad != "skip":
                raise
            good = self._good_rows(X)
            skipped = int(len(good) - good.sum())
            X, targets = X[good], [target for target, kept in zip(targets, good, strict=True) if kept]
            encoded = self._encoder.encode_frame(X)
        added = self._check_targets(targets)
        self._skipped += skipped
        return (self._learn_encoded(encoded, targets, added) if len(targets) else np.zeros(0)), good

    def _good_rows(self, X: pd.DataFrame) -> NDArray[np.bool_]:
        """Rows without a bad value, found one by one, since what is bad depends on what came before."""
        trial = copy.deepcopy(self._encoder)
        good = np.zeros(len(X), dtype=bool)
        for i, x in enumerate(X.to_dict("records")):
            try:
                encoded = trial.encode(x)
            except DataError:
                continue
            if encoded.unseen is not None:
                trial.commit(encoded.unseen)
            good[i] = True
        return good

    # --- predicting

    def _outputs(self, table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert self._engine is not None
        return self._engine.predict(np.ascontiguousarray(table))

    def _encode_one(self, x: dict[Hashable, Any]) -> NDArray[np.float64]:
        return self._encoder.encode_known(x)

    def _encode_frame(self, X: pd.DataFrame) -> NDArray[np.float64]:
        return self._encoder.encode_known_frame(X)

    def expert_weights(self, X: Any) -> pd.DataFrame:
        """Weights of the experts in the prediction of each row: ``(n, E)``, rows sum to 1.

        Columns are numbers of trees, or ``expert_names_`` where experts are of several kinds.

        Parameters
        ----------
        X : object
            A frame, an array, or a dict (one instance).
        """
        self._need_fitted()
        names = self.expert_names_ if isinstance(self._engine, KindEngine) else None
        if isinstance(X, Mapping):
            return pd.DataFrame(self._outputs(self._encode_one(dict(X)))[1], columns=names)
        frame = as_frame(X, "X") if is_table(X) else self._named(pd.DataFrame(np.asarray(X)))
        return pd.DataFrame(self._outputs(self._encode_frame(frame))[1], index=frame.index, columns=names)

    def torch_router(self) -> "StreamRouter":
        """Copy of the router as a torch module, in evaluation mode.

        Its inputs are those of the compiled router: with ``router_inputs="raw"`` the features in the order of
        ``router_features_``; with "enriched", before them 2 a - 1 for each expert's recent accuracy a (data variant),
        and every feature standardised and cut off at 5. Outputs beyond the experts are the router's logits of classes.
        """
        from moeapps.stream.router import StreamRouter

        self._need_fitted()
        assert self._engine is not None
        if isinstance(self._engine, KindEngine):
            raise ConfigError("experts of several kinds have no neural router: experts=None makes a model with one")
        network = self._engine.mixture.network
        inputs, *hidden, outputs = (int(size) for size in network.sizes)
        config = self._config()
        router = StreamRouter(
            inputs, outputs, min(config.top_k, outputs), (hidden[0], hidden[1]), config.router_dropout,
            config.temperature,
        )  # fmt: skip
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
        """Instances skipped because of a bad value (``on_bad="skip"``)."""
        return self._skipped

    @property
    def n_bad_(self) -> int:
        """Bad values that were imputed, taken for missing (``on_bad="impute"``)."""
        return self._encoder.bad

    @property
    def n_ignored_(self) -> int:
        """Values of features beyond ``max_features``."""
        return self._encoder.ignored

    @property
    def columns_(self) -> pd.DataFrame:
        """The features, one per row: what was decided about each, and what was seen of it.

        ``kind`` ("number" or "category"), ``why``, ``categories`` (their number), ``missing`` (learned instances in
        which the feature was missing or absent), ``bad`` (bad values that were imputed).
        """
        encoder = self._encoder
        seen = self.n_seen_
        present = [] if self._engine is None else self._engine.mixture.moments[:, 0].tolist()
        rows = [
            {
                "kind": "category" if nominal else "number",
                "why": encoder.why.get(name, ""),
                "categories": len(encoder.codes[name]) if nominal else 0,
                "missing": seen - int(present[column]),
                "bad": encoder.bad_names.get(name, 0),
            }
            for (name, column), nominal in zip(encoder.columns.items(), encoder.nominal, strict=True)
        ]
        index = pd.Index(list(encoder.columns), dtype=object, name="column", tupleize_cols=False)
        return pd.DataFrame(rows, index=index, columns=["kind", "why", "categories", "missing", "bad"])

    @property
    def drift_events_(self) -> pd.DataFrame:
        """Warnings and replacements: ``instance``, ``expert``, ``event`` ("warning" or "renewed"); the last 1,024.

        A warning starts a background tree; at a renewal it, or an empty tree, replaces the expert.
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


def _padded(rows: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The first ``width`` columns of rows; columns that are not there yet are missing."""
    if rows.shape[1] < width:
        rows = np.column_stack([rows, np.full((len(rows), width - rows.shape[1]), np.nan)])
    return np.ascontiguousarray(rows[:, :width])
