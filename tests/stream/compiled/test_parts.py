import gc
import logging
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

from moeapps.stream.compiled import jit, parts, references
from moeapps.stream.compiled.jit import entry, fill, kernel, uniform
from moeapps.stream.compiled.parts import CAN_LINK, Part
from moeapps.stream.compiled.references import as_reference, referable


@referable
class Inner(NamedTuple):
    numbers: np.ndarray
    flags: np.ndarray


class Settings(NamedTuple):
    rate: float
    on: bool
    steps: int


@referable
class Outer(NamedTuple):
    inner: Inner
    settings: Settings
    grid: np.ndarray
    pair: tuple


@kernel
def double(a):
    return 2.0 * a


@kernel
def half(a):
    return a / 2.0


@kernel
def both(a):
    return double(a) + half(a)


def read(o):
    o.grid[1, 2] += 1.0
    total = o.settings.rate if o.settings.on else 0.0
    for i in range(o.inner.numbers.shape[0]):
        total += o.inner.numbers[i] * (10.0 if o.inner.flags[i] else 1.0)
    return total + o.settings.steps + o.grid[1, 2] + o.pair[1][0]


def outer_state() -> Outer:
    inner = Inner(np.array([1.0, 2.0]), np.array([True, False]))
    return Outer(inner, Settings(0.25, True, 7), np.arange(6.0).reshape(2, 3), (np.zeros(1), np.array([0.5])))


def test_this_version_of_numba_links_parts_and_has_the_known_layout():
    assert CAN_LINK
    assert references.CAN_WRITE
    assert isinstance(double, Part)


def test_parts_are_the_same_linked_called_from_python_and_in_numbas_own_way(monkeypatch):
    def of(a):
        return both(a) + double(a)

    assert entry(of)(3.0) == of(3.0) == 13.5
    state, twin = np.array([1], dtype=np.uint64), np.array([1], dtype=np.uint64)
    monkeypatch.setattr(jit, "CAN_LINK", False)
    assert kernel(uniform.py_func)(state) == uniform(twin)
    assert state == twin


def test_a_reference_made_by_python_is_what_compiled_code_reads_and_writes():
    state = outer_state()
    reference = as_reference(state)
    assert kernel(read)(reference) == 0.25 + 10.0 + 2.0 + 7 + 6.0 + 0.5
    assert state.grid[1, 2] == 6.0  # shared
    other = as_reference(state._replace(settings=Settings(0.5, False, 1)))
    assert kernel(read)(other) == 12.0 + 1 + 7.0 + 0.5


def test_a_reference_in_numbas_own_way_is_the_same(monkeypatch):
    monkeypatch.setattr(references, "CAN_WRITE", False)
    state = outer_state()
    assert kernel(read)(as_reference(state)) == 25.75
    assert state.grid[1, 2] == 6.0


def test_a_reference_keeps_its_arrays():
    reference = as_reference(outer_state())
    gc.collect()
    noise = [np.full((2, 3), np.nan) for _ in range(1000)]
    assert kernel(read)(reference) == 25.75
    assert len(noise) == 1000


def test_a_reference_refuses_arrays_that_the_loops_cannot_use():
    fixed = np.zeros(2)
    fixed.flags.writeable = False
    for bad in (np.zeros(4)[::2], fixed):
        with pytest.raises(ValueError, match="contiguous and can be written to"):
            as_reference(Inner(bad, np.array([True, False])))


def test_progress_names_the_function_and_the_number_of_parts_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))  # an earlier run has compiled it
    monkeypatch.setattr(parts, "_FEW", 2)
    monkeypatch.setattr(parts, "_FIRST_LINE", 0.0)

    def told(a):
        return both(a)

    compiled = entry(told)
    with caplog.at_level(logging.WARNING, logger="moeapps.stream.compiled"):
        assert gc.isenabled()
        compiled(1)
        assert gc.isenabled()
        first = [record.message for record in caplog.records]
        compiled(2)
    assert first[0] == "moeapps compiles its stream loops for this machine, once: told and 3 functions that it calls"
    assert first[-1].startswith("moeapps compiles its stream loops: done, ")
    assert any("of 3 functions" in line for line in first[1:-1])
    assert len(caplog.records) == len(first)


def test_nothing_is_told_of_few_parts(caplog):
    def quiet(a):
        fill(a, 2, 1.0)

    with caplog.at_level(logging.WARNING, logger="moeapps.stream.compiled"):
        entry(quiet)(np.zeros(2))
    assert not caplog.records


SCRIPT = """
import sys, pandas as pd
from moeapps.stream import DriftMoEClassifier
model = DriftMoEClassifier(seed=0)
model.learn_one({"a": 1.0}, 0)
model.predict_one({"a": 1.0})
model.learn_many(pd.DataFrame({"a": [0.5] * 10}), [1] * 10)
"""


@pytest.mark.slow
def test_progress_is_told_where_nothing_has_been_compiled_and_never_after(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}

    def errors() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        return [line for line in done.stderr.splitlines() if "moeapps compiles its stream loops" in line]

    lines = errors()
    assert len([line for line in lines if "for this machine, once" in line]) == 1
    assert "done" in lines[-1]
    assert len(lines) < 10
    assert errors() == []
