"""Rankers of other packages, trained on the events of recsys_ranking.py with the packages' own trainers.

Each function takes the three parts, the last of them the one to measure, and a seed. It returns the scores and the
seconds of training, and raises ImportError if the package is not installed.
"""

import tempfile
import time
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from moeapps.recsys import ImplicitFeedback, auc

__all__ = ["OTHERS", "RECBOLE", "Score"]

Score = Callable[[slice, np.ndarray | None], torch.Tensor]


def columns(feedback: ImplicitFeedback, own: np.ndarray, items: np.ndarray) -> dict[str, np.ndarray]:
    """User, item and history of some events with other items; items begin at 1, histories end at the newest."""
    histories = np.zeros((len(own), feedback.max_history), dtype=np.int64)
    found = feedback.histories(own) + 1
    if found.shape[1]:
        histories[:, -found.shape[1] :] = found
    return {"user": feedback.events.user[own], "item": items + 1, "history": histories}


def leading(history: np.ndarray) -> np.ndarray:
    """Histories whose entries begin a row, as packages with a length or a mask of the first entries want them."""
    return np.take_along_axis(history, np.argsort(history == 0, axis=1, kind="stable"), axis=1)


def drawn_rows(feedback: ImplicitFeedback, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Events and negatives that are drawn once, and the labels."""
    n, own = feedback.negatives, np.arange(len(feedback))
    drawn = feedback.negative_sampler(seed).draw(feedback.events.user, own, n)
    items = np.column_stack([feedback.events.item, drawn]).ravel()
    labels = np.tile([1.0, *[0.0] * n], len(own))
    return columns(feedback, np.repeat(own, n + 1)[items >= 0], items[items >= 0]), labels[items >= 0]


def scorer(predict: Callable[[dict[str, np.ndarray]], np.ndarray | torch.Tensor], measured: ImplicitFeedback) -> Score:
    """Scores of a model that predicts rows, an event at a time."""

    def score(part: slice, candidates: np.ndarray | None) -> torch.Tensor:
        own, number = np.arange(part.start, part.stop), len(measured.items)
        if candidates is None:
            candidates = np.broadcast_to(np.arange(number), (len(own), number))
        width = candidates.shape[1]
        found = [
            torch.as_tensor(predict(columns(measured, np.repeat(event, width), np.maximum(items, 0))))
            for event, items in zip(own, candidates, strict=True)
        ]
        return torch.stack(found).reshape(len(own), width).float()

    return score


def rechub_din(train: ImplicitFeedback, val: ImplicitFeedback, measured: ImplicitFeedback, seed: int) -> Any:
    """torch-rechub's DIN, with its own trainer; epochs by its early stopping on the validation part's AUC."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DIN
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    number, users = len(train.items) + 1, len(train.users)
    torch.manual_seed(seed)
    item = SparseFeature("item", number, embed_dim=16, padding_idx=0)
    user = SparseFeature("user", users, embed_dim=16)
    history = SequenceFeature("history", number, embed_dim=16, pooling="concat", shared_with="item", padding_idx=0)
    model = DIN([user], [history], [item], {"dims": [64, 32], "dropout": 0.2}, {"dims": [32]})
    start = time.perf_counter()
    (x, y), (x_val, y_val) = drawn_rows(train, seed), drawn_rows(val, seed)
    loader, valid, _ = DataGenerator(x, y).generate_dataloader(
        x_val=x_val, y_val=y_val, x_test=x_val, y_test=y_val, batch_size=1024
    )
    folder = Path("moeapps-runs")
    folder.mkdir(exist_ok=True)
    trainer = CTRTrainer(model, n_epoch=20, earlystop_patience=2, device="cpu", model_path=str(folder))
    trainer.fit(loader, valid)
    seconds = time.perf_counter() - start
    model.eval()

    def predict(rows: dict[str, np.ndarray]) -> torch.Tensor:
        with torch.inference_mode():
            return model({key: torch.from_numpy(value) for key, value in rows.items()})

    return scorer(predict, measured), seconds


def deepctr_din(train: ImplicitFeedback, val: ImplicitFeedback, measured: ImplicitFeedback, seed: int) -> Any:
    """deepctr-torch's DIN; 20 epochs at most, the one with the best AUC on the validation part, patience 2."""
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
    from deepctr_torch.models import DIN

    number = len(train.items) + 1
    features = [
        SparseFeat("user", len(train.users), 16),
        SparseFeat("item", number, 16),
        VarLenSparseFeat(
            SparseFeat("hist_item", number, 16, embedding_name="item"), train.max_history, "mean", "length"
        ),
    ]
    model = DIN(
        features, ["item"], dnn_hidden_units=(64, 32), att_hidden_size=(32,), dnn_dropout=0.2, seed=seed, device="cpu"
    )
    model.compile(torch.optim.Adam(model.parameters(), 1e-3), "binary_crossentropy", metrics=["auc"])

    def named(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        history = leading(rows["history"])
        return {"user": rows["user"], "item": rows["item"], "hist_item": history, "length": (history > 0).sum(1)}

    start = time.perf_counter()
    (x, y), (x_val, y_val) = drawn_rows(train, seed), drawn_rows(val, seed)
    x, x_val = named(x), named(x_val)
    best, kept, since = 0.0, None, 0
    for _ in range(20):
        model.fit(x, y, batch_size=1024, epochs=1, verbose=0)
        reached = auc(y_val, model.predict(x_val, 8192)[:, 0])
        best, since = (reached, 0) if reached > best else (best, since + 1)
        if since == 0:
            kept = {key: value.clone() for key, value in model.state_dict().items()}
        elif since == 2:
            break
    seconds = time.perf_counter() - start
    model.load_state_dict(kept)
    return scorer(lambda rows: model.predict(named(rows), 8192)[:, 0], measured), seconds


def recbole(
    model: str, train: ImplicitFeedback, val: ImplicitFeedback, measured: ImplicitFeedback, seed: int, **options: Any
) -> Any:
    """A sequential model of RecBole with its own trainer, defaults and early stopping."""
    from recbole.config import Config
    from recbole.data import data_preparation
    from recbole.data.dataset import SequentialDataset
    from recbole.data.interaction import Interaction
    from recbole.utils import FeatureSource, FeatureType, get_model, get_trainer, init_seed

    # RecBole 1.2 asks NumPy 2 for names of NumPy 1
    for name, kind in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
        setattr(np, name, kind)

    # As in RecBole's own data, events without a history are not learned
    parts = {}
    for name, part in {"train": train, "valid": val, "test": measured}.items():
        own = np.flatnonzero(part.history_lengths())
        parts[name] = columns(part, own, part.events.item[own])
    history = leading(np.concatenate([part["history"] for part in parts.values()]))
    longest = int((history > 0).sum(axis=1).max())

    def add_histories(dataset: Any) -> None:
        """In place of lists of its files, which RecBole 1.2 cannot read with pandas 3."""
        numbers = dataset.field2token_id["item_id"]
        dataset.code = torch.tensor([0, *(numbers[str(item)] for item in range(1, len(train.items) + 1))])
        dataset.set_field_property("item_id_list", FeatureType.TOKEN_SEQ, FeatureSource.INTERACTION, longest)
        dataset.set_field_property("item_length", FeatureType.TOKEN, FeatureSource.INTERACTION, 1)
        dataset.item_id_list_field = "item_id_list"
        entries = dataset.code[torch.from_numpy(history)]
        dataset.inter_feat["item_id_list"] = [row[row > 0].numpy() for row in entries]
        dataset.inter_feat["item_length"] = (history > 0).sum(axis=1)

    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # it writes logs to the current folder
        write_atomic(Path(folder) / "ours", parts, len(train.items))
        settings = {
            "data_path": folder,
            "checkpoint_dir": folder,
            "benchmark_filename": list(parts),
            "load_col": {"inter": ["user_id", "item_id"], "item": ["item_id"]},
            "MAX_ITEM_LIST_LENGTH": longest,
            "seed": seed,
            "use_gpu": False,
            "show_progress": False,
            **options,
        }
        config = Config(model=model, dataset="ours", config_dict=settings)
        init_seed(seed, True)
        start = time.perf_counter()
        with patch.object(SequentialDataset, "_benchmark_presets", add_histories):
            dataset = SequentialDataset(config)
        loader, valid, _ = data_preparation(config, dataset)
        network = get_model(model)(config, loader.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
        trainer.fit(loader, valid, verbose=False, show_progress=False)
        seconds = time.perf_counter() - start
        # The checkpoint has more than weights, and was written here
        network.load_state_dict(torch.load(trainer.saved_model_file, weights_only=False)["state_dict"])
    network.eval()

    def predict(rows: dict[str, np.ndarray]) -> torch.Tensor:
        entries = torch.from_numpy(leading(rows["history"])[:, :longest])
        asked = {
            "user_id": torch.zeros(len(entries), dtype=torch.long),
            "item_id": dataset.code[torch.from_numpy(rows["item"])],
            "item_id_list": dataset.code[entries],
            # One entry of padding where there is no history
            "item_length": (entries > 0).sum(1).clamp(min=1),
        }
        with torch.inference_mode():
            return network.predict(Interaction(asked))

    return scorer(predict, measured), seconds


def write_atomic(folder: Path, parts: dict[str, dict[str, np.ndarray]], items: int) -> None:
    """The parts and all items as RecBole's files."""
    folder.mkdir()
    for name, part in parts.items():
        lines = [f"{user}\t{item}" for user, item in zip(part["user"], part["item"], strict=True)]
        (folder / f"ours.{name}.inter").write_text("\n".join(["user_id:token\titem_id:token", *lines]) + "\n")
    lines = [str(item) for item in range(1, items + 1)]
    (folder / "ours.item").write_text("\n".join(["item_id:token", *lines]) + "\n")


AMONG_100 = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "uni100"}
"""Validation among 100 items. All of them take minutes an epoch where a network reads user and item together."""

OTHERS: dict[str, Callable[..., tuple[Score, float]]] = {
    "torch-rechub DIN": rechub_din,
    "deepctr-torch DIN": deepctr_din,
}

RECBOLE: dict[str, Callable[..., tuple[Score, float]]] = {
    "RecBole SASRec": partial(recbole, "SASRec", train_neg_sample_args=None),
    "RecBole DIN": partial(recbole, "DIN", eval_args=AMONG_100),
}
"""Hours on whole histories, so that they are trained on these only where ``--models`` names them."""
