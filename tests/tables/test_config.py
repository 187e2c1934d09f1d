"""Settings of the tabular estimators: declared once, with the same defaults wherever they are seen."""

import inspect
from dataclasses import fields

import pytest

from moeapps import MoEClassifier, MoERegressor
from moeapps.tables.estimator import TabularEstimator
from moeapps.tables.module import TabularModule, TabularTraining
from moeapps.tables.network import TabularConfig, TabularMoE

LEFT_OUT = {
    "task": "follows from the class of the estimator",
    "schedule": "cosine in fit, constant in partial_fit",
}
OTHER_DEFAULT = {
    "dim": "64 suits tables of a few thousand rows; the network's 128 is kept for callers of 0.1",
    "hidden_dim": "64, narrow experts by trials on tuning tables; twice dim in the network, as in 0.1",
    "embedding_dim": "16 in the estimators, 8 in the network, as in 0.1",
    "numeric_embedding": "periodic by trials on tuning tables; the network's piecewise is that of 0.1",
    "scaling": "robust by trials on tuning tables, standard in 0.1",
    "num_members": "by the number of rows",
    "dropout": "by the number of rows",
    "lr": "0.002 in the estimators, 0.001 in the module, as in 0.1",
    "loss": "by the outliers of the target",
}


@pytest.mark.parametrize("estimator", [MoEClassifier, MoERegressor])
@pytest.mark.parametrize("config", [TabularConfig, TabularTraining])
def test_every_setting_is_an_argument_of_the_estimators_or_left_out_for_a_reason(estimator, config):
    arguments = inspect.signature(estimator).parameters
    other = {"loss": "of numbers"} if estimator is MoEClassifier else {"label_smoothing": "numbers are no labels"}
    left_out = {**LEFT_OUT, **other}
    for field in fields(config):
        assert (field.name in arguments) != (field.name in left_out), field.name
        if field.name in arguments:
            same = arguments[field.name].default == field.default
            assert same != (field.name in OTHER_DEFAULT), field.name


def test_both_estimators_have_the_same_arguments_but_for_what_is_about_classes():
    classifier = dict(inspect.signature(MoEClassifier).parameters)
    del classifier["class_weight"], classifier["label_smoothing"]
    regressor = dict(inspect.signature(MoERegressor).parameters)
    del regressor["loss"]
    assert list(classifier.values()) == list(regressor.values())
    assert "__init__" not in vars(TabularEstimator)


@pytest.mark.parametrize(("cls", "config"), [(TabularMoE, TabularConfig), (TabularModule, TabularTraining)])
def test_network_and_module_take_every_setting_by_keyword_and_in_the_order_of_its_config(cls, config):
    names = [field.name for field in fields(config)]
    assert list(inspect.signature(cls).parameters)[-len(names) :] == names


def test_settings_reach_the_network_and_the_module():
    network = TabularMoE([0.0], [1.0], [[]], [], 2, 8, 1, 3, router="topp", router_args={"p": 0.5}, z_weight=0.5)
    (block,) = network.blocks
    assert (block.dim, block.num_experts, block.router.p, block.z_weight) == (8, 3, 0.5, 0.5)
    module = TabularModule(network, "regression", 0.1, 0.2, "constant")
    given = {"task": "regression", "lr": 0.1, "weight_decay": 0.2, "schedule": "constant"}
    defaults = {
        "warmup": 0.0,
        "final_lr": 0.1,
        "beta2": 0.999,
        "label_smoothing": 0.0,
        "loss": "squared",
    }  # those of 0.1
    assert dict(module.hparams) == given | defaults
