"""Settings of rankers and multi-gate models: declared once, seen everywhere, the same numbers as in 0.1."""

import inspect
from dataclasses import fields

import pytest

from moeapps.core.errors import ConfigError
from moeapps.recsys import PLE, AdaTT, AWMoERanker, MMoE, MultiTaskRanker, RankingModule, SharedBottom
from moeapps.recsys.multigate import AdaTTConfig, MMoEConfig, MultiGateConfig, PLEConfig
from moeapps.recsys.network import RankingConfig

LEFT_OUT = {
    MultiTaskRanker: {
        "contrastive_weight": "of AW-MoE's gate",
        "user": "of the contrastive loss",
        "mask_probability": "of the contrastive loss",
        "temperature": "of the contrastive loss",
        "gate": "of AW-MoE",
        "label_prior": "of the models of a history",
        "item_similarity": "of the models of a history",
        "item_neighbours": "of the models of a history",
        "history_encoder": "of the models of a history",
    },
    AWMoERanker: {
        "groups": "of HoME",
        "products": "need several targets",
        "task_weights": "need several targets",
        "positive_weight": "was no argument in 0.1",
        "scenario": "of the models for several targets",
        "task_weighting": "needs several targets",
        "gradient_surgery": "needs several targets",
    },
}
OTHER_DEFAULT = {
    MultiTaskRanker: {},
    AWMoERanker: {
        "model": "the ranker is named after aw_moe",
        "embedding_dim": "16, as the published results use",
        "embedding_decay": "100: ahead on validation parts for the models of a history",
        "history_encoder": "'auto': AW-MoE was ahead with one on validation parts, and without it on none",
        "lr": "3e-3: a ranker that begins at popularity has little time before the epoch is chosen",
    },
}


@pytest.mark.parametrize("ranker", LEFT_OUT)
def test_every_setting_is_an_argument_of_the_ranker_or_left_out_for_a_reason(ranker):
    arguments = inspect.signature(ranker).parameters
    names = {field.name for field in fields(RankingConfig)}
    assert names - set(arguments) == set(LEFT_OUT[ranker])
    for field in fields(RankingConfig):
        if field.name in arguments:
            same = arguments[field.name].default == field.default
            assert same != (field.name in OTHER_DEFAULT[ranker]), field.name


def test_a_ranker_hands_its_settings_to_the_module():
    ranker = AWMoERanker(lr=0.5, user="u", contrastive_weight=0.05, options={"expert": (8, 4)}, temperature=0.3)
    config = ranker._module().config
    assert (config.lr, config.user, config.temperature, config.contrastive_weight) == (0.5, "u", 0.3, 0.05)
    assert ranker._module().hparams["options"] == {"expert": [8, 4]}  # plain values, as checkpoints need them
    assert AWMoERanker("din", contrastive_weight=0.05)._module().config.contrastive_weight == 0
    groups = MultiTaskRanker(groups={"a": ("x", "y")})._module().config.groups
    assert groups == {"a": ["x", "y"]}


def test_the_module_takes_and_keeps_every_setting():
    assert list(inspect.signature(RankingModule).parameters) == [field.name for field in fields(RankingConfig)]
    module = RankingModule("mmoe", {"num_experts": 2}, lr=0.5)
    assert module.config == RankingConfig("mmoe", {"num_experts": 2}, lr=0.5)
    assert set(module.hparams) == {field.name for field in fields(RankingConfig)}


@pytest.mark.parametrize(
    ("model", "own"),
    [(SharedBottom, None), (MMoE, MMoEConfig), (PLE, PLEConfig), (AdaTT, AdaTTConfig)],
)
def test_multi_gate_models_take_their_own_settings_and_then_the_shared_ones(model, own):
    names = [field.name for config in filter(None, (own, MultiGateConfig)) for field in fields(config)]
    assert list(inspect.signature(model).parameters) == ["dim", "num_tasks", *names]


def test_positional_arguments_mean_what_they_did():
    model = PLE(12, 2, 1, 1, 3, (8, 4), (5,), "gelu", False, 0.1)
    assert len(model.experts) == 3
    assert model.width == 4
    assert model.experts[0].activation == "gelu"
    assert not model.experts[0].norms
    assert model.towers.dropout == 0.1


def test_experts_without_layers_are_refused():
    with pytest.raises(ConfigError, match="expert is empty"):
        MMoE(12, 2, expert=())
