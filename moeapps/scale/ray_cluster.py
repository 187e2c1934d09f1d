"""One connection to Ray, and its errors as ours."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moeapps import plugins
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.packages import needs

__all__ = ["connected", "errors_of_workers"]


@contextmanager
def connected(workers: int, show_output: bool = False) -> Iterator[tuple[Any, bool]]:
    """Connect to a cluster with room for some workers of one core each.

    A connection that is there already is used and left open. Otherwise that of ``RAY_ADDRESS``, or else a cluster of
    this machine, which is stopped at the end.

    Parameters
    ----------
    workers : int
        Number of workers.
    show_output : bool, default False
        Whether what workers print is shown here.

    Yields
    ------
    ray : module
        The module.
    alone : bool
        Whether the cluster is this machine only, made for this block.

    Raises
    ------
    ConfigError
        If Ray is not installed, cannot be reached, or the cluster has fewer cores than workers.
    """
    with needs("engine ray", "moeapps[ray]"):
        import ray
    mine = not ray.is_initialized()
    if mine:
        address = os.environ.get("RAY_ADDRESS")
        # Modules that the user named for import are imported by the workers, too.
        settings: dict[str, Any] = {"env_vars": {plugins.VARIABLE: os.environ.get(plugins.VARIABLE, "")}}
        # A cluster of this machine has cores for all, and one that Ray Train may ask for: more only take turns.
        local: dict[str, Any] = (
            {} if address else {"num_cpus": max(workers + 1, os.cpu_count() or 1), "include_dashboard": False}
        )
        try:
            ray.init(runtime_env=settings, log_to_driver=show_output, logging_level=logging.ERROR, **local)
        except (ConnectionError, RuntimeError) as error:
            raise ConfigError(f"no Ray cluster at RAY_ADDRESS={address!r}: {error}") from None
    try:
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < workers:
            raise ConfigError(f"workers={workers}, but the cluster has {cores} cores: one worker takes one")
        yield ray, mine and not os.environ.get("RAY_ADDRESS")
    finally:
        if mine:
            ray.shutdown()


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Raise what a worker raised as if it had been raised here, without Ray's traceback.

    Raises
    ------
    MoEAppsError
        If workers die again and again.
    """
    from ray.exceptions import RayActorError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, MoEAppsError | OSError):
            raise cause from None
        last = str(cause).strip().splitlines()[-1] if str(cause).strip() else type(cause).__name__
        raise MoEAppsError(f"a worker failed: {type(cause).__name__}: {last}") from error
    except RayActorError as error:
        why = " ".join(str(error).split())
        raise MoEAppsError(f"workers died too often (out of memory?): {why[:500]}") from None
