"""From the checkpoint of a training to the estimator that predicts as the trained module does.

:func:`moeapps.load`, ``moeapps export``, ``score`` and ``serve`` come here with a file that Lightning wrote. It
names the module that was trained; :data:`moeapps.registry.TRAINED` says which estimator goes with it. Nothing in the
file is unpickled (:class:`~moeapps.core.checkpoint.AtomicCheckpointIO`), and no class is imported that is not in that
table.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moeapps import registry
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.files import is_checkpoint
from moeapps.core.rebuilding import bounded, check_buffers
from moeapps.core.saved_file import faults_named
from moeapps.core.saved_tensors import non_finite_names

__all__ = ["estimator_of", "is_checkpoint"]


def estimator_of(file: Path, modules: Mapping[str, nn.Module] | None = None, allow_non_finite: bool = False) -> Any:
    """The estimator of the module whose training wrote a checkpoint.

    Parameters
    ----------
    file : Path
        The checkpoint.
    modules : mapping of str to Module, optional
        Modules of the caller that were constructor arguments of the trained module.
    allow_non_finite : bool, default=False
        Whether weights may be NaN or infinite.

    Raises
    ------
    FileFormatError
        If the file is damaged, contradicts itself, is of a module that has no estimator, or needs ``modules``; or if a
        weight is NaN or infinite.
    ConfigError
        If the training has not come far enough to predict, or the estimator cannot have the module's settings.
    """
    given = dict(modules or {})
    content = AtomicCheckpointIO().load_checkpoint(file)
    entry = _entry(content, file)
    needed = [name for name in content.get(registry.OWN_MODULES, []) if name not in given]
    if needed:
        name = str(needed[0])
        raise FileFormatError(
            f"{file} was trained with a module of your own as {name}, whose code it does not hold: "
            f"moeapps.load({str(file)!r}, {name}=...)"
        )
    module: Any = registry.resolve(entry.module)
    estimator: Any = registry.resolve(entry.estimator)
    weights = {name: weight for name, weight in content["state_dict"].items() if isinstance(weight, Tensor)}
    if not allow_non_finite and (names := non_finite_names(weights, estimator.non_finite_tensors)):
        raise FileFormatError(
            f"{file} holds NaN or infinity in {', '.join(names[:3])}: its training has diverged, or it was changed. "
            "moeapps.load(path, allow_non_finite=True) loads it all the same"
        )
    with faults_named(file, entry.module):
        with bounded(weights, file):
            trained = module.load_from_checkpoint(file, map_location="cpu", weights_only=True, **given)
        check_buffers(trained, file)
    try:
        return estimator.from_module(trained.eval())
    except ConfigError as error:  # a training that cannot become an estimator is no fault of the file
        raise ConfigError(f"{file}: {error}") from None


def _entry(content: Mapping[str, Any], file: Path) -> registry.Trained:
    noted = content.get(registry.MODULE_NAME)
    if isinstance(noted, str):
        for entry in registry.TRAINED:
            if noted == entry.module:
                return entry
        raise FileFormatError(
            f"{file} is the checkpoint of a {noted}, for which moeapps has no estimator: predict with "
            f"moeapps predict --ckpt_path {file}, or go on with the training by moeapps fit --ckpt_path {file}"
        )
    hyper = content.get("hyper_parameters")
    there = {*content, *(hyper if isinstance(hyper, dict) else ())}
    for entry in registry.TRAINED:  # written before checkpoints named their module
        if there.issuperset(entry.marks):
            return entry
    known = ", ".join(entry.module.rpartition(".")[2] for entry in registry.TRAINED)
    raise FileFormatError(
        f"{file} is a checkpoint, but not one of a training of moeapps that becomes an estimator ({known}): use it "
        "with moeapps predict --ckpt_path, or go on with its training by moeapps fit --ckpt_path"
    )
