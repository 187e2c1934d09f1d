"""Where modules of 0.1 are now: an old import path still works, and warns.

Files that 0.1 saved name classes by these paths, pickles name modules, and so do YAML files and scripts of users. The
table below is the one place that knows; an entry is removed two minor versions after the move.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "current_path", "install", "warn_deprecated"]

MOVED: dict[str, str] = {
    "moeapps.config_check": "moeapps.cli.config_check",
    "moeapps.training": "moeapps.cli.trainer",
    "moeapps.stream.command": "moeapps.cli.stream_job",
    "moeapps.serve.command": "moeapps.cli.serve",
    "moeapps.core.tabular.columns": "moeapps.core.tabledata.columns",
    "moeapps.core.table_files": "moeapps.core.tabledata.files",
    "moeapps.core.scoring": "moeapps.core.tabledata.scoring",
    "moeapps.core.tabular.classifier": "moeapps.tables.classifier",
    "moeapps.core.tabular.data": "moeapps.tables.data",
    "moeapps.core.tabular.estimator": "moeapps.tables.estimator",
    "moeapps.core.tabular.module": "moeapps.tables.module",
    "moeapps.core.tabular.network": "moeapps.tables.network",
    "moeapps.core.tabular.regressor": "moeapps.tables.regressor",
    "moeapps.core.tabular": "moeapps.tables",
    "moeapps.graph.public": "moeapps.graph.datasets",
    "moeapps.recsys.public": "moeapps.recsys.datasets",
    "moeapps.vision.public": "moeapps.vision.datasets",
    "moeapps.stream.data": "moeapps.stream.datasets",
    "moeapps.stream.synthetic": "moeapps.stream.datasets",
    "moeapps.stream.trees": "moeapps.stream.compiled.trees",
    "moeapps.stream.regression_trees": "moeapps.stream.compiled.regression_trees",
    "moeapps.stream.observers": "moeapps.stream.compiled.observers",
    "moeapps.stream.adwin": "moeapps.stream.compiled.adwin",
    "moeapps.stream.network": "moeapps.stream.compiled.network",
    "moeapps.stream.mixture": "moeapps.stream.compiled.mixture",
    "moeapps.stream.pool": "moeapps.stream.compiled.pool",
    "moeapps.stream.sources": "moeapps.stream.io.sources",
    "moeapps.stream.sinks": "moeapps.stream.io.sinks",
    "moeapps.stream.kafka": "moeapps.stream.io.kafka",
    "moeapps.stream.delay": "moeapps.stream.io.delay",
}
"""Old import path of a module: new one."""


def warn_deprecated(message: str, stacklevel: int = 2) -> None:
    """Warn about a name of 0.1 with ``message``, which has the new one, and say when the old one goes.

    ``stacklevel`` is that of :func:`warnings.warn`, counted from the caller.
    """
    warnings.warn(f"{message} (deprecated since 0.2, removed in 0.4)", DeprecationWarning, stacklevel + 1)


def current_path(path: str) -> str:
    """Today's import path of a class (``package.module.Class``), given its path in 0.1; others come back unchanged."""
    module, _, name = path.rpartition(".")
    return f"{MOVED[module]}.{name}" if module in MOVED else path


class _MovedFinder(MetaPathFinder, Loader):
    """Imports the new module under the old name: one module object, so classes stay identical."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None  # an empty module, which exec_module replaces

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        warn_deprecated(f"{old} has moved to {MOVED[old]}; import it from there")
        sys.modules[old] = import_module(MOVED[old])  # the import system returns what stands here


def install() -> None:
    """Make old import paths work. It must come first: the parent package could find a second copy of the file."""
    if not any(isinstance(finder, _MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _MovedFinder())
