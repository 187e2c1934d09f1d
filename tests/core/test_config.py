"""Settings that are declared once, in a config, and reach constructors, estimators and the command line from there."""

import inspect
from dataclasses import FrozenInstanceError, dataclass

import numpy as np
import pytest
from jsonargparse import ArgumentParser
from sklearn.base import BaseEstimator, clone
from torch import nn

from moeapps.core.config import Configurable, as_arguments, config_from, store_arguments, takes
from moeapps.core.module import MoEModule


@dataclass(frozen=True)
class Sizes:
    """Sizes.

    Parameters
    ----------
    width : int
        Number of hidden units.
    """

    width: int = 8
    names: list[str] | None = None


class Network(Configurable, nn.Module):
    @takes(Sizes)
    def __init__(self, channels: int, config: Sizes, bias: bool = True) -> None:
        super().__init__()
        self.channels, self.config, self.bias = channels, config, bias

    def keep_arguments(self, arguments):
        self.arguments = arguments


def test_a_constructor_takes_the_fields_of_its_config():
    network = Network(3, width=5)
    assert network.config == Sizes(width=5)
    assert (network.channels, network.bias) == (3, True)


def test_positional_arguments_keep_their_order():
    assert Network(3, 5, ["a"], False).config == Sizes(5, ["a"])
    assert Network(3, 5, ["a"], False).bias is False


def test_some_arguments_can_come_first():
    class Reordered(nn.Module):
        @takes(Sizes, first=("names", "bias"))
        def __init__(self, config: Sizes, bias: bool = True, channels: int = 1) -> None:
            super().__init__()
            self.given = channels, config, bias

    assert list(inspect.signature(Reordered).parameters) == ["names", "bias", "width", "channels"]
    assert Reordered(["a"], False, 5, 3).given == (3, Sizes(5, ["a"]), False)


def test_the_signature_shows_fields_types_and_defaults():
    parameters = inspect.signature(Network).parameters
    assert list(parameters) == ["channels", "width", "names", "bias"]
    assert parameters["width"].default == 8
    assert parameters["names"].annotation == list[str] | None


def test_an_unknown_argument_is_refused_by_name():
    with pytest.raises(TypeError, match=r"^Network.__init__\(\) got an unexpected keyword argument 'widht'"):
        Network(3, widht=5)


def test_arguments_are_kept_with_their_defaults():
    assert Network(3, width=5).arguments == {"channels": 3, "width": 5, "names": None, "bias": True}


def test_from_config_equals_the_keyword_arguments():
    assert Network.from_config(3, config=Sizes(5), bias=False).arguments == Network(3, width=5, bias=False).arguments


def test_a_config_is_read_from_attributes_and_mappings():
    class Estimator:
        width = 7
        other = 1

    assert config_from(Sizes, Estimator()) == Sizes(7)
    assert config_from(Sizes, {"width": 7, "other": 1}) == Sizes(7)
    assert config_from(Sizes, Estimator(), names=["b"]) == Sizes(7, ["b"])
    with pytest.raises(TypeError, match="nonsense"):
        config_from(Sizes, Estimator(), nonsense=1)


def test_arguments_of_a_foreign_base_class_pass_through():
    class Foreign(Network):
        @takes(Sizes)
        def __init__(self, *, config: Sizes, **rest) -> None:
            super().__init__(3, **as_arguments(config), **rest)

    network = Foreign(width=5, bias=False)
    assert (network.config, network.bias) == (Sizes(width=5), False)
    assert network.arguments == {"width": 5, "names": None, "bias": False}
    with pytest.raises(TypeError, match="widht"):
        Foreign(widht=5)


def test_values_are_handed_on_not_copied():
    part = nn.Linear(1, 1)

    @dataclass(frozen=True)
    class Parts:
        part: nn.Module

    assert as_arguments(Parts(part))["part"] is part


def test_a_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Sizes().width = 3


def test_jsonargparse_reads_the_fields_with_their_help():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Network, "network")
    assert parser.parse_args(["--network.channels", "2", "--network.width", "4"]).network.width == 4
    assert "Number of hidden units" in parser.format_help()


def test_a_constructor_without_a_place_for_the_config_is_refused():
    with pytest.raises(TypeError, match="needs one parameter annotated"):

        class Wrong:
            @takes(Sizes)
            def __init__(self, width: int) -> None: ...


@dataclass(frozen=True)
class Rates:
    """Rates.

    Parameters
    ----------
    lr : float
        Learning rate.

    Raises
    ------
    ValueError
        Never.
    """

    lr: float = 0.1


def test_the_command_line_describes_the_fields_of_every_config(capsys):
    class Trained(nn.Module):
        @takes(Sizes, Rates)
        def __init__(self, sizes: Sizes, rates: Rates) -> None:
            super().__init__()

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trained, "model")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "Number of hidden units." in shown
    assert "Learning rate." in shown


def test_an_estimator_stores_its_arguments_unchanged():
    class Estimator(BaseEstimator):
        def __init__(self, width=8, *, names=None):
            store_arguments(self, locals())

    names = ["a"]
    estimator = Estimator(3, names=names)
    assert estimator.get_params() == {"width": 3, "names": names}
    assert estimator.names is names
    assert vars(clone(estimator)) == {"width": 3, "names": names}


def test_a_subclass_stores_the_arguments_of_both_constructors():
    class Base(BaseEstimator):
        def __init__(self, width=8):
            store_arguments(self, locals())

    class Sub(Base):
        def __init__(self, width=8, depth=2):
            super().__init__(width)
            store_arguments(self, locals())

    assert vars(Sub(3, 4)) == {"width": 3, "depth": 4}


class Trained(Configurable, MoEModule):
    @takes(Sizes)
    def __init__(self, channels: int, config: Sizes) -> None:
        super().__init__()
        self.config = config


class Derived(Trained):
    """As a user writes it: it knows nothing of ``takes``."""

    def __init__(self, scale, width: int = 4, layer: nn.Module | None = None, **rest) -> None:
        super().__init__(3, width=2 * width, **rest)
        self.scale = scale


class DerivedTwice(Derived):
    def __init__(self, *, extra: str, **rest) -> None:
        super().__init__(np.arange(3), **rest)  # an array, whose comparison has no truth value


def test_arguments_of_subclasses_are_hyperparameters_too():
    assert dict(Trained(3).hparams) == {"channels": 3, "width": 8, "names": None}
    derived = Derived(0.5, layer=nn.Linear(2, 2), names=["a"])
    assert dict(derived.hparams) == {"channels": 3, "width": 4, "names": ["a"], "scale": 0.5}
    twice = DerivedTwice(extra="b", width=5).hparams
    assert {name: twice[name] for name in ("channels", "width", "extra")} == {"channels": 3, "width": 5, "extra": "b"}
    assert twice["scale"].tolist() == [0, 1, 2]
    assert DerivedTwice(**{name: twice[name] for name in ("extra", "width")}).config == Sizes(width=10)


def test_a_module_inside_another_ones_constructor_keeps_its_own_arguments():
    class Outer(MoEModule):
        def __init__(self, weights) -> None:
            super().__init__()
            self.inner = Trained(5)

    assert dict(Outer(np.ones(2)).inner.hparams) == {"channels": 5, "width": 8, "names": None}
