"""Fewer experts in a fitted tabular estimator: pruned or merged by how rows use them."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from sklearn.utils.validation import check_is_fitted

from moeapps.core.config import field_names
from moeapps.core.errors import ConfigError
from moeapps.core.layer import MoE
from moeapps.core.routers import Router, make_router
from moeapps.core.surgery import ExpertUse, measure_use, merge_experts, prune_experts
from moeapps.tables.network import TabularConfig, TabularMoE

__all__ = ["TabularSurgery"]

USE_ROWS = 1024
"""Rows per forward pass that measures the use of experts."""


class TabularSurgery:
    """Adds :meth:`prune` and :meth:`merge` to the tabular estimators."""

    model_: TabularMoE
    merged_: list[list[list[int]]] | None
    router: str
    router_args: Mapping[str, Any] | None
    top_k: int
    share_router: bool
    _fit_params: dict[str, Any] | None
    _optimizer_state: Any

    if TYPE_CHECKING:  # of the estimator

        def set_params(self, **params: Any) -> Self: ...  # noqa: D102
        def _as_fitted(self) -> dict[str, Any]: ...
        def _encoded(self, X: Any) -> tuple[Any, Any]: ...

    def prune(self, num_experts: int, X: Any) -> Self:
        """Return a copy that keeps, in each block, the experts that these rows use most.

        Parameters
        ----------
        num_experts : int
            How many experts to keep per block.
        X : DataFrame or array of shape (n, P)
            Rows that matter: training rows, or those of the task that the smaller model is for.

        Returns
        -------
        estimator
            Fitted, with fewer experts. It can be saved, and trained on with ``partial_fit``.
        """
        pruned = self._operated()
        pruned.model_, _ = prune_experts(self.model_, num_experts, self._use(X))
        block: MoE = pruned.model_.blocks[0]  # type: ignore[assignment]
        pruned.set_params(num_experts=num_experts, **pruned._router_params(block.router))
        changed = {name: getattr(pruned, name) for name in field_names(TabularConfig)}
        pruned._fit_params = {**pruned._as_fitted(), **changed}
        return pruned

    def merge(self, num_experts: int, X: Any, *, globally: bool = False) -> Self:
        """Return a copy in which, in each block, similar experts are merged, weighted by how these rows use them.

        Parameters and what is returned are as in :meth:`prune`; with ``globally=True`` the number is the mean over the
        blocks, see :func:`~moeapps.core.surgery.merge_experts`.
        """
        merged = self._operated()
        merged.model_, reports = merge_experts(self.model_, num_experts, self._use(X), globally=globally)
        merged.merged_ = [[list(group) for group in report.groups] for report in reports.values()]
        return merged

    def _router_params(self, router: Router) -> dict[str, Any]:
        """``top_k`` and ``router_args`` from which this router would be made again."""
        now = router.arguments()
        top_k, args = now.get("top_k", self.top_k), dict(self.router_args or {})
        plain = make_router(self.router, router.dim, router.num_experts, top_k).arguments()
        changed = {name for name in now if name != "top_k" and now[name] != plain[name]}
        args |= {name: now[name] for name in now if name in changed or name in args}
        return {"top_k": top_k, "router_args": args or self.router_args}

    def _operated(self) -> Self:
        check_is_fitted(self, "model_")
        if self.share_router:
            raise ConfigError("experts of blocks that share a router cannot be pruned or merged: share_router=False")
        if self.merged_ is not None:
            raise ConfigError("this model was merged already: prune or merge the one it came from")
        operated = copy.copy(self)
        operated._optimizer_state = None
        # what set_params has changed since is not what this network was built from
        return operated.set_params(**{name: self._as_fitted()[name] for name in field_names(TabularConfig)})

    def _use(self, X: Any) -> dict[str, ExpertUse]:
        numbers, codes = (torch.from_numpy(part) for part in self._encoded(X))
        return measure_use(self.model_, zip(numbers.split(USE_ROWS), codes.split(USE_ROWS), strict=True))
