"""Packages that moeapps does not install itself: what is missing is named, with the command that installs it."""

from collections.abc import Iterator
from contextlib import contextmanager

from moeapps.core.errors import ConfigError

__all__ = ["needs"]


@contextmanager
def needs(purpose: str, install: str) -> Iterator[None]:
    """Import optional packages inside it; a failed import becomes an error that says what to install.

    Parameters
    ----------
    purpose : str
        What needs the package: the subject of the message.
    install : str
        What pip is to install, for example ``"moeapps[ray]"``.

    Raises
    ------
    ConfigError
        If a package cannot be imported.

    Examples
    --------
    >>> with needs("the example", "moeapps[example]"):
    ...     import a_package_that_nobody_has
    Traceback (most recent call last):
    moeapps.core.errors.ConfigError: the example needs a_package_that_nobody_has: pip install 'moeapps[example]'
    """
    try:
        yield
    except ImportError as error:
        package = error.name or "a package that cannot be imported"
        raise ConfigError(f"{purpose} needs {package}: pip install '{install}'") from None
