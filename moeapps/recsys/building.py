"""Networks of rankers for a table, by their settings."""

from collections.abc import Mapping
from typing import Any

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.kinds import is_named_id
from moeapps.recsys.encoder import FIRST, TableEncoder
from moeapps.recsys.features import FeatureEmbedding
from moeapps.recsys.network import (
    MULTI_TASK_MODELS,
    SEQUENCE_MODELS,
    MultiTaskNetwork,
    RankingConfig,
    SequenceNetwork,
)
from moeapps.recsys.prior import LabelPrior
from moeapps.recsys.scenarios import ScenarioHoME
from moeapps.recsys.targets import Targets

__all__ = ["build_network", "scenario_column"]

DROPOUT = 0.2
"""Dropout of DIN and AW-MoE, unless ``options`` say otherwise."""


def build_network(encoder: TableEncoder, targets: Targets, config: RankingConfig) -> MultiTaskNetwork | SequenceNetwork:
    """The network for a table: a multi-task model, or one that attends to the first history of the schema.

    Parameters
    ----------
    encoder : TableEncoder
        Fitted encoder.
    targets : Targets
        Fitted targets.
    config : RankingConfig
        Model, options, groups, products and embeddings.

    Raises
    ------
    ConfigError
        If a setting is impossible.
    DataError
        If a model of behaviour has no history to attend to.
    """
    check_one_of("model", config.model, {**MULTI_TASK_MODELS, **SEQUENCE_MODELS})
    build = _multi_task if config.model in MULTI_TASK_MODELS else _behaviour
    return build(encoder, targets, config)


def scenario_column(encoder: TableEncoder, scenario: str) -> int:
    """Number of the scenario's column among the sparse ones.

    Raises
    ------
    ConfigError
        If it is not one of them.
    """
    names = encoder.schema.sparse_names
    check_one_of("scenario", scenario, names, "the sparse columns")
    return names.index(scenario)


def _multi_task(encoder: TableEncoder, targets: Targets, config: RankingConfig) -> MultiTaskNetwork:
    products = {
        targets.index(task, "products:"): targets.index(presupposed, "products:")
        for task, presupposed in (config.products or {}).items()
    }
    _check_products(products, targets)
    embedding, options, name = _embedding(encoder, config), dict(config.options or {}), config.model
    sizes = embedding.out_dim, len(targets.names)
    if config.groups is not None and name != "home":
        raise ConfigError(f"groups are for model='home', got model={name!r}")
    by_scenario = config.groups == "scenario"
    if not by_scenario and name not in ("star", "pepnet"):
        if config.groups is not None:
            options["groups"] = _groups(config.groups, targets)
        return MultiTaskNetwork(embedding, _make(MULTI_TASK_MODELS, name, options, *sizes), products)
    if config.scenario is None:
        wanted = "groups='scenario'" if by_scenario else f"model={name!r}"
        raise ConfigError(f"{wanted} needs scenario=, the name of a sparse column")
    column = scenario_column(encoder, config.scenario)
    if name == "pepnet":
        width = config.embedding_dim
        options["scenario"] = range(column * width, (column + 1) * width)
        personal = _personal(encoder, options.get("personal"))
        options["personal"] = [s * width + i for s in personal for i in range(width)]
        return MultiTaskNetwork(embedding, _make(MULTI_TASK_MODELS, name, options, *sizes), products)
    options["num_scenarios"] = encoder.table_sizes[column] - FIRST
    if name == "star":
        return MultiTaskNetwork(embedding, _make(MULTI_TASK_MODELS, name, options, *sizes), products, column)
    names = _scenario_names(encoder, config.scenario, options["num_scenarios"])
    model = _make({"home": ScenarioHoME}, name, options | {"names": names}, *sizes)
    heads = [f"{task} in {scenario}" for scenario in names for task in targets.names]
    return MultiTaskNetwork(embedding, model, products, column, heads)


def _groups(groups: Any, targets: Targets) -> dict[str, list[int]]:
    """Groups of tasks by number, as HoME knows them."""
    if not isinstance(groups, Mapping):
        raise ConfigError(f"groups must be 'scenario' or a name of a group to its targets, got {groups!r}")
    return {
        group: [targets.index(name, f"groups: {group!r} has") for name in members] for group, members in groups.items()
    }


def _scenario_names(encoder: TableEncoder, scenario: str, number: int) -> list[str]:
    """Names of the scenarios; a hashed column has none."""
    values = [str(value) for value in encoder.values.get(scenario, ())]
    return values if len(set(values)) == number else [str(s + 1) for s in range(number)]


def _personal(encoder: TableEncoder, names: Any) -> list[int]:
    """Numbers of the sparse columns of user and item."""
    sparse = encoder.schema.sparse_names
    if names is None:
        return [s for s, name in enumerate(sparse) if is_named_id(name)] or list(range(len(sparse)))
    wrong = [name for name in names if name not in sparse]
    if wrong or not names:
        raise ConfigError(f"personal must name some of the sparse columns {', '.join(sparse)}, got {names!r}")
    return [sparse.index(name) for name in names]


def _behaviour(encoder: TableEncoder, targets: Targets, config: RankingConfig) -> SequenceNetwork:
    if config.groups is not None or config.products:
        raise ConfigError(f"groups and products are for several targets, got model={config.model!r}")
    if len(targets.names) != 1 or targets.kinds[targets.names[0]] != "binary":
        raise ConfigError(f"model={config.model!r} ranks by one binary target, got {', '.join(targets.names)}")
    schema = encoder.schema
    histories = [i for i, sequence in enumerate(schema.sequences) if sequence.shares is not None]
    if not histories:
        raise DataError(
            f"there is no history: model={config.model!r} needs a SequenceFeature that shares a SparseFeature, such "
            "as SequenceFeature('history', shares='item_id')"
        )
    candidate = schema.sparse_names.index(str(schema.sequences[histories[0]].shares))
    embedding = _embedding(encoder, config)
    # The model pools the behaviour itself, so that its profile is without the pooled sequences
    profile = embedding.out_dim - embedding.dim * len(embedding.sequence_tables)
    options = dict(config.options or {})
    if config.model != "sasrec":
        options = {"dropout": DROPOUT, "history_encoder": config.history_encoder, **options}
    if config.model == "aw_moe" and "softmax" not in options:
        options = {"gate": config.gate, **options}
    model = _make(SEQUENCE_MODELS, config.model, options, embedding.dim, profile)
    prior = _prior(encoder, config, candidate)
    neighbours = config.item_neighbours and config.model != "sasrec"  # whose score is one product, for large catalogues
    return SequenceNetwork(embedding, model, histories[0], candidate, prior, config.item_similarity, neighbours)


def _prior(encoder: TableEncoder, config: RankingConfig, candidate: int) -> LabelPrior | None:
    if not config.label_prior:
        return None
    columns = [candidate]
    if config.user is not None:
        columns.append(encoder.schema.sparse_names.index(config.user))
    return LabelPrior(columns, [encoder.table_sizes[column] for column in columns])


def _embedding(encoder: TableEncoder, config: RankingConfig) -> FeatureEmbedding:
    schema = encoder.schema
    return FeatureEmbedding(
        encoder.table_sizes,
        len(schema.sparse),
        2 * len(schema.dense),  # numbers and their flags
        encoder.sequence_tables,
        config.embedding_dim,
        config.sparse_gradients,
    )


def _make(models: dict[str, Any], name: str, options: Mapping[str, Any] | None, *sizes: int) -> Any:
    try:
        return models[name](*sizes, **(options or {}))
    except TypeError as error:
        raise ConfigError(f"options of model={name!r}: {error}") from None


def _check_products(products: Mapping[int, int], targets: Targets) -> None:
    for task in products:
        name, seen = targets.names[task], [task]
        # Follow the chain of presupposed tasks until it ends, or comes back to a task
        while seen[-1] in products:
            seen.append(products[seen[-1]])
            if seen.count(seen[-1]) > 1:
                raise ConfigError(f"products: {name!r} presupposes itself")
        for index in seen:
            if targets.kinds[targets.names[index]] != "binary":
                raise ConfigError(f"products: {targets.names[index]!r} is not a binary target")
