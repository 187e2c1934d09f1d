"""Data loaders whose order is a pure function of (seed, epoch), so that an interrupted training continues exactly."""

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from moeapps.core.distributed import rank, world_size
from moeapps.core.errors import ConfigError, DataError, MoEAppsError

__all__ = ["EpochSampler", "RandomReads", "ResumableLoader", "identity_collate", "make_loader"]


class EpochSampler(DistributedSampler[int]):
    """Indices 0 to n-1, shuffled by a generator that is seeded with (seed, epoch).

    In a distributed training every process takes each W-th index of the same order, so that the batches of all
    processes together are what one process would get with a batch W times as large. Where n does not divide, the
    order is continued from its beginning. (A ``DistributedSampler``, so that Lightning leaves it in its place.)

    Parameters
    ----------
    length : int
        Number of rows n.
    shuffle : bool, default=True
        Whether to shuffle.
    seed : int, default=0
        Seed of the order.
    divided : bool, default=True
        Whether the processes of a distributed training get different rows. Without, each of them gets all.
    with_epoch : bool, default=False
        Whether n times the epoch is added to the indices, for :class:`RandomReads`.
    """

    def __init__(
        self, length: int, shuffle: bool = True, seed: int = 0, divided: bool = True, with_epoch: bool = False
    ) -> None:
        # not the base's constructor: it expects torch.distributed to run already
        self.length, self.shuffle, self.seed, self.divided = length, shuffle, seed, divided
        self.with_epoch = with_epoch
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this."""
        self.epoch = epoch

    def random_generator(self) -> torch.Generator:
        """Generator that depends on nothing but seed and epoch."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)

    def __len__(self) -> int:
        return math.ceil(self.length / self.processes)

    def __iter__(self) -> Iterator[int]:
        first = self.length * self.epoch if self.with_epoch else 0
        yield from (self.order() + first).tolist()

    @property
    def processes(self) -> int:
        """Number of processes among which the rows are dealt out."""
        return world_size() if self.divided else 1

    @property
    def repeated(self) -> int:
        """How many of this process's rows, the last ones, another process has too: 0 or 1."""
        return int(self.divided and rank() + self.processes * (len(self) - 1) >= self.length)

    def order(self) -> Tensor:
        """Rows of this process from ``start`` on, which then is 0 again, as one int64 tensor."""
        start, self.start = self.start, 0
        generator = self.random_generator()
        order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
        if (processes := self.processes) > 1:
            rows = len(self) * processes
            order = order.repeat(math.ceil(rows / self.length))[:rows][rank() :: processes]
        return order[start:]


class RandomReads(Dataset):
    """Data whose rows are drawn at random as they are read, as augmented images are.

    What is drawn for a batch is a function of (seed, epoch, its first row), so that it is the same in a resumed
    training and with any number of processes that load. The random generators of the process stay as they were.

    Parameters
    ----------
    data : Dataset
        Map-style data with a length. It may use the global generators of Python, NumPy and torch.
    seed : int, default=0
        Seed of what is drawn.
    """

    def __init__(self, data: Dataset, seed: int = 0) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        epoch, row = divmod(index, len(self))
        with _seeded(self.seed, epoch, row):
            return self.data[row]

    def __getitems__(self, indices: list[int]) -> Any:
        """Rows of one batch; indices are those of an :class:`EpochSampler` with ``with_epoch``."""
        epoch, first = divmod(indices[0], len(self))
        rows = [index % len(self) for index in indices]
        with _seeded(self.seed, epoch, first):
            whole = getattr(self.data, "__getitems__", None)
            return [self.data[row] for row in rows] if whole is None else whole(rows)


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """Global generators that begin from these numbers, and are put back."""
    seed = int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1)[0])
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  (of others' code, which draws from it)
            torch.default_generator.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class ResumableLoader(DataLoader):
    """DataLoader that can be put back to the middle of an epoch.

    Its state is the number of batches delivered, modulo its length. Nothing is drawn before the first batch is asked
    for: Lightning makes the iterator before it says which epoch it is. Randomness inside ``dataset[i]`` is repeated
    exactly from an epoch's start, and from its middle with :class:`RandomReads`.

    A data set in memory whose ``take(rows)`` gives a whole batch (``rows`` int64 tensor, or a slice where the order is
    that of the data) is asked by it, without a list of row numbers, unless other processes load.
    """

    _start = 0
    _position = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return self._deliver()

    def _deliver(self) -> Iterator[Any]:
        start, self._start = self._start, 0
        self._position = start
        skip = 0
        if isinstance(self.sampler, EpochSampler):
            self.sampler.start = start * (self.batch_size or 1)
            if self.generator is not None:
                self.generator.manual_seed(self.sampler.random_generator().initial_seed())
        else:
            skip = start  # another sampler (a distributed one, say): go through the batches that were seen
        batches = self._taken() if self._is_in_memory() else super().__iter__()
        for index, batch in enumerate(_with_plain_errors(batches)):
            if index < skip:
                continue
            self._position += 1
            yield batch

    def _is_in_memory(self) -> bool:
        return self.num_workers == 0 and hasattr(self.dataset, "take") and isinstance(self.sampler, EpochSampler)

    def _taken(self) -> Iterator[Any]:
        """Batches of a data set in memory."""
        sampler: EpochSampler = self.sampler  # type: ignore[assignment]
        size, take = self.batch_size or 1, self.dataset.take  # type: ignore[attr-defined]
        in_order, first = not sampler.shuffle and sampler.processes == 1, sampler.start
        order = sampler.order()
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if len(rows) < size and self.drop_last:
                return
            batch = take(slice(first + start, first + start + len(rows)) if in_order else rows)
            yield batch if self.collate_fn is None else self.collate_fn(batch)

    def state_dict(self) -> dict[str, int]:
        """Position inside the epoch, in batches."""
        return {"position": self._position % max(len(self), 1)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after ``position`` batches."""
        self._start = int(state["position"])


def _with_plain_errors(batches: Iterator[Any]) -> Iterator[Any]:
    """Errors of ours as they were raised: from another process torch passes on its whole traceback as the message."""
    try:
        yield from batches
    except MoEAppsError as error:
        raised = f"{type(error).__module__}.{type(error).__qualname__}: "
        if not str(error).startswith("Caught ") or raised not in str(error):
            raise
        raise type(error)(str(error).rpartition(raised)[2].strip()) from None


def identity_collate(batch: Any) -> Any:
    """Collate function of data that gives whole batches (``__getitems__``)."""
    return batch


def make_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    drop_last: bool = False,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    divided: bool = True,
    random_reads: bool = False,
) -> ResumableLoader:
    """Make a loader that resumes exactly.

    Parameters
    ----------
    dataset : Dataset
        Map-style data with a length.
    batch_size : int
        Rows per batch.
    shuffle : bool, default=False
        Whether to shuffle in each epoch.
    seed : int, default=0
        Seed of the order.
    num_workers : int, default=0
        Processes that load; the order does not depend on it.
    drop_last : bool, default=False
        Whether to leave out an incomplete last batch.
    collate_fn : Callable[[list of Any], Any], optional
        As in torch.
    divided : bool, default=True
        Whether the processes of a distributed training share the rows. Without, each of them gets all.
    random_reads : bool, default=False
        Whether the data draws at random as it is read (see :class:`RandomReads`).

    Raises
    ------
    ConfigError
        If ``batch_size`` or ``num_workers`` is impossible.
    DataError
        If there would not be a single batch.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ConfigError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
        raise ConfigError(f"num_workers must be a whole number of at least 0, got {num_workers!r}")
    rows = len(dataset)  # type: ignore[arg-type]
    if rows < (batch_size if drop_last else 1):
        raise DataError(
            f"the data has {rows} rows, which makes no batch of {batch_size}"
            + (": use a smaller batch_size or drop_last=False" if drop_last and rows else "")
        )
    return ResumableLoader(
        RandomReads(dataset, seed) if random_reads else dataset,
        batch_size=batch_size,
        sampler=EpochSampler(rows, shuffle, seed, divided, random_reads),
        num_workers=num_workers,
        drop_last=drop_last,
        collate_fn=collate_fn,
        generator=torch.Generator(),
    )
