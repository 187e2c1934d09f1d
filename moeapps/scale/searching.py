"""``moeapps search``: settings tried by ``moeapps fit``, in turn by Optuna or side by side by Ray Tune.

1. The configuration is read once, so that what is wrong is told before any trial.
2. Each trial trains with its settings and reports after each validation. Successive halving (ASHA, Li et al. 2020,
   "A system for massively parallel hyperparameter tuning") ends those that are behind.
3. The best settings are written as a whole configuration, ``best.yaml``, and all trials as ``trials.csv``.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from moeapps import plugins
from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.files import atomic_write
from moeapps.core.packages import needs
from moeapps.core.run_result import is_smaller_better
from moeapps.core.search import Choice, Distribution, Int, suggest
from moeapps.registry import did_you_mean
from moeapps.scale.ray_cluster import connected
from moeapps.scale.trials import UnknownMetricError, read_config, space_of, train

__all__ = ["SearchResult", "search", "tune_space"]

REDUCTION = 3
"""One in so many trials goes on at each rung of successive halving."""

RESTARTS = 3
"""With Ray: how often a trial whose worker died goes on from its last checkpoint."""

Engine = Literal["optuna", "ray"]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes
    ----------
    settings : dict
        The best settings, by the name of their option (``"model.lr"``).
    value : float
        Their metric, at its best epoch.
    trials : DataFrame
        A row per trial: settings, the metric at its best epoch, the number of epochs, and what went wrong.
    config : Path
        The configuration with the best settings, for ``moeapps fit --config``.
    """

    settings: dict[str, Any]
    value: float
    trials: pd.DataFrame
    config: Path


@dataclass(frozen=True)
class _Task:
    """What every trial has in common."""

    arguments: tuple[str, ...]
    metric: str
    smaller: bool
    folder: str
    here: str


def search(
    arguments: Sequence[str],
    space: Mapping[str, Distribution] | None = None,
    *,
    metric: str = "val/loss",
    trials: int = 20,
    engine: Engine = "optuna",
    workers: int = 1,
    storage: str | None = None,
    seed: int | None = None,
    folder: str | os.PathLike[str] = "moeapps-search",
    progress: Callable[[str], None] = lambda line: None,
) -> SearchResult:
    """Search the settings of a configuration of ``moeapps fit``.

    Parameters
    ----------
    arguments : sequence of str
        The command line after ``moeapps fit``.
    space : mapping of str to Distribution, optional
        What is searched, by the name of the option; what the module publishes (``search_space()``) when None.
    metric : str, default "val/loss"
        A metric that is logged in validation. Its name says whether less is better.
    trials : int, default 20
        Number of trials; with ``storage`` that of all processes together.
    engine : {"optuna", "ray"}, default "optuna"
        ``"optuna"`` trains one trial after the other in this process, with settings of its sampler (TPE). ``"ray"``
        trains ``workers`` of them at once on a cluster, with settings drawn at random.
    workers : int, default 1
        With Ray: trials at once, one core each.
    storage : str, optional
        With Optuna: URL of a database (``sqlite:///study.db``). Processes that name the same one share the search.
    seed : int, optional
        Of the settings that are tried.
    folder : path, default "moeapps-search"
        Of the trials' runs. With Ray and Optuna's storage all machines need it at the same path.
    progress : callable, optional
        Called with a line after each trial.

    Returns
    -------
    SearchResult
        The best settings, and all trials.

    Raises
    ------
    ConfigError
        If the configuration or the space is wrong, the metric is not logged, or the engine is not installed.
    MoEAppsError
        If all trials failed.
    """
    check_sizes(trials=trials, workers=workers)
    check_one_of("engine", engine, ("optuna", "ray"))
    if engine == "optuna" and workers > 1:
        raise ConfigError(
            "workers is for engine ray: start the same search several times with one storage to share it with Optuna"
        )
    if engine == "ray" and storage is not None:
        raise ConfigError("storage is for engine optuna: Ray Tune keeps its trials itself")
    _, config = read_config(arguments, {})
    space = space_of(config) if space is None else dict(space)
    drawn = random.Random(0)
    read_config(arguments, {name: _example(kind, drawn) for name, kind in space.items()})  # refuses a wrong name
    root = Path(folder).absolute()
    if storage is None and root.exists() and any(root.iterdir()):
        _refuse_unknown_metric(root, metric)
        raise ConfigError(
            f"{folder} holds an earlier search: name another folder (a search with storage goes on with its own)"
        )
    root.mkdir(parents=True, exist_ok=True)
    task = _Task(tuple(arguments), metric, is_smaller_better(metric), str(root), str(Path.cwd()))
    epochs = int((config.get("trainer") or {}).get("max_epochs") or 1000)
    if engine == "ray":
        table = _with_ray(task, space, trials, workers, seed, epochs, progress)
    else:
        table = _with_optuna(task, space, trials, storage, seed, progress)
    return _finish(task, list(space), table)


def _refuse_unknown_metric(root: Path, metric: str) -> None:
    """Name the metric, if the trials of an earlier search did not log it: another folder would not help then."""
    for file in root.glob("trial_*/**/metrics.csv"):
        logged = [name for name in pd.read_csv(file, nrows=0).columns if name.startswith("val/")]
        if logged and metric not in logged:
            hint = did_you_mean(metric, logged, f"{', '.join(logged)} are")
            raise UnknownMetricError(f"metric {metric!r} is not logged by the earlier search in {root.name}{hint}")
        return


def _finish(task: _Task, names: list[str], table: pd.DataFrame) -> SearchResult:
    """Write the best settings and all trials."""
    with atomic_write(Path(task.folder) / "trials.csv") as file:
        table.to_csv(file, index=False)
    done = table.dropna(subset=[task.metric])
    if done.empty:
        errors = [text for text in table["error"] if text]
        raise MoEAppsError(f"no trial came to a validation: {errors[0] if errors else 'none was started'}")
    ordered = done.sort_values(task.metric, ascending=task.smaller, kind="stable")
    best: dict[Any, Any] = ordered.iloc[0].to_dict()
    settings = {name: _plain(best[name]) for name in names}
    text, _ = read_config(task.arguments, settings)
    config = Path(task.folder) / "best.yaml"
    with atomic_write(config) as file:
        file.write(text.encode())
    return SearchResult(settings, float(best[task.metric]), table, config)


def _with_optuna(
    task: _Task, space: Mapping[str, Distribution], trials: int, storage: str | None, seed: int | None,
    progress: Callable[[str], None],
) -> pd.DataFrame:  # fmt: skip
    with needs("engine optuna", "optuna"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails is told below, without a traceback
    with _database(storage) as kept:
        return _searched(task, space, trials, kept, seed, progress)


@contextmanager
def _database(url: str | None) -> Iterator[Any]:
    """What Optuna keeps its trials in, whose connections are closed at the end; a URL that is none of SQL as it is."""
    from optuna.storages import RDBStorage

    if url is None or url.startswith("redis"):
        yield url
        return
    storage = RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _searched(
    task: _Task, space: Mapping[str, Distribution], trials: int, storage: Any, seed: int | None,
    progress: Callable[[str], None],
) -> pd.DataFrame:  # fmt: skip
    import optuna

    study = optuna.create_study(
        study_name=Path(task.folder).name,
        storage=storage,
        load_if_exists=True,
        direction="minimize" if task.smaller else "maximize",
        sampler=optuna.samplers.TPESampler(seed=seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION),
    )

    def objective(trial: Any) -> float:
        settings = suggest(trial, space)
        values: list[float] = []

        def report(epochs: int, value: float) -> bool:
            values.append(value)
            trial.report(value, epochs)
            return bool(trial.should_prune())

        try:
            train(task.arguments, settings, Path(task.folder) / f"trial_{trial.number}", task.metric, report)
        except UnknownMetricError:
            raise
        except (MoEAppsError, ValueError) as error:  # of these settings: others may do
            trial.set_user_attr("error", str(error))
        if not values:
            raise optuna.TrialPruned
        trial.set_user_attr("epochs", len(values))
        best = min(values) if task.smaller else max(values)
        trial.set_user_attr("best", best)
        progress(f"trial {trial.number}: {task.metric} {best:.4g} after {len(values)} epochs, {_shown(settings)}")
        return best

    states = tuple(state for state in optuna.trial.TrialState if state.is_finished())
    if sum(trial.state.is_finished() for trial in study.trials) < trials:
        study.optimize(objective, callbacks=[optuna.study.MaxTrialsCallback(trials, states=states)])
    rows = [
        {
            "trial": trial.number,
            **trial.params,
            task.metric: trial.user_attrs.get("best"),
            "epochs": trial.user_attrs.get("epochs", 0),
            "error": trial.user_attrs.get("error", ""),
        }
        for trial in study.trials
    ]
    return pd.DataFrame(rows).astype({task.metric: float})


def tune_space(space: Mapping[str, Distribution]) -> dict[str, Any]:
    """A search space as Ray Tune's ``param_space``.

    Parameters
    ----------
    space : mapping of str to Distribution
        What ``search_space()`` returns, or a part of it.

    Raises
    ------
    ConfigError
        If Ray Tune is not installed.
    """
    with needs("a search space for Ray Tune", "moeapps[ray]"):
        from ray import tune

    def domain(kind: Distribution) -> Any:
        if isinstance(kind, Choice):
            return tune.choice(list(kind.values))
        if isinstance(kind, Int):
            return (tune.lograndint if kind.log else tune.randint)(kind.low, kind.high + 1)
        return (tune.loguniform if kind.log else tune.uniform)(kind.low, kind.high)

    return {name: domain(kind) for name, kind in space.items()}


def _with_ray(
    task: _Task, space: Mapping[str, Distribution], trials: int, workers: int, seed: int | None, epochs: int,
    progress: Callable[[str], None],
) -> pd.DataFrame:  # fmt: skip
    domains = tune_space(space)
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its other output has no off
    with connected(workers) as (ray, alone), tempfile.TemporaryDirectory() as nowhere:
        from ray import tune
        from ray.tune.search.basic_variant import BasicVariantGenerator

        gpu = int(ray.cluster_resources().get("GPU", 0) >= workers)
        storage = nowhere if alone else str(Path(task.folder) / ".ray-tune")
        results: Any = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, task=task), {"cpu": 1, "gpu": gpu}),
            param_space=domains,
            tune_config=tune.TuneConfig(
                metric="value",
                mode="min" if task.smaller else "max",
                num_samples=trials,
                search_alg=BasicVariantGenerator(max_concurrent=workers, random_state=seed),
                scheduler=tune.schedulers.ASHAScheduler(
                    time_attr="epochs", max_t=max(epochs, 1), grace_period=1, reduction_factor=REDUCTION
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=storage, failure_config=tune.FailureConfig(max_failures=RESTARTS), verbose=0
            ),
        ).fit()
    rows = []
    for number, result in enumerate(results):
        last = result.metrics or {}
        failed = last.get("error") or ("" if result.error is None else _last_line(result.error))
        rows.append({"trial": number, **(result.config or {}), task.metric: last.get("best"),
                     "epochs": last.get("epochs", 0), "error": failed})  # fmt: skip
        if last.get("best") is not None:
            progress(f"trial {number}: {task.metric} {last['best']:.4g} after {last['epochs']} epochs, "
                     f"{_shown(result.config or {})}")  # fmt: skip
    return pd.DataFrame(rows).astype({task.metric: float})


def _trial(config: dict[str, Any], task: _Task) -> None:
    """What a worker of Ray Tune does; after a restart it goes on from the trial's last checkpoint."""
    from ray import tune

    os.chdir(task.here)  # Ray has put the worker elsewhere
    folder = Path(task.folder) / f"trial_{tune.get_context().get_trial_id()}"
    values: list[float] = []

    def report(epochs: int, value: float) -> bool:
        values.append(value)
        best = min(values) if task.smaller else max(values)
        tune.report({"value": value, "best": best, "epochs": epochs})
        return False  # Ray ends the worker itself

    try:
        with plugins.command_folder():
            plugins.import_modules(plugins.from_environment())
            train(task.arguments, config, folder, task.metric, report)
    except (MoEAppsError, ValueError) as error:  # of these settings: to try them again would not help
        if not values:
            worst = float("inf") if task.smaller else float("-inf")
            tune.report({"value": worst, "best": None, "epochs": 0, "error": str(error)})


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _example(kind: Distribution, drawn: random.Random) -> Any:
    if isinstance(kind, Choice):
        return drawn.choice(kind.values)
    return kind.low


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.removeprefix('model.')}={_round(value)}" for name, value in settings.items())


def _round(value: Any) -> Any:
    return f"{value:.3g}" if isinstance(value, float) else value


def _plain(value: Any) -> Any:
    """A cell of a frame as a value of Python."""
    return value.item() if hasattr(value, "item") else value
