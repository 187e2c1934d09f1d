"""A saved file or checkpoint that was changed, with a right checksum, is refused or loads as a possible model: never a
signal, a hang or memory beyond the file's."""

import warnings

import pytest
import torch

import moeapps
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import FileFormatError
from tests.core import checkpoint_fuzz
from tests.core.fuzz_models import CHECKPOINTS, FAMILIES, original
from tests.core.saved_fuzz import KINDS, Trial, campaign, mutated, told

FEW, MANY = 8, 2_000
EVERY_FAMILY = (*FAMILIES, *CHECKPOINTS)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_changed_file_is_refused_or_a_possible_model(family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = Trial(family)
        for seed in range(FEW):
            kind, content = mutated(family, seed)
            outcome, _ = trial.outcome(content)
            assert not outcome.startswith("error"), told(family, seed, kind, outcome)
            assert outcome == "refused" or kind not in ("flip_bits", "cut_or_extend"), told(family, seed, kind, outcome)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_two_thousand_changed_files_neither_end_the_process_nor_hang_nor_take_memory(family):
    outcomes, failures, _ = campaign(family, MANY)
    assert not failures, failures[:5]
    assert sum(outcomes.values()) == MANY


@pytest.mark.parametrize(("family", "kinds"), [("stream data", KINDS), ("fit graph", checkpoint_fuzz.KINDS)])
def test_every_kind_of_mutation_is_tried(family, kinds):
    assert {mutated(family, seed)[0] for seed in range(80)} == {kind.__name__ for kind in kinds}


@pytest.fixture
def checkpoint(tmp_path):
    """Writes a changed checkpoint of a graph's training, with a right checksum."""
    good = tmp_path / "good.ckpt"
    good.write_bytes(original("fit graph"))
    content = AtomicCheckpointIO().load_checkpoint(good)

    def write(change):
        change(content)
        AtomicCheckpointIO().save_checkpoint(content, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


BIAS = "model.experts.weak.lins.1.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["state_dict"].update({BIAS: 3.0}), f"{BIAS} of its state_dict is a float, not a tensor"),
        (lambda c: c["state_dict"].update({BIAS: torch.zeros(1).expand(2**40)}), r"shape \(1099511627776,\)"),
        (lambda c: c["state_dict"].update({BIAS: torch.zeros(3, device="meta")}), "has a shape, but no values"),
        (lambda c: c["state_dict"][BIAS].fill_(float("nan")), f"NaN or infinity in {BIAS}.*allow_non_finite=True"),
        (lambda c: c["state_dict"].pop(BIAS), f"changed.ckpt: .*missing {BIAS}"),
        (lambda c: c["hyper_parameters"].update(hidden_channels=10**9), "its arguments ask for"),
        (lambda c: c["hyper_parameters"].update(hidden_channels=[]), "changed.ckpt does not fit .*MowstModule"),
        (lambda c: c.update({"pytorch-lightning_version": [[]]}), "which is no version"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_that_contradicts_itself_is_refused_with_its_name_and_the_fault(checkpoint, change, said):
    with pytest.raises(FileFormatError, match=said) as caught:
        moeapps.load(checkpoint(change))
    assert "changed.ckpt" in str(caught.value)


def test_a_checkpoint_of_a_diverged_training_loads_where_that_is_asked_for(checkpoint):
    path = checkpoint(lambda content: content["state_dict"][BIAS].fill_(float("nan")))
    assert type(moeapps.load(path, allow_non_finite=True)).__name__ == "MowstClassifier"
