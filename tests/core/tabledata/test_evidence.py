"""What is counted of a column's texts does not depend on how often they repeat or how they come in batches."""

import re

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pytest

from moeapps.core.tabledata import evidence
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.evidence import ColumnEvidence

CELLS = ["7", "007", "Ulm", "2024-01-31", "[1, 2]", "true", "NA", "", "12345678901234567890", "1e5", " x", "3.0", None]


@pytest.mark.parametrize("seed", range(8))
def test_texts_are_counted_as_cell_by_cell(seed):
    rng = np.random.default_rng(seed)
    cells = rng.choice(np.array(CELLS, dtype=object), 200)
    found = ColumnEvidence("c", missing_texts())
    found.update(pd.Series(cells, dtype="str"))
    known = [cell for cell in cells if cell is not None and cell not in missing_texts()]
    for name, pattern in evidence._TEXT_PATTERNS.items():
        assert found.texts[name] == sum(re.search(pattern, cell) is not None for cell in known)
    first = next(row for row, cell in enumerate(cells) if cell in known and not re.search(evidence._NUMBER, cell))
    assert found.example["text"] == (first, cells[first])
    assert found.counts == {"text": len(known)}


def test_the_cell_that_an_error_names_is_the_first_of_its_kind_in_a_later_batch():
    found = ColumnEvidence("c", missing_texts())
    found.update(pd.Series(["1", "2", "1"] * 10, dtype="str"))
    found.update(pd.Series(["1", None, "two", "2", "two"], dtype="str"))
    assert found.example["text"] == (32, "two")


def test_a_pattern_is_tried_once_per_distinct_text(monkeypatch):
    tried = []
    match = pc.match_substring_regex

    def counting(cells, pattern):
        tried.append(len(cells))
        return match(cells, pattern)

    monkeypatch.setattr(pc, "match_substring_regex", counting)
    ColumnEvidence("c", missing_texts()).update(pd.Series(["a", "b", "a", "a"] * 1000, dtype="str"))
    assert set(tried) == {2}
