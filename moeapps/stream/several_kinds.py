"""What the stream estimators tell of experts of several kinds: who they are, what each predicts, how they are mixed."""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.stream.compiled.archive import MAX_RETURNS
from moeapps.stream.engine import KindEngine, RiverEngine, TreeEngine
from moeapps.stream.values import LARGEST

__all__ = ["SeveralKinds"]


class SeveralKinds:
    """Mixed into the stream estimators."""

    expert: Any
    _engine: TreeEngine | RiverEngine | None
    _labels: Any

    if TYPE_CHECKING:  # the estimator's

        def _encode_one(self, x: dict[Hashable, Any]) -> NDArray[np.float64]: ...

    def votes_one(self, x: dict[Hashable, Any]) -> NDArray[Any] | None:
        """Class probabilities of every expert ``(E, C)``, for :meth:`learn_one` when the label comes late.

        Of a regressor their predictions ``(E, 1)``. None before any label was seen, and where the experts are not of
        several kinds. Nothing is changed.
        """
        if not isinstance(self._engine, KindEngine) or self._engine.n_classes == 0:
            return None
        votes: NDArray[Any] = self._engine.votes(self._encode_one(x))[0]
        return votes if self._engine.numbers else votes.astype(np.float32)

    def _checked_votes(self, votes: Any) -> NDArray[np.float64]:
        """Votes as ``(1, E, C)``."""
        table = np.asarray(votes, dtype=np.float64)
        if not isinstance(self._engine, KindEngine):
            raise DataError("votes are of experts of several kinds, which this model does not have")
        experts, classes = self._engine.n_all_experts, self._engine.n_classes
        if table.ndim != 2 or table.shape[0] != experts or not 0 < table.shape[1] <= classes:
            raise DataError(f"votes must have shape ({experts}, at most {classes}), got {table.shape}")
        if self._engine.numbers:
            if not (np.abs(table) < LARGEST).all():
                raise DataError(f"votes must be finite numbers below {LARGEST:g}, as votes_one gave them")
        elif not ((table >= 0) & (table <= 1)).all():
            raise DataError("votes must be probabilities, as votes_one gave them")
        return table[None]

    @property
    def expert_names_(self) -> list[str]:
        """Kind and number of each expert, in the order of ``activation_``."""
        if self._engine is None:
            return []
        if isinstance(self._engine, KindEngine):
            return self._engine.expert_names()
        kind = "tree" if isinstance(self._engine, TreeEngine) else type(self.expert).__name__
        return [f"{kind} {e}" for e in range(self._engine.settings.n_experts)]

    @property
    def _expert_columns(self) -> list[str]:
        """Name of each expert's column in tables of shares: with its kind, where there are several kinds."""
        if isinstance(self._engine, KindEngine):
            return [f"expert {name}" for name in self._engine.expert_names()]
        return [f"expert {e}" for e in range(len(self.expert_names_))]

    @property
    def gate_(self) -> pd.DataFrame:
        """The ways of mixing experts of several kinds, one per row.

        ``loss`` (log loss, or absolute error in units of the target's standard deviation, over about the last 500
        instances, of predictions made before the label was learned),
        ``answered`` (share of the learned instances that it has answered), ``answers`` (whether it answers now).
        """
        if not isinstance(self._engine, KindEngine):
            raise AttributeError("gate_ is there once experts of several kinds have learned an instance")
        return pd.DataFrame(self._engine.gate_table())

    @property
    def archive_(self) -> pd.DataFrame:
        """Retired trees that are kept, one per row.

        ``expert`` (which it was), ``retired`` (at which instance), ``accuracy`` (in its best time), and for each label
        the share of it that the tree was right of, before it was retired.
        """
        engine = self._engine
        if not isinstance(engine, KindEngine) or engine.archive is None:
            raise AttributeError(
                "archive_ is there once experts of several kinds with trees have learned an instance, unless archive=0 "
                "or drift=None"
            )
        archive = engine.archive
        kept = archive.retired >= 0
        frame = pd.DataFrame(
            {"expert": archive.origin, "retired": archive.retired, "accuracy": archive.accuracy}, dtype=object
        ).astype({"expert": int, "retired": int, "accuracy": float})
        where = pd.DataFrame(archive.where, columns=pd.Index(self._labels.labels, dtype=object))
        return pd.concat([frame, where], axis=1)[kept].sort_values("retired", ignore_index=True)

    @property
    def recurrences_(self) -> pd.DataFrame:
        """Archived trees that came back, one per row; the last 256.

        ``instance`` (when), ``expert`` (whose place it took), ``retired`` (when it had been retired), ``accuracy``
        (over about the last 50 instances), ``instead_of`` (the same of the tree that it replaced).
        """
        columns = ["instance", "expert", "retired", "accuracy", "instead_of"]
        engine = self._engine
        if not isinstance(engine, KindEngine) or engine.archive is None:
            return pd.DataFrame(columns=columns)
        total = int(engine.archive.counters[0])
        order = np.arange(max(0, total - MAX_RETURNS), total) % MAX_RETURNS
        frame = pd.DataFrame(engine.archive.returns[order], columns=columns)
        return frame.astype({"instance": int, "expert": int, "retired": int})
