"""What the stream estimators share: river's one-by-one interface, scikit-learn's fit and predict, saving."""

import copy
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.config import config_from
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.frames import as_frame, is_table
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.compiled.mixture_state import EVENTS, INSTANCES, MAX_EVENTS, WARN
from moeapps.stream.compiled.network import layers_of
from moeapps.stream.config import DriftMoEConfig
from moeapps.stream.encoding import FeatureEncoder
from moeapps.stream.engine import KindEngine, NumberEngine, RiverEngine, TreeEngine
from moeapps.stream.learning import StreamLearning
from moeapps.stream.river_face import RiverFace
from moeapps.stream.saving import StreamSaving
from moeapps.stream.several_kinds import SeveralKinds
from moeapps.stream.sklearn_face import SklearnFace, order_of

if TYPE_CHECKING:
    from moeapps.stream.router import StreamRouter

__all__ = ["StreamEstimator"]


class StreamEstimator(SeveralKinds, StreamSaving, SklearnFace, StreamLearning, RiverFace):
    """Base of :class:`DriftMoEClassifier` and :class:`DriftMoERegressor`.

    Constructor arguments are stored unchanged and checked at the first instance. What was learned is in ``_engine``
    (numbers) and ``_encoder`` (names).

    How they learn is in :class:`~moeapps.stream.learning.StreamLearning`.
    """

    expert: Any
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
        router.load_layers(layers_of(network.parameters, network.sizes))
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
