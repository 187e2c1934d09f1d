"""``python -m moeapps`` is the same as the ``moeapps`` command."""

from moeapps.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
