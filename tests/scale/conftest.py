"""A table and its model for all tests of scoring."""

import numpy as np
import pandas as pd
import pytest

from moeapps import MoEClassifier
from moeapps.core.tabledata.scoring import predict_file


@pytest.fixture(scope="session")
def scored(tmp_path_factory):
    """A table with identifiers of 19 digits, its model, and what the model predicts in one process."""
    folder = tmp_path_factory.mktemp("scoring")
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"a": rng.normal(size=3000), "city": rng.choice(["Ulm", "Kiel"], 3000)})
    model = MoEClassifier(num_experts=2, max_epochs=1, random_state=0).fit(rows[:200], rows["a"][:200] > 0)
    model.save(folder / "model.safetensors")
    rows.insert(0, "id", [f"00{10**17 + n}" for n in rng.integers(0, 10**17, 3000)])
    rows.to_csv(folder / "rows.csv", index=False)
    predict_file(model, folder / "rows.csv", folder / "expected.csv", ["id"], batch_rows=300)
    return folder
