"""What moeapps 0.1 wrote goes on as it was, where a router's defaults have changed since.

A router's class says which defaults (``defaults_of_0_1``). Files and checkpoints of today say that they were written
under today's; one that does not is of 0.1. Arguments that it names stay as they are.
"""

from collections.abc import Mapping
from typing import Any

from moeapps.core.errors import ConfigError

__all__ = ["DEFAULTS", "DEFAULTS_ENTRY", "arguments_of_0_1"]

DEFAULTS = 2
"""Number of the defaults; those of 0.1 had none."""

DEFAULTS_ENTRY = "moeapps_defaults"
"""Where checkpoints have it; the document of a saved file has it under ``defaults``."""


def arguments_of_0_1(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an estimator that 0.1 saved, with its router's defaults of then written out in ``router_args``.

    Parameters
    ----------
    arguments : mapping
        Constructor arguments; those without a router are returned as they are. A router named in ``options`` (images)
        counts.
    """
    options = arguments.get("options")
    if isinstance(options, Mapping) and "router" in options:
        return {**arguments, "options": arguments_of_0_1(options)}
    router, given = arguments.get("router"), arguments.get("router_args") or {}
    if not isinstance(router, str) or not isinstance(given, Mapping):
        return dict(arguments)
    from moeapps.core.routers import router_class  # of torch, which a model without a router does not need

    try:
        then = router_class(router).defaults_of_0_1
    except ConfigError:  # said where the network is built
        then = {}
    return {**arguments, "router_args": {**then, **given}} if then else dict(arguments)
