"""The choice of a backend on the CPU, by the measured table."""

import pytest
import torch

from moeapps.core import backends
from moeapps.core.backends import PADDING_PAYS, ROWS, choose_backend, padding_pays


def chosen(counts: list[int], widths: tuple[int, ...] = (64, 128, 64)) -> str:
    return choose_backend(
        "auto", device=torch.device("cpu"), dtype=torch.float32, counts=torch.tensor(counts), widths=widths
    )


def test_every_entry_of_the_table_has_a_number_for_each_number_of_rows():
    assert all(len(row) == len(ROWS) and min(row) > 0 for row in PADDING_PAYS.values())


def test_a_size_of_the_table_gets_its_entry():
    for (d, h, num_experts), row in PADDING_PAYS.items():
        assert tuple(padding_pays(rows, d, h, num_experts) for rows in ROWS) == row


def test_a_size_between_two_entries_gets_the_nearer_one():
    assert padding_pays(5, 60, 140, 10) == padding_pays(4, 64, 128, 8)
    assert padding_pays(5, 60, 140, 50) == padding_pays(4, 64, 128, 64)


@pytest.mark.parametrize(
    ("rows", "d", "h", "num_experts"),
    [(0.1, 64, 128, 8), (300, 64, 128, 8), (16, 2048, 8192, 8), (16, 2, 4, 8), (16, 64, 128, 1000), (16, 64, 128, 1)],
)
def test_sizes_beyond_the_table_take_the_loop(rows, d, h, num_experts):
    assert padding_pays(rows, d, h, num_experts) == 0


def test_padding_is_chosen_while_it_pays(monkeypatch):
    monkeypatch.setattr(backends, "PADDING_PAYS", {(64, 128, 8): (2.0,) * len(ROWS)})
    backends._nearest_row.cache_clear()
    assert chosen([16] * 8) == "bmm"
    assert chosen([30, *[14] * 7]) == "bmm"  # 1.875 rows per real row
    assert chosen([32, *[96 // 7] * 7]) == "loop"  # above 2
    backends._nearest_row.cache_clear()


def test_a_batch_without_rows_takes_the_loop():
    assert chosen([0] * 8) == "loop"


def test_one_row_among_many_experts_takes_the_loop():
    assert chosen([1, 1, *[0] * 62]) == "loop"
