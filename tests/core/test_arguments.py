"""Misspelled arguments of estimators."""

import inspect

import pytest
from sklearn.base import clone

from moeapps import MixtureClassifier, MoEClassifier, MultiTaskRanker


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
