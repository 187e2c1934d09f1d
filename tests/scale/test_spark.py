"""The recipe for Spark in the guide: what `predict_proba` says, by the workers of Spark."""

import re
import shutil
import sys

import pandas as pd
import pytest

from moeapps import load
from tests.test_docs import ROOT

pyspark = pytest.importorskip("pyspark")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:::pyspark"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java"),
]


def test_the_recipe_of_the_guide_predicts_what_the_model_does(scored, tmp_path, monkeypatch):
    from pyspark.sql import SparkSession

    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.chdir(tmp_path)
    shutil.copy(scored / "model.safetensors", tmp_path / "bought.safetensors")
    rows = pd.read_csv(scored / "rows.csv", dtype={"id": str})[:200]
    rows.to_csv("customers.csv", index=False)
    recipe = re.search(r"```py\n(.*?)```", (ROOT / "docs/scaling.md").read_text(), re.DOTALL)[1]
    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    try:
        exec(compile(recipe, "docs/scaling.md", "exec"), {"spark": session, "columns": ["a", "city"]})
        found = session.read.parquet("scores").toPandas().sort_values("id")
    finally:
        session.stop()
    expected = load(tmp_path / "bought.safetensors").predict_proba(rows[["a", "city"]])[:, 1]
    pd.testing.assert_series_equal(
        found["probability"].reset_index(drop=True),
        pd.Series(expected, name="probability")[rows["id"].argsort()].reset_index(drop=True),
        rtol=1e-5, check_dtype=False,
    )  # fmt: skip
