"""Exported programs give what the ranker gives, and files that do not belong together are refused."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from moeapps.core import predict_file
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.recsys import AWMoERanker, MultiTaskRanker, OnnxRanker, export_ranker

pytest.importorskip("onnxruntime")
QUICK = {"max_epochs": 1, "random_state": 0, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 10_000
    frame = pd.DataFrame({"user_id": rng.integers(0, 40, n), "item_id": rng.integers(0, 60, n)})
    frame["age"] = rng.normal(40, 9, n)
    frame["item_id_history"] = [rng.integers(0, 60, rng.integers(0, 12)).tolist() for _ in range(n)]
    frame["click"] = (frame["item_id"] % 2).astype(int)
    frame["stay"] = frame["age"] / 10
    frame["views"] = rng.poisson(2, n)
    return frame


def multi(name: str, frame: pd.DataFrame) -> MultiTaskRanker:
    return MultiTaskRanker(name, **QUICK).fit(frame, ["click", "stay", "views"], kinds={"views": "count"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["home", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ple", "aw_moe"))])
def test_onnx_and_torch_agree_on_ten_thousand_rows(name, frame, tmp_path):
    part = frame.drop(columns=["stay", "views"])
    model = AWMoERanker(**QUICK).fit(part, "click") if name == "aw_moe" else multi(name, frame)
    export_ranker(model, tmp_path)
    found = OnnxRanker(tmp_path).predict_proba(frame.drop(columns=["stay", "views"]))
    np.testing.assert_allclose(found, model.predict_proba(part), atol=1e-5)
    assert len(OnnxRanker(tmp_path).predict_proba(part[:0])) == 0


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torch_export_agrees_too(frame, tmp_path):
    model = multi("mmoe", frame)
    path = export_ranker(model, tmp_path, form="torch")
    program = torch.export.load(path).module()
    rows = model.encoder_.transform(frame)
    found = program(rows.sparse, rows.dense, *rows.sequences).detach()
    np.testing.assert_allclose(found, model.predict_proba(frame), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_files_are_scored_and_damaged_or_mixed_ones_refused(frame, tmp_path):
    model = MultiTaskRanker("mmoe", **QUICK).fit(frame[["user_id", "age", "click"]][:500], ["click"])
    export_ranker(model, tmp_path / "a")
    frame[:300].to_csv(tmp_path / "in.csv", index=False)
    assert predict_file(OnnxRanker(tmp_path / "a"), tmp_path / "in.csv", tmp_path / "out.csv", keep=["item_id"]) == 300
    found = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(found["click"], model.predict_proba(frame[["user_id", "age"]][:300])["click"], atol=1e-5)
    program, table = tmp_path / "a/model.onnx", tmp_path / "a/table.json"
    program.write_bytes(program.read_bytes() + b"x")
    with pytest.raises(FileFormatError, match="is damaged, or does not belong to"):
        OnnxRanker(tmp_path / "a")
    table.write_text(json.dumps({"encoder": 3}))
    with pytest.raises(FileFormatError, match=r"table.json is damaged"):
        OnnxRanker(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        OnnxRanker(tmp_path)


def test_without_onnx_the_extra_is_named(frame, tmp_path, monkeypatch):
    model = MultiTaskRanker("mmoe", **QUICK).fit(frame[["user_id", "age", "click"]][:500], ["click"])
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"moeapps\[onnx\]"):
        export_ranker(model, tmp_path)
    with pytest.raises(ConfigError, match=r"moeapps\[onnx\]"):
        OnnxRanker(tmp_path)
    with pytest.raises(ConfigError, match="form must be one of onnx, torch"):
        export_ranker(model, tmp_path, form="pickle")
    assert list(tmp_path.iterdir()) == []
