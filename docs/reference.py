"""Extension of griffe: docstrings are in reStructuredText, pages in Markdown, and defaults are those of the signature.

Where a docstring says that parameters are those of another class, the page shows them.

griffe takes a default from the docstring: of ``lr, weight_decay : float`` it shows the first one's default twice, and
of ``{"a", "b"}`` the first choice. Roles (``:class:`~package.Name```) become links to what the reference has, and
formulas become code, which needs no script of another site.
"""

import copy
import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|attr|mod|exc|obj):`(?:([^`<]+) <)?(~?)([\w.]+)>?`")
FORMULA = re.compile(r":math:`([^`]+)`")
SAME = re.compile(r"[Pp]arameters[^.]* those of <autoref[^>]*>`(\w+)`")
DISPLAYED = re.compile(r"^( *)\.\. math::[ \n]*(.*(?:\n+\1 +\S.*)*)", re.MULTILINE)


class Reference(griffe.Extension):
    """Rewrites docstrings and replaces the defaults of documented parameters once a package is loaded."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Visit everything that the package defines."""
        self._classes: dict[str, griffe.Class] = {}
        self._visit(pkg)
        for member in self._classes.values():
            self._complete(member)

    def _visit(self, parent: griffe.Object) -> None:
        if parent.docstring:
            parent.docstring.value = as_markdown(parent.docstring.value, parent)
        for member in parent.members.values():
            if member.is_alias:
                continue
            if isinstance(member, griffe.Class | griffe.Function):
                self._visit(member)
                self._correct(member)
                if member.is_class:
                    self._classes[member.name] = member
            elif isinstance(member, griffe.Module | griffe.Attribute):
                self._visit(member)

    def _correct(self, member: griffe.Class | griffe.Function) -> None:
        defaults = {parameter.name: parameter.default for parameter in member.parameters}
        for section in member.docstring.parsed if member.docstring else ():
            if section.kind is griffe.DocstringSectionKind.parameters:
                for parameter in section.value:
                    if parameter.name in defaults:
                        parameter.value = defaults[parameter.name]

    def _complete(self, member: griffe.Class) -> None:
        """Add the parameters that are documented by another class."""
        same = SAME.search(member.docstring.value) if member.docstring else None
        own, others = documented(member), documented(self._classes.get(same[1])) if same else []
        known = {parameter.name: parameter for parameter in [*others, *own]}
        if own and others:
            defaults = {parameter.name: parameter.default for parameter in member.parameters}
            own[:] = [copy.copy(known[name]) for name in defaults if name in known]
            for parameter in own:
                parameter.value = defaults[parameter.name]


def documented(member: griffe.Class | None) -> list[griffe.DocstringParameter]:
    """Parameters of a class's docstring: the list that is shown."""
    for section in member.docstring.parsed if member and member.docstring else ():
        if section.kind is griffe.DocstringSectionKind.parameters:
            parameters: list[griffe.DocstringParameter] = section.value
            return parameters
    return []


def as_markdown(text: str, owner: griffe.Object) -> str:
    """A docstring with roles as links, where the reference has the target, and formulas as code."""

    def link(found: re.Match[str]) -> str:
        title, short, target = found.groups()
        try:
            path = target if "." in target else owner.resolve(target)
        except griffe.NameResolutionError:
            path = f"{owner.path}.{target}" if owner.is_class else f"{owner.parent.path}.{target}"
        name = title or (target.rpartition(".")[2] if short else target)
        return f'<autoref optional identifier="{path}">`{name}`</autoref>'

    def displayed(found: re.Match[str]) -> str:
        indent, formula = found.groups()
        lines = [f"{indent}{line.strip()}" for line in formula.splitlines() if line.strip()]
        return "\n".join([f"{indent}```tex", *lines, f"{indent}```"])

    return ROLE.sub(link, FORMULA.sub(r"`\1`", DISPLAYED.sub(displayed, text)))
