"""The errors that moeapps raises on purpose: one line each, naming the culprit and what would work.

The command line prints them without a traceback; in Python they are ordinary ``ValueError`` or ``RuntimeError``.
"""

__all__ = ["ConfigError", "DataError", "DataTypeError", "FileFormatError", "MoEAppsError", "NonFiniteError"]


class MoEAppsError(Exception):
    """Base of all errors that moeapps raises on purpose."""


class ConfigError(MoEAppsError, ValueError):
    """An argument, a YAML key or a class name that cannot be used."""


class DataError(MoEAppsError, ValueError):
    """Data that cannot be learned from or predicted on: shapes, types, NaN, masks, ids."""


class DataTypeError(DataError, TypeError):
    """Data of a kind that cannot be turned into numbers."""


class FileFormatError(MoEAppsError, ValueError):
    """A saved model or checkpoint that is damaged, of another model, or not ours."""


class NonFiniteError(MoEAppsError, RuntimeError):
    """A loss or gradient that is NaN or infinite; training stopped before it could reach the weights."""
