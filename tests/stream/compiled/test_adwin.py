"""The compiled ADWIN alarms where river's does."""

import numpy as np
import pytest
from river.drift import ADWIN

from moeapps.stream.compiled.adwin import (
    COUNT,
    SUM,
    allocate_windows,
    reset_window,
    update_window,
)
from moeapps.stream.compiled.references import as_reference


@pytest.mark.parametrize("delta", [0.002, 0.05])
@pytest.mark.parametrize("seed", range(3))
def test_alarms_are_rivers(delta, seed):
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.random(2000) < p for p in (0.2, 0.5, 0.45, 0.9)] + [rng.normal(0.3, 0.1, 2000)])
    rival, windows = ADWIN(delta=delta), allocate_windows(2)
    reference = as_reference(windows)  # as the loops have it: no second machine code is needed
    theirs, ours = [], []
    for i, value in enumerate(values.astype(float)):
        rival.update(value)
        if rival.drift_detected:
            theirs.append(i)
        if update_window(reference, 1, value, delta):
            ours.append(i)
            reset_window(reference, 1)  # river starts anew after an alarm
    assert ours == theirs
    assert len(ours) >= 3
    assert windows.whole[0].sum() == 0  # the other window was not touched


def test_the_window_keeps_number_and_sum():
    windows = allocate_windows(1)
    reference = as_reference(windows)
    values = np.random.default_rng(0).random(1000)
    for value in values:
        assert not update_window(reference, 0, value, 1e-9)
    assert windows.whole[0, COUNT] == 1000
    assert windows.whole[0, SUM] == pytest.approx(values.sum())
    assert windows.whole[0, 2] == pytest.approx(1000 * values.var())
