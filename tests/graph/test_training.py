"""Training Mowst: what moves when, safeguards, stages, exact resume, and what it can learn."""

import copy
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from torch_geometric.data import Data

from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.graph import GNNModule, GraphDataModule, Mowst, MowstModule
from moeapps.graph.plan import TrainingPlan
from tests.graph.helpers import small_graph, trainer

ROOT = Path(__file__).parent.parent.parent


def module(**kwargs) -> MowstModule:
    """With rates that end every stage after a few epochs."""
    quick = {
        "strong": "gcn",
        "hidden_channels": 8,
        "norm": None,
        "patience": 2,
        "round_patience": 1,
        "lr": 0.03,
        "weight_decay": 0.1,
    }
    return MowstModule(**{**quick, **kwargs})


class Watch(L.Callback):
    """Note, for each training step, the stage and which parts' parameters or buffers it changed."""

    def __init__(self) -> None:
        self.moved: list[tuple[str, set[str]]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.stage = pl_module.plan.stage_name
        self.before = copy.deepcopy(pl_module.model.state_dict())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        after = pl_module.model.state_dict()
        moved = {
            name.split(".")[1] + ("_gate" if name.startswith("gates") else "")
            for name, value in after.items()
            if not torch.equal(value.nan_to_num(), self.before[name].nan_to_num())
        }
        self.moved.append((self.stage, moved))


@pytest.mark.parametrize("norm", [None, "batch_norm"])
@pytest.mark.parametrize("variant", ["mowst", "mowst_star"])
def test_each_stage_moves_its_own_parts_bit_for_bit(tmp_path, variant, norm):
    watch = Watch()
    trainer(tmp_path, watch, epochs=300).fit(module(variant=variant, norm=norm), GraphDataModule(small_graph()))
    allowed = {
        "pretrain_weak": {"weak"}, "pretrain_strong": {"strong"}, "fit_gate": {"weak_gate"},
        "joint": {"weak", "strong", "weak_gate"},
        "weak_turn": {"weak", "weak_gate"}, "strong_turn": {"strong"},
    }  # fmt: skip
    stages = [stage for stage, _ in watch.moved]
    assert list(dict.fromkeys(stages)) == ["pretrain_weak", "pretrain_strong", "fit_gate"] + (
        ["joint"] if variant == "mowst_star" else ["weak_turn", "strong_turn"]
    )
    for stage, moved in watch.moved:
        assert moved == allowed[stage], stage


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("variant", ["mowst", "mowst_star"])
def test_the_result_never_validates_worse_than_an_expert_alone(tmp_path, variant, seed):
    torch.manual_seed(seed)
    learned = module(variant=variant)
    seen: list[float] = []

    class Note(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            metrics = trainer.callback_metrics
            if metrics["stage"] == list(pl_module.plan.stages).index("fit_gate") and not seen:
                seen.append(max(float(metrics[f"val/{e}_accuracy"]) for e in ("weak", "strong")))

    data = GraphDataModule(small_graph())
    trainer(tmp_path, Note(), epochs=300).fit(learned, data)
    mask, y = data.graph.val_mask, data.graph.y
    predicted = learned.model.eval()(data.graph.x, data.graph.edge_index).log_probs.argmax(-1)
    assert float((predicted == y)[mask].float().mean()) >= seen[0] - 1e-6


def test_a_champion_expert_is_what_the_model_predicts_with():
    model = Mowst(5, 3)
    plan = TrainingPlan(("weak", "strong"), "mowst_star", "none", False, patience=1, round_patience=1)
    plan.start({"strong": (0.9,), "weak": (0.5,), "mix": (0.7,)}, model)
    assert plan.update({"strong": (0.1,), "weak": (0.1,), "mix": (0.1,)}, model)
    assert plan.finished
    assert plan.champion == "strong"
    assert float(model.gates["weak"].forced) == 0.0


def test_a_stage_goes_back_to_its_best_state():
    model = Mowst(5, 3)
    plan = TrainingPlan(("weak", "strong"), "mowst_star", "none", False, patience=2, round_patience=1)

    def score(value):
        return {"strong": (0.0,), "weak": (0.0,), "mix": (value,)}

    plan.start(score(0.5), model)
    for value, bias in ((0.8, 1.0), (0.6, 2.0), (0.7, 3.0)):
        with torch.no_grad():
            model.gates["weak"].net[2].bias.fill_(bias)
        plan.update(score(value), model)
    assert plan.finished
    assert float(model.gates["weak"].net[2].bias.detach()) == 1.0
    assert plan.champion == "mix"


def test_rounds_end_when_they_stop_helping():
    model = Mowst(5, 3, variant="mowst")
    plan = TrainingPlan(("weak", "strong"), "mowst", "none", False, patience=1, round_patience=2)
    flat = {"strong": (0.0,), "weak": (0.0,), "mix": (0.5,)}
    plan.start(flat, model)
    names = []
    while not plan.finished:
        names.append((plan.round, plan.stage_name))
        plan.update(flat, model)
    assert names == [(r, s) for r in range(3) for s in ("weak_turn", "strong_turn")]


@pytest.mark.parametrize("variant", ["mowst", "mowst_star"])
@pytest.mark.parametrize(
    "cut", [pytest.param(cut, marks=pytest.mark.slow) if cut != 19 else cut for cut in (1, 9, 17, 19)]
)
def test_a_killed_training_resumes_to_the_same_bits(tmp_path, variant, cut):
    class Keep(L.Callback):
        """Keep the checkpoint that a training leaves which is killed in this epoch."""

        def on_train_batch_end(self, trainer, *args):
            if trainer.current_epoch == cut:
                shutil.copy(tmp_path / "last.ckpt", tmp_path / "cut.ckpt")

    torch.manual_seed(0)
    whole = module(variant=variant)
    trainer(tmp_path, Keep(), epochs=400).fit(whole, GraphDataModule(small_graph()))
    torch.manual_seed(99)
    rest = module(variant=variant)
    trainer(tmp_path / "rest", epochs=400).fit(rest, GraphDataModule(small_graph()), ckpt_path=tmp_path / "cut.ckpt")
    assert rest.plan.finished
    assert rest.plan.champion == whole.plan.champion
    for (name, ours), reference in zip(rest.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours.nan_to_num(), reference.nan_to_num()), name


def test_a_finished_training_that_is_resumed_stays_as_it_is(tmp_path):
    first = module()
    trainer(tmp_path, epochs=400).fit(first, GraphDataModule(small_graph()))
    again = module()
    trainer(tmp_path / "again", epochs=500).fit(again, GraphDataModule(small_graph()), ckpt_path=tmp_path / "last.ckpt")
    for ours, reference in zip(again.state_dict().values(), first.state_dict().values(), strict=True):
        assert torch.equal(ours.nan_to_num(), reference.nan_to_num())


def test_an_epoch_limit_still_ends_with_the_champion(tmp_path):
    learned = module()
    trainer(tmp_path, epochs=5).fit(learned, GraphDataModule(small_graph()))
    assert learned.plan.finished
    loaded = MowstModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True, map_location="cpu")
    for ours, reference in zip(loaded.state_dict().values(), learned.state_dict().values(), strict=True):
        assert torch.equal(ours.nan_to_num(), reference.nan_to_num())


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    trainer(tmp_path, epochs=3).fit(module(), GraphDataModule(small_graph()))
    for other in (module(hidden_channels=9), GNNModule(hidden_channels=8)):
        with pytest.raises(FileFormatError, match="does not fit"):
            trainer(tmp_path / "x", epochs=4).fit(
                other, GraphDataModule(small_graph()), ckpt_path=tmp_path / "last.ckpt"
            )


@pytest.mark.parametrize("make", [module, lambda: GNNModule(hidden_channels=8)], ids=["mowst", "one network"])
def test_a_checkpoint_with_an_optimiser_of_other_shapes_is_refused(tmp_path, make):
    trainer(tmp_path, epochs=2).fit(make(), GraphDataModule(small_graph()))
    checkpoint = AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    state = next(optimizer["state"] for optimizer in checkpoint["optimizer_states"] if optimizer["state"])
    state[min(state)]["exp_avg"] = torch.zeros(2)
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "forged.ckpt")
    with pytest.raises(FileFormatError, match=r"exp_avg of .* has the shape \(2,\)"):
        trainer(tmp_path / "x", epochs=3).fit(
            make(), GraphDataModule(small_graph()), ckpt_path=tmp_path / "forged.ckpt"
        )


def test_a_weak_expert_that_memorises_its_nodes_is_reported(tmp_path):
    generator = torch.Generator().manual_seed(0)
    data = small_graph(90)
    data.x = torch.randn(90, 300, generator=generator)  # pure noise, wide enough to be learned by heart
    learned = module(
        gate_fit="train",
        pretrain="weak",
        variant="mowst",
        dropout=0.0,
        weight_decay=0.0,
        hidden_channels=64,
        confidence="given",
    )
    with pytest.warns(UserWarning, match="far surer of training nodes"):
        trainer(tmp_path, epochs=20).fit(learned, GraphDataModule(data))


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"variant": "star"}, "variant"), ({"gate_fit": "test"}, "gate_fit"), ({"pretrain": "all"}, "pretrain"),
        ({"monitor": "auroc"}, "monitor"), ({"inference": "x"}, "inference"), ({"lr": -1}, "lr"),
        ({"lr_gate": float("nan")}, "lr_gate"), ({"patience": 0}, "patience"),
    ],
)  # fmt: skip
def test_impossible_arguments_are_named(arguments, culprit):
    with pytest.raises(ConfigError, match=f"{culprit} must be"):
        MowstModule(**arguments)


def test_a_module_without_sizes_and_without_data_says_so():
    with pytest.raises(ConfigError, match="in_channels is not set"):
        MowstModule().configure_model()


@pytest.mark.slow
def test_a_task_made_of_two_halves_needs_both_experts(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from graph_two_halves import compare

    found = [compare(seed) for seed in range(2)]
    for scores, gap in found:
        assert scores["Mowst*"] - max(scores["MLP"], scores["GCN"]) > 0.02, found
        assert gap > 0.1, found


def splits() -> Data:
    data = small_graph()
    masks = torch.stack([data.train_mask, data.val_mask, data.test_mask], dim=1)
    data.train_mask, data.val_mask, data.test_mask = masks, masks.roll(1, 1), masks.roll(2, 1)
    return data


@pytest.mark.parametrize("make", [module, lambda: GNNModule(hidden_channels=8)], ids=["Mowst", "one network"])
def test_a_checkpoint_is_tested_on_the_split_and_the_classes_it_was_trained_on(tmp_path, make):
    trainer(tmp_path, epochs=1).fit(make(), GraphDataModule(splits(), split=2))
    last = str(tmp_path / "last.ckpt")
    again = trainer(tmp_path, epochs=1)
    (found,) = again.test(make(), GraphDataModule(splits(), split=2), ckpt_path=last, verbose=False)
    assert found["test/accuracy"] > 0
    with pytest.raises(DataError, match="trained on split 2, this is split 0 of the data.*give split=2"):
        again.test(make(), GraphDataModule(splits()), ckpt_path=last, verbose=False)
    with pytest.raises(DataError, match="trained on split 2, this is split 1"):
        trainer(tmp_path / "next", epochs=2).fit(make(), GraphDataModule(splits(), split=1), ckpt_path=last)
    assert again.test(make(), GraphDataModule(small_graph()), ckpt_path=last, verbose=False)  # has no splits
    assert len(again.predict(make(), GraphDataModule(splits()), ckpt_path=last)) == 1
    other = small_graph()
    other.y = other.y + 1
    for attempt in (again.test, again.predict):
        with pytest.raises(DataError, match=r"trained on the classes \[0, 1, 2\], .* this data are \[1, 2, 3\]"):
            attempt(make(), GraphDataModule(other), ckpt_path=last)
