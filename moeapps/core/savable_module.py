"""A torch module that can be saved."""

from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from moeapps.core.rebuilding import rebuild
from moeapps.core.saving import SaveMixin

__all__ = ["SavableModule"]


class SavableModule(SaveMixin, nn.Module):
    """A torch module that can be saved: its constructor stores its arguments in ``self.arguments``.

    One that is decorated with :func:`~moeapps.core.config.takes` need not do it itself.
    """

    arguments: dict[str, Any]

    def keep_arguments(self, arguments: dict[str, Any]) -> None:
        """Called with all constructor arguments once the constructor has run."""
        self.arguments = arguments

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments."""
        return self.arguments

    def saved_state(self) -> dict[str, Any]:
        """Nothing besides tensors."""
        return {}

    def saved_tensors(self) -> dict[str, Tensor]:
        """The state dict."""
        return self.state_dict()

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """Construct, compare names and shapes, load, and switch to evaluation."""
        return rebuild(lambda: cls(**arguments), tensors, source)
