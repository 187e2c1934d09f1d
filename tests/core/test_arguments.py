"""Misspelled arguments of estimators."""

import inspect

import pytest
from sklearn.base import clone

from moeapps import MixtureClassifier, MoEClassifier, MultiTaskRanker
from moeapps.core import MoE
from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError
from moeapps.stream import DriftMoEClassifier


def test_a_misspelled_argument_is_answered_with_the_right_one():
    with pytest.raises(
        TypeError, match=r"MoEClassifier\(\) has no argument 'num_expert'; did you mean 'num_experts'\?"
    ):
        MoEClassifier(num_expert=4)
    with pytest.raises(TypeError, match="'max_epoch'; did you mean 'max_epochs'"):
        MultiTaskRanker(max_epoch=4)
    with pytest.raises(TypeError, match="'zzz'; it has experts, gate"):
        MixtureClassifier(zzz=4)


def test_set_params_answers_too_and_reaches_parts():
    with pytest.raises(ValueError, match="'num_expert' for MoEClassifier; did you mean 'num_experts'"):
        MoEClassifier().set_params(num_expert=4)
    mixture = MixtureClassifier([("moe", MoEClassifier())]).set_params(moe__dim=3, cv=4)
    assert (mixture.experts[0][1].dim, mixture.cv) == (3, 4)
    assert mixture.set_params(moe=MoEClassifier(dim=5)).experts[0][1].dim == 5


def test_the_signature_stays():
    assert list(inspect.signature(MoEClassifier).parameters)[:2] == ["router", "router_args"]
    assert clone(MoEClassifier(dim=3)).dim == 3


def test_a_misspelled_choice_is_answered_with_the_right_one():
    with pytest.raises(ConfigError, match=r"linear, network, got 'linaer'; did you mean 'linear'\?$"):
        DriftMoEClassifier(experts=["linaer"]).learn_one({"a": 1.0}, 0)
    with pytest.raises(ConfigError, match=r"got 'groupd'; did you mean 'grouped'\?$"):
        MoE(8, 4, backend="groupd")
    with pytest.raises(ConfigError, match=r"x must be one of the columns a, b, got 'zzz'$"):
        check_one_of("x", "zzz", ["a", "b"], "the columns")
    with pytest.raises(ConfigError, match=r"x must be one of mean, got 3$"):
        check_one_of("x", 3, ["mean"])
