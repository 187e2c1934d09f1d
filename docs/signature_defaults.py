"""Extension of griffe: the reference shows the defaults of the signature.

griffe takes a default from the docstring: of ``lr, weight_decay : float`` it shows the first one's default twice, and
of ``{"a", "b"}`` the first choice.
"""

from typing import Any

import griffe


class SignatureDefaults(griffe.Extension):
    """Replaces the defaults of documented parameters once a package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Visit everything that the package defines."""
        self._visit(pkg)

    def _visit(self, parent: griffe.Object) -> None:
        for member in parent.members.values():
            if isinstance(member, griffe.Class | griffe.Function):
                self._correct(member)
            if isinstance(member, griffe.Module | griffe.Class):
                self._visit(member)

    def _correct(self, member: griffe.Class | griffe.Function) -> None:
        defaults = {parameter.name: parameter.default for parameter in member.parameters}
        for section in member.docstring.parsed if member.docstring else ():
            if section.kind is griffe.DocstringSectionKind.parameters:
                for parameter in section.value:
                    if parameter.name in defaults:
                        parameter.value = defaults[parameter.name]
