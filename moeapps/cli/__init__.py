"""The ``moeapps`` command: one file per subcommand, which owns its arguments."""
