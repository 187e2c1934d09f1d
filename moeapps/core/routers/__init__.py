"""Routers: they score experts for each token and return a :class:`~moeapps.core.routing.Routing`.

One small file per idea. :data:`ROUTERS` holds their short names, which :func:`make_router`, YAML files and the
``router`` argument of every model understand.
"""

import inspect
from typing import Any

from moeapps import registry
from moeapps.core.errors import ConfigError
from moeapps.core.routers.base import Router, router_dtype
from moeapps.core.routers.bilevel import BilevelRouter
from moeapps.core.routers.expert_choice import ExpertChoiceRouter
from moeapps.core.routers.fixed import HashRouter, SMoEDropoutRouter, ThorRouter
from moeapps.core.routers.null_experts import NullExpertsRouter
from moeapps.core.routers.self_scoring import AutonomyRouter, AvgKRouter
from moeapps.core.routers.shared import SharedExpertsRouter
from moeapps.core.routers.soft import SoftRouter, SoftRouting
from moeapps.core.routers.topk import NoisyTopKRouter, TopKRouter
from moeapps.core.routers.topp import TopPRouter

__all__ = [
    "AutonomyRouter",
    "AvgKRouter",
    "BilevelRouter",
    "ExpertChoiceRouter",
    "HashRouter",
    "NoisyTopKRouter",
    "NullExpertsRouter",
    "Router",
    "SMoEDropoutRouter",
    "SharedExpertsRouter",
    "SoftRouter",
    "SoftRouting",
    "ThorRouter",
    "TopKRouter",
    "TopPRouter",
    "make_router",
    "router_class",
    "router_dtype",
]


def router_class(name: str) -> type[Router]:
    """Class of a router by its short name (``moeapps list routers``) or registered import path.

    Raises
    ------
    ConfigError
        If there is none of that name; the nearest name is suggested.
    """
    entry = registry.find("router", name) if isinstance(name, str) else None
    try:
        found = registry.resolve(entry.path if entry is not None else str(name))
    except KeyError:
        known = [entry.name for entry in registry.entries("router")]
        hint = registry.did_you_mean(name, known)
        if not hint and isinstance(name, str) and "." in name:
            hint = f"; it would be of {registry.describe_import(name.rpartition('.')[0])}"
        raise ConfigError(f"router must be one of {', '.join(known)}, got {name!r}{hint}") from None
    if not (isinstance(found, type) and issubclass(found, Router)):
        raise ConfigError(f"router must name a router, but {name!r} is a {getattr(found, '__name__', found)}")
    return found


def make_router(name: str, dim: int, num_experts: int, top_k: int | None = None, **arguments: Any) -> Router:
    """Make a router by name.

    Parameters
    ----------
    name : str
        Short name (``"topk"``, ``"topp"``, ...) or registered import path.
    dim, num_experts : int
        Width d of a token and number of experts E.
    top_k : int, optional
        Experts per token, for routers that have such an argument; their default when None.
    **arguments
        Further arguments of that router.

    Raises
    ------
    ConfigError
        If the name or an argument is not known to it, or a value is impossible.

    Examples
    --------
    >>> make_router("topp", dim=8, num_experts=4, p=0.6)
    TopPRouter(dim=8, num_experts=4, p=0.6, entropy_weight=0.0001, renormalize=False, max_experts=4)
    """
    cls = router_class(name)
    takes = inspect.signature(cls).parameters
    if top_k is not None and "top_k" in takes and "top_k" not in arguments:
        arguments["top_k"] = top_k
    for argument in arguments:
        if argument not in takes:
            hint = registry.did_you_mean(argument, takes, f"it takes {', '.join(takes)}")
            raise ConfigError(f"{cls.__name__} has no argument {argument!r}{hint}")
    return cls(dim, num_experts, **arguments)
