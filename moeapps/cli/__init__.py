"""The ``moeapps`` command: one file per subcommand, which owns its arguments.

A file named after a subcommand imports no torch, so that every ``--help`` answers at once. What is slow to import
stands in a second file: ``trainer`` for fit, validate, test and predict, ``stream_job`` and ``stream_display`` for
stream.
"""

from moeapps.cli.main import main

__all__ = ["main"]
