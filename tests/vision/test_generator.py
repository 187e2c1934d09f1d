"""SwitchDiTGenerator and DiffusionModule: sampling, layouts, refused input, saving, averaged weights, resuming."""

import subprocess
import sys
import warnings
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from sklearn.exceptions import NotFittedError

import moeapps
from moeapps.core.callbacks import LastCheckpoint, StepSeeding
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.vision import DiffusionModule, ImageModule, PublicImageData, SampleImages, SwitchDiTGenerator
from tests.vision.conftest import GENERATOR


def test_images_have_the_range_layout_and_type_of_training(digits, generator):
    X, y = digits
    drawn = generator.sample(7, steps=5)
    assert drawn.shape == (7, 8, 8)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() <= 16
    whole = (X * 15).astype(np.uint8)
    rgb = np.stack([whole] * 3, axis=-1)
    found = SwitchDiTGenerator(**GENERATOR).fit(rgb, y).sample(3, steps=5)
    assert found.shape == (3, 8, 8, 3)
    assert found.dtype == np.uint8
    first = SwitchDiTGenerator(**GENERATOR).fit(rgb.transpose(0, 3, 1, 2), y).sample(3, steps=5)
    np.testing.assert_array_equal(first, found.transpose(0, 3, 1, 2))


def test_labels_are_drawn_one_after_the_other_or_as_told(digits, generator):
    X, y = digits
    names = np.array([f"digit {label}" for label in y])
    model = SwitchDiTGenerator(**GENERATOR).fit(X, names)
    every = model.sample(12, steps=5)
    np.testing.assert_array_equal(every[:3], model.sample(3, y=["digit 0", "digit 1", "digit 2"], steps=5))
    np.testing.assert_array_equal(model.sample(3, y="digit 4", steps=5), model.sample(3, y=["digit 4"] * 3, steps=5))
    assert (model.sample(1, y="digit 4", steps=5) - model.sample(1, y="digit 7", steps=5)).any()
    assert (model.sample(1, y="digit 4", steps=5, guidance=4.0) - model.sample(1, y="digit 4", steps=5)).any()


def test_an_image_depends_on_its_seed_and_number_only(generator):
    whole = generator.sample(6, y=3, steps=10, sampler="ddpm", seed=5)
    np.testing.assert_allclose(generator.sample(2, y=3, steps=10, sampler="ddpm", seed=5), whole[:2], atol=1e-3)
    assert np.abs(generator.sample(6, y=3, steps=10, seed=6) - generator.sample(6, y=3, steps=10, seed=5)).max() > 0.1
    module = generator.model_
    once = module.sample(torch.arange(6), steps=10, seed=1)
    torch.testing.assert_close(module.sample(torch.arange(6), steps=10, seed=1, batch_size=4), once, atol=1e-4, rtol=0)


def test_a_later_part_of_a_seed_is_sampled_by_itself_and_a_watcher_may_end_it(generator):
    whole = generator.sample(6, y=3, steps=5, sampler="ddpm", seed=5)
    part = generator.sample(2, y=3, steps=5, sampler="ddpm", seed=5, first=4)
    np.testing.assert_allclose(part, whole[4:], atol=1e-3)
    seen = []

    def watch(step, x, x0):
        seen.append(step)
        if step == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        generator.sample(1, y=3, steps=5, watch=watch)
    assert seen == [0, 1, 2]
    with pytest.raises(ConfigError, match="first must be"):
        generator.sample(1, y=3, steps=5, first=-1)


def test_images_become_pixels_of_files(digits):
    X, y = digits
    grey = SwitchDiTGenerator(**GENERATOR).fit(X, y)
    np.testing.assert_array_equal(grey.to_pixels([[0.0, 8.0, 16.0, 99.0]]), [[0, 128, 255, 255]])
    whole = (X * 15).astype(np.uint8)
    last = SwitchDiTGenerator(**GENERATOR).fit(np.stack([whole] * 3, axis=-1), y)
    first = SwitchDiTGenerator(**GENERATOR).fit(np.stack([whole] * 3, axis=1), y)
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    np.testing.assert_array_equal(last.to_pixels(image), image)
    np.testing.assert_array_equal(first.to_pixels(image.transpose(2, 0, 1)), image)
    single = SwitchDiTGenerator(**GENERATOR).fit(whole[:, None], y)
    assert single.to_pixels(single.sample(2, steps=2)).shape == (2, 8, 8)


@pytest.mark.slow  # test_noise_is_the_same_in_every_process and test_saving_keeps_every_bit are its fast twins
def test_another_process_draws_the_same_images(generator, tmp_path):
    generator.save(tmp_path / "model.safetensors")
    script = (
        "import sys, numpy, moeapps\n"
        "drawn = moeapps.load(sys.argv[1]).sample(3, steps=5, sampler='ddpm', seed=9)\n"
        "numpy.save(sys.argv[2], drawn)"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model.safetensors"), str(tmp_path / "drawn.npy")],
        check=True, env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(moeapps.__file__).parent.parent)},
    )  # fmt: skip
    found = np.load(tmp_path / "drawn.npy")
    np.testing.assert_allclose(found, generator.sample(3, steps=5, sampler="ddpm", seed=9), atol=1e-3)


def test_without_labels(digits):
    model = SwitchDiTGenerator(**GENERATOR).fit(digits[0])
    assert model.classes_ is None
    assert model.sample(4, steps=5).shape == (4, 8, 8)
    with pytest.raises(DataError, match="fitted without labels"):
        model.sample(2, y=1)
    with pytest.raises(ConfigError, match="guidance needs labels"):
        model.sample(2, steps=5, guidance=2.0)


def test_the_way_from_noise_ends_in_the_image(generator):
    way = generator.trajectory(3, y=[1, 2, 3], frames=4, steps=10, seed=2)
    assert way.shape == (3, 4, 8, 8)
    np.testing.assert_allclose(way[:, -1], generator.sample(3, y=[1, 2, 3], steps=10, seed=2), atol=1e-4)
    assert np.abs(np.diff(way, axis=1)).max(axis=(0, 2, 3)).min() > 0


@pytest.mark.parametrize(
    "options", [{}, {"model": "dit", "learn_sigma": True}, {"schedule": "linear", "prediction": "eps"}]
)
def test_saving_keeps_every_bit(options, digits, tmp_path):
    model = SwitchDiTGenerator(**{**GENERATOR, **options}).fit(*digits)
    model.save(tmp_path / "model.safetensors")
    loaded = moeapps.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.sample(4, steps=5, guidance=2.0), model.sample(4, steps=5, guidance=2.0))
    assert loaded.get_params() == model.get_params()
    assert loaded.history_["train/task"].tolist() == model.history_["train/task"].tolist()


def test_the_timestep_chooses_experts_and_the_prior_is_followed(digits):
    X, y = (part[:64] for part in digits)
    model = SwitchDiTGenerator(**{**GENERATOR, "max_epochs": 24, "lr": 2e-2, "match_every": 10}).fit(X, y)
    table = model.gate_table()
    assert table.shape == (2, 50, 3)
    assert ((table > 0).sum(2) == 2).all()
    prior = model.history_["train/prior"]
    assert prior.iloc[-1] < 0.5 * prior.iloc[0]
    without = SwitchDiTGenerator(**{**GENERATOR, "prior_weight": 0.0}).fit(X, y)
    assert "train/prior" not in without.history_
    with pytest.raises(ConfigError, match="model='dit' has no experts"):
        SwitchDiTGenerator(**{**GENERATOR, "model": "dit"}).fit(X, y).gate_table()


def test_validation_is_logged_and_does_not_choose(digits):
    model = SwitchDiTGenerator(**{**GENERATOR, "validation_fraction": 0.2, "max_epochs": 2}).fit(*digits)
    assert model.history_["val/loss"].notna().all()
    assert model.n_iter_ == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X[:, :6], y), "images must be square, got 6 x 8"),
        (lambda X, y: (X[:, :7, :7], y), "img_size=7 is not a multiple of patch_size=2"),
        (lambda X, y: (X * 0, y), "every pixel is 0: there is nothing to learn"),
        (lambda X, y: (X, y[:5]), "160 images and 5 labels"),
        (lambda X, y: (X[:, 0, 0], y), "expected images of shape"),
        (lambda X, y: (np.where(X > 15, np.nan, X), y), "has a pixel that is NaN"),
    ],
)
def test_impossible_images_are_refused_and_the_model_is_kept(change, message, digits, generator):
    before = generator.sample(2, steps=3)
    with pytest.raises((DataError, ConfigError), match=message):
        generator.fit(*change(*digits))
    np.testing.assert_array_equal(generator.sample(2, steps=3), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "gan"}, "model must be one of switch_dit, dit"),
        ({"schedule": "sigmoid"}, "schedule must be one of"),
        ({"dim": 18, "num_heads": 4}, "dim=18 must be a multiple"),
        ({"top_k": 4}, "top_k must be between 1 and num_experts=3"),
        ({"ema_decay": 1.0}, "ema_decay must be below 1"),
        ({"class_dropout": 1.0}, "class_dropout must be"),
        ({"match_every": 0}, "match_every must be"),
        ({"lr": float("nan")}, "lr must be"),
        ({"batch_size": 0}, "batch_size must be"),
    ],
)
def test_impossible_arguments_are_named(arguments, message, digits):
    with pytest.raises(ConfigError, match=message):
        SwitchDiTGenerator(**{**GENERATOR, **arguments}).fit(*digits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n must be"),
        ({"n": 2, "y": 11}, "y has labels that training lacked: 11"),  # the code of "no class" is not a label
        ({"n": 2, "y": -1}, "y has labels that training lacked: -1"),
        ({"n": 2, "y": [1, 2, 3]}, "y must be one label, or n=2 labels"),
        ({"n": 2, "steps": 51}, "steps must be at most the 50 timesteps"),
        ({"n": 2, "seed": -1}, "seed must be a whole number of at least 0"),
        ({"n": 2, "sampler": "magic"}, "sampler must be one of"),
    ],
)
def test_impossible_samples_are_refused(arguments, message, generator):
    with pytest.raises((DataError, ConfigError), match=message):
        generator.sample(**arguments)
    with pytest.raises(NotFittedError):
        SwitchDiTGenerator().sample(1)


# ----------------------------------------------------------------------------------------------------- the module


def module(**options) -> DiffusionModule:
    torch.manual_seed(3)
    sizes = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
    return DiffusionModule(**{"options": sizes, "timesteps": 50, "lr": 1e-3, "ema_decay": 0.9, **options})


def trained(
    folder: Path, epochs: int, resume: Path | None = None, callbacks=(), logger=False, **options
) -> DiffusionModule:
    found = module(**options)
    data = PublicImageData("digits", batch_size=64, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=epochs, default_root_dir=folder, logger=logger, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[StepSeeding(0), LastCheckpoint(), *callbacks],
            plugins=[AtomicCheckpointIO()], limit_train_batches=3, limit_val_batches=1,
        )  # fmt: skip
        trainer.fit(found, datamodule=data, ckpt_path=resume, weights_only=True)
    return found


def test_a_training_goes_on_exactly_with_its_averaged_weights(tmp_path):
    whole = trained(tmp_path / "whole", 3, match_every=2)
    trained(tmp_path / "part", 1, match_every=2)
    checkpoint = next((tmp_path / "part").rglob("last.ckpt"))
    rest = trained(tmp_path / "part", 3, resume=checkpoint, match_every=2)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(rest.state_dict()[name], value, atol=0, rtol=0, msg=name)


def test_a_training_that_0_1_began_goes_on_without_biases(tmp_path):
    """The module has today's defaults, since the YAML file of then names none; the checkpoint does not know them."""
    sizes = {"dim": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
    then = {"options": {**sizes, "gate_bias": False}, "prior_gates": "chosen", "match_every": 2, "ema_rising": False}
    whole = trained(tmp_path / "whole", 3, **then)
    old = trained(tmp_path / "part", 1, **then)
    path = next((tmp_path / "part").rglob("last.ckpt"))
    content = AtomicCheckpointIO().load_checkpoint(path)
    for name in ("prior_gates", "ema_rising"):
        del content["hyper_parameters"][name]
    content["hyper_parameters"]["options"] = sizes
    AtomicCheckpointIO().save_checkpoint(content, path)
    loaded = DiffusionModule.load_from_checkpoint(path, weights_only=True)
    assert (loaded.hparams["prior_gates"], loaded.hparams["options"]["gate_bias"]) == ("chosen", False)
    labels = torch.tensor([1, 2])
    assert torch.equal(loaded.sample(labels, steps=3), old.sample(labels, steps=3))
    rest = trained(tmp_path / "part", 3, resume=path, match_every=2)
    assert rest.config.prior_gates == "chosen"
    assert not [name for name in rest.state_dict() if name.endswith("router.bias")]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(rest.state_dict()[name], value, atol=0, rtol=0, msg=name)


def test_the_average_of_a_short_training_forgets_the_first_weights():
    """With a decay of 0.995 from the first step on, 40 steps would leave 82 % of the untrained weights."""
    data = PublicImageData("digits", batch_size=64, seed=1)
    data.setup("fit")
    errors = {}
    for rising in (True, False):
        found = module(ema_decay=0.995, ema_rising=rising, lr=3e-3)
        trainer = L.Trainer(
            accelerator="cpu", max_steps=40, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[StepSeeding(0)], num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(found, datamodule=data)
        errors[rising] = float(trainer.callback_metrics["val/loss"])
    assert errors[True] < 0.9 * errors[False]


def test_a_checkpoint_from_before_goes_on_with_a_constant_decay(tmp_path):
    whole = trained(tmp_path / "whole", 3, ema_rising=False)
    trained(tmp_path / "part", 1, ema_rising=False)
    path = next((tmp_path / "part").rglob("last.ckpt"))
    content = AtomicCheckpointIO().load_checkpoint(path)
    del content["hyper_parameters"]["ema_rising"]
    AtomicCheckpointIO().save_checkpoint(content, path)
    rest = trained(tmp_path / "part", 3, resume=path)
    assert rest.config.ema_rising is False
    assert rest.hparams["ema_rising"] is False
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(rest.state_dict()[name], value, atol=0, rtol=0, msg=name)


def test_a_checkpoint_holds_the_average_and_draws_by_itself(tmp_path):
    found = trained(tmp_path, 2)
    checkpoint = next(tmp_path.rglob("last.ckpt"))
    loaded = DiffusionModule.load_from_checkpoint(checkpoint, weights_only=True)
    for name, value in found.network.state_dict().items():
        torch.testing.assert_close(loaded.network.state_dict()[name], value)  # training ends with the average
    content = AtomicCheckpointIO().load_checkpoint(checkpoint)
    current, average = content["current_model_state"], content["state_dict"]
    assert (current["network.head.weight"] - average["network.head.weight"]).abs().max() > 0
    assert torch.equal(current["prior.place"], average["prior.place"])
    drawn = loaded.sample(torch.tensor([1, 2]), steps=5)
    assert drawn.shape == (2, 1, 8, 8)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    content.pop("moeapps_images")
    AtomicCheckpointIO().save_checkpoint(content, tmp_path / "other.ckpt")
    with pytest.raises(FileFormatError, match="has no description of its data"):
        ImageModule.load_from_checkpoint(tmp_path / "other.ckpt", weights_only=True)


def test_the_loss_is_noise_and_bound_and_prior():
    data = PublicImageData("digits", batch_size=32)
    data.setup("fit")
    found = module(learn_sigma=True, ema_decay=0.0)
    assert found.configure_callbacks() == []
    found.attach(data.spec)
    found.prior.match(found.network.gate_table())
    batch = next(iter(data.train_dataloader()))
    logged = {}
    found.log_dict = lambda values, **_: logged.update(values)
    loss = found.training_step(batch, 0)
    assert float(logged["train/task"]) == pytest.approx(1, abs=0.1)  # at first it predicts zero for standard noise
    assert set(logged) >= {"train/vlb", "train/prior"}
    assert float(loss.detach()) == pytest.approx(
        sum(float(v) for k, v in logged.items() if k != "train/loss"), rel=1e-5
    )
    loss.backward()
    assert all(switch.weight.grad is not None for switch in found.network.switches)
    assert found.network.switches[0].router.weight.grad.abs().max() > 0


def test_grids_are_drawn_during_training(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    trained(tmp_path, 2, callbacks=[SampleImages(every=2, columns=2, steps=3)], logger=logger)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["epoch_0001.png"]


def test_mixed_precision_trains_and_draws_in_float32(digits):
    model = SwitchDiTGenerator(**{**GENERATOR, "precision": "bf16-mixed", "learn_sigma": True}).fit(*digits)
    assert model.model_.network.head.weight.dtype == torch.float32
    assert np.isfinite(model.sample(2, steps=5)).all()
    assert np.isfinite(model.history_["train/loss"]).all()
