"""Small streams that all tests of this package share."""

import numpy as np
import pandas as pd
import pytest

from moeapps.stream import synthetic_stream


@pytest.fixture(scope="session")
def sea():
    """5,000 instances of SEA as (rows, labels)."""
    rows, labels = zip(*synthetic_stream("sea_abrupt", 5000, seed=1), strict=True)
    return list(rows), list(labels)


@pytest.fixture(scope="session")
def mixed() -> tuple[pd.DataFrame, np.ndarray]:
    """2,000 rows with numbers, text, missing values and a column that begins late; three labels, one of them late."""
    rng = np.random.default_rng(0)
    n = 2000
    frame = pd.DataFrame(rng.normal(size=(n, 4)), columns=list("abcd"))
    frame["city"] = rng.choice(["Ulm", "Bonn", "Kiel", None], n)
    frame.loc[frame.index % 7 == 0, "b"] = np.nan
    frame.loc[:300, "d"] = np.nan
    score = frame["a"] + (frame["city"] == "Ulm") * 2
    labels = np.where(score > 1, "high", "low").astype(object)
    labels[(score < -1) & (frame.index > 500)] = "lowest"
    return frame, labels


@pytest.fixture(scope="session")
def elec(request) -> tuple[np.ndarray, np.ndarray]:
    """Electricity, where MOEAPPS_DATA has it."""
    import os
    from pathlib import Path

    folder = os.environ.get("MOEAPPS_DATA")
    if not folder:
        pytest.skip("MOEAPPS_DATA is not set")
    stream = Path(folder) / "stream"
    return np.loadtxt(stream / "elec2_data.dat"), np.loadtxt(stream / "elec2_label.dat").astype(int)
