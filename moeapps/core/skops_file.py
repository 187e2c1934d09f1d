"""Bytes that skops writes and reads, made equal for equal estimators and checked before skops sees them.

skops keeps an estimator as a zip archive: ``schema.json`` describes the objects, ``.npy`` and ``.npz`` entries hold
arrays. Its own check is that every *type* is trusted. Sizes are checked here: an archive may be a bomb, an array's
header may ask for any amount of memory, and one entry may be read a thousand times.
"""

import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from moeapps.core.errors import ConfigError, FileFormatError

__all__ = ["SAFE_TYPES", "dump", "load", "type_name", "untrusted_types"]

SAFE_TYPES = (
    "collections.OrderedDict",
    "functools.partial",
    "moeapps.tables.mixture.experts.CodedLabels",
    "moeapps.tables.mixture.features.TableFeatures",
    "numpy.dtype",
    "scipy.sparse._csc.csc_array",
    "scipy.sparse._csc.csc_matrix",
    "scipy.sparse._csr.csr_array",
    "scipy.sparse._csr.csr_matrix",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
    "sklearn.tree._tree.Tree",
    "sklearn.utils.validation.check_array",
)
"""Types that are loaded besides those that skops trusts.

They run nothing when they are loaded (a partial holds trusted functions only: numpy's and this one). Trees and sparse
matrices hold indices that compiled code follows without a look; skops leaves them out for that, and
:mod:`moeapps.core.loaded_trees` compares every index with what it points into.
"""

_SCHEMA = "schema.json"
_SPARSE_BYTES, _SPARSE_PER_BYTE = 1 << 24, 64
"""Bytes that a compressed sparse matrix may take, besides a multiple of its size in the file."""

_READ_BYTES, _READ_PER_BYTE = 1 << 24, 16
"""Bytes that may be read of entries, equal ones of which are kept once."""


def type_name(kind: str | type) -> str:
    """Full name of a type, as skops writes it."""
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def dump(estimator: Any) -> bytes:
    """Bytes of an estimator; equal ones for equal estimators.

    skops numbers objects by their address in memory. Here they have no numbers (an object that is held twice becomes
    two), and entries are numbered in their order, equal ones once.

    Raises
    ------
    ConfigError
        If skops is not installed, or cannot describe the estimator.
    """
    skops = _skops("saving")
    try:
        content = skops.dumps(estimator)
    except Exception as error:  # skops lets through whatever an object's __reduce__ raises
        raise ConfigError(f"skops cannot save it ({type(error).__name__}: {error})") from error
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        schema = json.loads(archive.read(_SCHEMA))
        names: dict[tuple[str, bytes], str] = {}
        for node in _nodes(schema):
            node.pop("__id__", None)
            if isinstance(node.get("file"), str):
                ending = node["file"].rpartition(".")[2]
                part = _without_times(archive.read(node["file"]), ending)
                node["file"] = names.setdefault((ending, part), f"{len(names)}.{ending}")
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as rewritten:
            for (_, part), name in names.items():
                rewritten.writestr(zipfile.ZipInfo(name), part)
            rewritten.writestr(zipfile.ZipInfo(_SCHEMA), json.dumps(schema, separators=(",", ":")))
    return buffer.getvalue()


def untrusted_types(content: bytes) -> list[str]:
    """Types in the bytes that are trusted neither by skops nor here.

    Raises
    ------
    ConfigError
        If skops is not installed.
    FileFormatError
        If the bytes are not what :func:`dump` writes.
    """
    skops = _skops("loading")
    _check(content)
    with _as_damage():
        return sorted(set(skops.get_untrusted_types(data=content)) - set(SAFE_TYPES))


def load(content: bytes, trusted: Iterable[str | type] = ()) -> Any:
    """Estimator of the bytes.

    Parameters
    ----------
    content : bytes
        What :func:`dump` returned.
    trusted : iterable of (str or type), default=()
        Types to trust besides.

    Raises
    ------
    ImportError
        If skops, or a package that the caller trusts, is not installed.
    FileFormatError
        If the bytes are damaged, or hold types that are not trusted.
    """
    skops = _skops("loading")
    _check(content)
    with _as_damage():
        return skops.loads(content, trusted=[*SAFE_TYPES, *map(type_name, trusted)])


class _as_damage:
    """Whatever skops stumbles over is the file's fault, except a package that is not installed."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, ImportError | FileFormatError):
            raise FileFormatError(f"its bytes of skops are damaged: {type(error).__name__}: {error}") from error


def _skops(doing: str) -> Any:
    try:
        import skops.io
    except ImportError:
        what = f'{doing} estimators of other packages needs skops: pip install "moeapps[skops]"'
        raise (ConfigError if doing == "saving" else ModuleNotFoundError)(what) from None
    return skops.io


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a schema, outer ones first."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(reversed(part.values()))
        elif isinstance(part, list):
            waiting.extend(reversed(part))


def _without_times(content: bytes, ending: str) -> bytes:
    """The content of an entry; of a sparse matrix, which is an archive too, without the times of writing."""
    if ending != "npz":
        return content
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as new:
        for entry in old.namelist():
            new.writestr(zipfile.ZipInfo(entry), old.read(entry))
    return buffer.getvalue()


def _check(content: bytes) -> None:
    """Refuse an archive that takes more memory than it has bytes, and trees whose constructor would read beyond.

    Raises
    ------
    FileFormatError
        Naming the entry.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("an entry is compressed, which moeapps does not write")
            if len({entry.filename for entry in entries}) != len(entries):
                raise ValueError("an entry occurs twice")
            if sum(entry.file_size for entry in entries) > len(content):
                raise ValueError("its entries are larger than it is")
            parts = {entry.filename: archive.read(entry) for entry in entries}
        text = parts.pop(_SCHEMA).decode()
        if text.count("[") + text.count("{") > max(1000, len(text) // 8):
            raise ValueError("its schema has too many lists and objects")
        schema = json.loads(text)
        for name, part in parts.items():
            _check_arrays(name, part)
        _check_references(schema, parts)
        for node in _nodes(schema):
            if node.get("__loader__") == "TreeNode":
                _check_tree_arguments(node, parts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, EOFError) as error:
        raise FileFormatError(f"its bytes of skops are damaged: {type(error).__name__}: {error}") from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, MemoryError) as error:
        raise FileFormatError(f"its bytes of skops are damaged: {error}") from None


def _check_arrays(name: str, content: bytes) -> None:
    """Compare the sizes that the headers of arrays announce with the bytes that are there."""
    if name.endswith(".npy"):
        stream = io.BytesIO(content)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        count = 1
        for length in shape:  # numpy's own product would overflow
            count *= length
        if dtype.hasobject or min(shape, default=0) < 0 or count * max(dtype.itemsize, 1) > len(content):
            raise ValueError(f"{name} announces {shape} of {dtype}, but has {len(content)} bytes")
    elif name.endswith(".npz"):
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            if sum(entry.file_size for entry in inner.infolist()) > _SPARSE_BYTES + _SPARSE_PER_BYTE * len(content):
                raise ValueError(f"{name} is far larger than its {len(content)} bytes")
            for entry in inner.namelist():
                _check_arrays(entry, inner.read(entry))
    elif not name.endswith(".bin"):
        raise ValueError(f"{name} is no entry that skops writes")


def _check_references(schema: Any, parts: dict[str, bytes]) -> None:
    """An object is described where it stands: numbers, by which skops would take another, and bombs are refused."""
    read = 0
    for node in _nodes(schema):
        if "__id__" in node:
            raise ValueError("it numbers objects, which moeapps does not write")
        if isinstance(node.get("file"), str):
            read += len(parts[node["file"]])
    if read > _READ_BYTES + _READ_PER_BYTE * sum(map(len, parts.values())):
        raise ValueError("its entries are read again and again")


def _check_tree_arguments(node: dict[str, Any], parts: dict[str, bytes]) -> None:
    """The constructor of scikit-learn's tree reads as many numbers of classes as it is told that there are outputs."""
    features, classes, outputs = node["__reduce__"]["args"]["content"]
    counts = np.load(io.BytesIO(parts[classes["file"]]), allow_pickle=False)
    n_features, n_outputs = json.loads(features["content"]), json.loads(outputs["content"])
    good = (
        classes["__loader__"] == "NdArrayNode"
        and features["__loader__"] == outputs["__loader__"] == "JsonNode"
        and type(n_features) is type(n_outputs) is int
        and 1 <= n_features < 2**31
        and counts.shape == (n_outputs,)
        and counts.dtype.kind == "i"
        and n_outputs >= 1
        and bool((counts >= 1).all())
        and int(counts.max()) * n_outputs < 2**31
    )
    if not good:
        raise ValueError("a tree has another number of outputs than it says")
