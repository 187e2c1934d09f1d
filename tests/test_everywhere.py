"""What holds for every estimator: cases K9 and X1 to X4 of docs/robustness.md."""

import itertools
import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.everywhere import MAKERS, digest, trained
from tests.processes import Command

every_estimator = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture(scope="module")
def models():
    return {name: trained(name, 0) for name in MAKERS}


@pytest.fixture(scope="module")
def other_process():
    """The hashes of the same estimators, trained by another process, in which texts have other hashes."""
    code = "import json; from tests.everywhere import digests; print(json.dumps(digests(0)))"
    process = Command([], cwd=Path(__file__).parents[1], code=code)
    out, error = process.communicate(120)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def caller_state():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@every_estimator
def test_a_new_process_trains_the_same_bits_from_the_same_seed(name, models, other_process):
    model, predict = models[name]
    assert digest(model, predict()) == other_process[name]


@every_estimator
def test_another_seed_trains_another_model_and_so_do_two_trainings_without_one(name, models):
    predictions = [
        predict() for _, predict in (models[name], trained(name, 1), trained(name, None), trained(name, None))
    ]
    for one, other in itertools.combinations(predictions, 2):
        assert not np.array_equal(one, other)


@every_estimator
def test_training_and_prediction_leave_the_callers_generators_write_nothing_and_use_no_network(
    name, tmp_path, monkeypatch
):
    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = caller_state()
    _, predict = trained(name, 0)
    predict()
    assert caller_state() == before
    assert list(tmp_path.iterdir()) == []


@every_estimator
def test_eight_threads_predict_what_one_predicts(name, models):
    _, predict = models[name]
    expected = np.asarray(predict())
    with ThreadPoolExecutor(8) as pool:
        for predictions in pool.map(lambda _: predict(), range(24), timeout=60):
            np.testing.assert_array_equal(np.asarray(predictions), expected)


@every_estimator
def test_predictions_agree_for_any_number_of_threads_of_torch(name, models):
    _, predict = models[name]
    threads, predictions = torch.get_num_threads(), []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            predictions.append(np.asarray(predict(), dtype=float))
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_allclose(*predictions, atol=1e-5, rtol=1e-5)
