"""Exported programs give what the ranker gives, and files that do not belong together are refused."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from moeapps.core import predict_file
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.recsys import AWMoERanker, MultiTaskRanker, OnnxRanker, export_ranker
from moeapps.recsys.network import MULTI_TASK_MODELS, SEQUENCE_MODELS

pytest.importorskip("onnxruntime")
QUICK = {"max_epochs": 1, "random_state": 0, "accelerator": "cpu"}
ROWS = 10_000


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"user_id": rng.integers(0, 40, ROWS), "item_id": rng.integers(0, 60, ROWS)})
    frame["age"] = rng.normal(40, 9, ROWS)
    frame["item_id_history"] = [rng.integers(0, 60, rng.integers(0, 12)).tolist() for _ in range(ROWS)]
    frame["click"] = (frame["item_id"] % 2).astype(int)
    frame["stay"] = frame["age"] / 10
    frame["views"] = rng.poisson(2, ROWS)
    return frame


def multi(name: str, frame: pd.DataFrame) -> MultiTaskRanker:
    options = {"expert": [16], "tower": [8]}
    return MultiTaskRanker(name, options=options, **QUICK).fit(
        frame[:2000], ["click", "stay", "views"], kinds={"views": "count"}
    )


@pytest.fixture(scope="module")
def model(frame) -> MultiTaskRanker:
    return multi("mmoe", frame)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    """Folder of the exported model."""
    folder = tmp_path_factory.mktemp("exported")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_ranker(model, folder)
    return folder


def test_onnx_agrees_on_ten_thousand_rows(model, exported, frame):
    part = frame.drop(columns=["stay", "views"])
    ranker = OnnxRanker(exported)
    np.testing.assert_allclose(ranker.predict_proba(part), model.predict_proba(part), atol=1e-5)
    assert len(ranker.predict_proba(part[:0])) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*MULTI_TASK_MODELS, *SEQUENCE_MODELS])
@pytest.mark.parametrize(
    "columns", [["user_id", "item_id", "age", "item_id_history"], ["user_id", "item_id", "item_id_history"],
                ["user_id", "item_id"], ["age"]]
)  # fmt: skip
def test_both_programs_agree_for_every_model_and_kind_of_column(name, columns, frame, tmp_path):
    if name in SEQUENCE_MODELS and "item_id_history" not in columns:
        pytest.skip("needs a history")
    part = frame[columns]
    fitted = frame[[*columns, "click"]] if name in SEQUENCE_MODELS else frame[[*columns, "click", "stay", "views"]]
    model = AWMoERanker(name, **QUICK).fit(fitted[:2000], "click") if name in SEQUENCE_MODELS else multi(name, fitted)
    expected = model.predict_proba(part)
    export_ranker(model, tmp_path)
    np.testing.assert_allclose(OnnxRanker(tmp_path).predict_proba(part), expected, atol=1e-5)
    program = torch.export.load(export_ranker(model, tmp_path, form="torch")).module()
    rows = model.encoder_.transform(part)
    for count in (0, 1, len(part)):
        outputs = program(rows.sparse[:count], rows.dense[:count], *(entries[:count] for entries in rows.sequences))
        np.testing.assert_allclose(outputs.detach(), expected[:count], atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_table_of_numbers_only_is_exported_by_torch(frame, tmp_path):
    model = MultiTaskRanker("mmoe", **QUICK).fit(frame[["age", "click"]][:2000], ["click"])
    program = torch.export.load(export_ranker(model, tmp_path, form="torch")).module()
    part = frame[["age"]]
    rows = model.encoder_.transform(part)
    np.testing.assert_allclose(program(rows.sparse, rows.dense).detach(), model.predict_proba(part), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torch_export_agrees_too(model, frame, tmp_path):
    program = torch.export.load(export_ranker(model, tmp_path, form="torch")).module()
    rows = model.encoder_.transform(frame)
    outputs = program(rows.sparse, rows.dense, *rows.sequences).detach()
    np.testing.assert_allclose(outputs, model.predict_proba(frame), atol=1e-5)


def test_files_are_scored_and_damaged_or_mixed_ones_refused(model, exported, frame, tmp_path):
    shutil.copytree(exported, tmp_path / "a")
    frame[:300].assign(row=range(300)).to_csv(tmp_path / "in.csv", index=False)
    assert predict_file(OnnxRanker(tmp_path / "a"), tmp_path / "in.csv", tmp_path / "out.csv", keep=["row"]) == 300
    scores = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(scores["probability_click"], model.predict_proba(frame[:300])["click"], atol=1e-5)
    program, table = tmp_path / "a/model.onnx", tmp_path / "a/table.json"
    program.write_bytes(program.read_bytes() + b"x")
    with pytest.raises(FileFormatError, match="is damaged, or does not belong to"):
        OnnxRanker(tmp_path / "a")
    table.write_text(json.dumps({"encoder": 3}))
    with pytest.raises(FileFormatError, match=r"table.json is damaged"):
        OnnxRanker(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        OnnxRanker(tmp_path)


def test_without_onnx_the_extra_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"moeapps\[onnx\]"):
        export_ranker(model, tmp_path)
    with pytest.raises(ConfigError, match=r"moeapps\[onnx\]"):
        OnnxRanker(tmp_path)
    with pytest.raises(ConfigError, match="form must be one of onnx, torch"):
        export_ranker(model, tmp_path, form="pickle")
    assert list(tmp_path.iterdir()) == []
