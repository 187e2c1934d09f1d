"""A misspelled constructor argument is named with the right one, in all estimators."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Self

from moeapps.core.search import Searchable
from moeapps.registry import did_you_mean

__all__ = ["NamedArguments"]


class NamedArguments(Searchable):
    """Checks the names of arguments of the constructor, and of ``set_params``, of every subclass.

    A subclass's ``__init__`` keeps its signature and docstring: scikit-learn and jsonargparse read them as before.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _checked(cls.__init__)  # type: ignore[method-assign]

    def set_params(self, **params: Any) -> Self:
        """Set constructor arguments, those of parts as ``part__argument``.

        Raises
        ------
        ValueError
            Naming the argument that does not exist, and the closest one that does.
        """
        known = self.get_params(deep=False)  # type: ignore[attr-defined]
        unknown = {name.partition("__")[0] for name in params} - set(known)
        if unknown:  # parts of a mixture have names of their own, which only the deep parameters list
            unknown -= set(self.get_params())  # type: ignore[attr-defined]
        for name in sorted(unknown):
            hint = did_you_mean(name, known, f"it has {', '.join(known)}")
            raise ValueError(f"Invalid parameter {name!r} for {type(self).__name__}{hint}")
        done: Self = super().set_params(**params)  # type: ignore[misc]
        return done


def _checked(init: Callable[..., None]) -> Callable[..., None]:
    """The constructor, with a check of the names that are given to it."""
    parameters = inspect.signature(init).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return init
    known = [parameter.name for parameter in parameters][1:]

    @functools.wraps(init)
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known:
                hint = did_you_mean(name, known, f"it has {', '.join(known)}")
                raise TypeError(f"{type(self).__name__}() has no argument {name!r}{hint}")
        init(self, *args, **kwargs)

    return construct
