"""Two gloo processes against one: an AUC is that of all rows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from moeapps.core.distributed import gather_rows
from moeapps.core.loading import EpochSampler
from moeapps.recsys import RankingModule, auc
from moeapps.recsys.targets import Targets
from tests.processes import run_two

ROWS = 101  # odd, so that one row is dealt out twice


def scores() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = (torch.rand(ROWS, 2, generator=draw) < 0.3).float()
    labels[::7, 1] = torch.nan
    # a process's own rows are on a level of their own, so that the mean of two AUCs is not the AUC
    level = torch.arange(ROWS)[:, None] % 2 * 3.0
    return torch.randn(ROWS, 2, generator=draw) + 0.5 * labels.nan_to_num() + level, labels


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    sampler = EpochSampler(ROWS, shuffle=False)
    rows = torch.tensor(list(sampler))
    outputs, labels = scores()
    found: dict[str, Any] = {"rows": gather_rows(rows, ROWS), "unequal": gather_rows(torch.arange(rank + 1))}
    found["flags"] = gather_rows(rows % 3 == 0, ROWS)
    module = RankingModule("mmoe")
    module.targets = Targets(["click", "like"])
    module.targets.kinds = dict.fromkeys(["click", "like"], "binary")
    module._trainer = SimpleNamespace(val_dataloaders=SimpleNamespace(sampler=sampler))
    module.log = lambda name, value, **_: found.update({name: value})
    for part in rows.split(20):
        module._collected.append((outputs[part], labels[part], outputs[part, :0].int()))
    module.on_validation_epoch_end()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    folder = str(tmp_path_factory.mktemp("two"))
    run_two(worker, (folder,))
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_rows_that_were_dealt_out_come_back_once_and_in_order(two):
    for found in two:
        assert torch.equal(found["rows"], torch.arange(ROWS))
        assert torch.equal(found["flags"], torch.arange(ROWS) % 3 == 0)


def test_processes_may_have_different_numbers_of_rows(two):
    for found in two:
        assert found["unequal"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("task", [0, 1])
def test_the_auc_of_two_processes_is_that_of_one(two, task):
    outputs, labels = (part.numpy() for part in scores())
    whole = auc(labels[:, task], outputs[:, task])
    halves = [auc(labels[r::2, task], outputs[r::2, task]) for r in range(2)]
    assert abs(np.mean(halves) - whole) > 0.01  # else the test could not tell
    for found in two:
        assert found[f"val/auc/{['click', 'like'][task]}"] == pytest.approx(whole, abs=1e-12)
