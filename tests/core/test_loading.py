"""Loaders: same order whatever the workers, exact positions, clear refusals (D3, D4)."""

import functools
import operator
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.loading import identity_collate, make_loader
from tests.processes import end_loaders


class InMemory(TensorDataset):
    """Gives whole batches; ``asked`` is what they were asked by."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.asked = []

    def take(self, rows):
        self.asked.append(type(rows))
        return [tensor[rows] for tensor in self.tensors]


class Drawn(Dataset):
    """Draws from all three global generators as a row is read."""

    def __len__(self):
        return 20

    def __getitem__(self, row):
        return torch.tensor([row, random.random(), np.random.random(), float(torch.rand(()))])  # noqa: NPY002


def rows(loader) -> list[list[int]]:
    return [batch[0].tolist() for batch in loader]


def loader(length=20, **kwargs):
    return make_loader(TensorDataset(torch.arange(length)), 4, **{"shuffle": True, "seed": 5, **kwargs})


def test_the_order_does_not_depend_on_the_workers():
    assert rows(loader(num_workers=0)) == rows(loader(num_workers=2))


def test_the_order_depends_on_seed_and_epoch_only():
    first, second = loader(), loader()
    torch.rand(7)
    assert rows(first) == rows(second)
    assert rows(loader(seed=6)) != rows(second)
    second.sampler.set_epoch(1)
    assert rows(first) != rows(second)
    assert sorted(functools.reduce(operator.iadd, rows(second), [])) == list(range(20))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_continues_where_it_was(workers):
    whole = rows(loader())
    first = loader(num_workers=workers)
    iterator = iter(first)
    seen = [next(iterator)[0].tolist() for _ in range(2)]
    second = loader(num_workers=workers)
    second.load_state_dict(first.state_dict())
    assert seen + rows(second) == whole
    assert rows(second) == whole  # the position is for one epoch only
    assert second.state_dict() == {"position": 0}


def test_data_that_make_no_batch_are_refused():
    with pytest.raises(DataError, match="3 rows.*no batch of 4.*drop_last=False"):
        loader(length=3, drop_last=True)
    with pytest.raises(DataError, match="0 rows"):
        loader(length=0)
    assert len(loader(length=3)) == 1


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None])
def test_an_impossible_batch_size_is_refused(size):
    with pytest.raises(ConfigError, match="batch_size must be"):
        make_loader(TensorDataset(torch.arange(3)), size)


class Broken(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise KeyError("row 3 of the file is broken")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_shows_its_own_message(workers):
    with pytest.raises(KeyError, match="row 3 of the file is broken") as caught:
        list(make_loader(Broken(), 4, num_workers=workers))
    end_loaders(caught.value)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_data_in_memory_give_the_same_batches_whole(shuffle, drop_last):
    settings = {"shuffle": shuffle, "seed": 5, "drop_last": drop_last}
    data = InMemory(torch.arange(22))
    whole = make_loader(data, 4, collate_fn=identity_collate, **settings)
    plain = make_loader(TensorDataset(torch.arange(22)), 4, **settings)
    for epoch in (0, 1):
        whole.sampler.set_epoch(epoch)
        plain.sampler.set_epoch(epoch)
        assert rows(whole) == rows(plain)
    assert set(data.asked) == {torch.Tensor if shuffle else slice}
    assert len(data.asked) == 2 * len(whole)


@pytest.mark.parametrize("shuffle", [False, True])
def test_data_in_memory_continue_where_they_were(shuffle):
    def fresh():
        data = InMemory(torch.arange(22))
        return make_loader(data, 4, shuffle=shuffle, seed=5, collate_fn=identity_collate)

    whole, first, second = rows(fresh()), fresh(), fresh()
    iterator = iter(first)
    seen = [next(iterator)[0].tolist() for _ in range(3)]
    second.load_state_dict(first.state_dict())
    assert seen + rows(second) == whole
    assert rows(second) == whole
    assert second.state_dict() == {"position": 0}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_reads_are_the_same_from_the_middle_of_an_epoch_and_with_other_processes(num_workers):
    def fresh(workers):
        made = make_loader(Drawn(), 4, shuffle=True, seed=5, num_workers=workers, random_reads=True)
        made.sampler.set_epoch(3)
        return made

    torch.manual_seed(1)
    whole = list(fresh(0))
    resumed = fresh(num_workers)
    resumed.load_state_dict({"position": 2})
    random.seed(8)
    np.random.seed(8)  # noqa: NPY002
    torch.manual_seed(8)
    assert all(torch.equal(one, other) for one, other in zip(whole[2:], resumed, strict=True))
    assert len({float(value) for batch in whole for value in batch[:, 1:].flatten()}) == 60
    assert sorted(int(row) for batch in whole for row in batch[:, 0]) == list(range(20))
    later = fresh(0)
    later.sampler.set_epoch(4)
    drawn = {int(row): float(value) for batch in whole for row, value in batch[:, :2].tolist()}
    assert all(drawn[int(row)] != value for batch in later for row, value in batch[:, :2].tolist())


def test_random_reads_leave_the_generators_of_the_process_alone():
    random.seed(8)
    np.random.seed(8)  # noqa: NPY002
    torch.manual_seed(8)
    expected = (random.random(), np.random.random(), float(torch.rand(())))  # noqa: NPY002
    random.seed(8)
    np.random.seed(8)  # noqa: NPY002
    torch.manual_seed(8)
    make_loader(Drawn(), 4, random_reads=True).dataset.__getitems__([3, 4])
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected  # noqa: NPY002
