"""Lightning checkpoints that survive a crash while they are written, and that run no code when they are read.

Lightning writes to the system's temporary folder and moves the file, which is a copy when the folders are on different
file systems; it stores no checksum. :class:`AtomicCheckpointIO` replaces only that part: what is inside a checkpoint
stays Lightning's.
"""

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from moeapps.core.errors import FileFormatError
from moeapps.core.files import HashingWriter, atomic_write, ordinary_file, remove_stale

__all__ = ["AtomicCheckpointIO"]

_MAGIC = b"MOEAPPS\x01"
_FOOTER = len(_MAGIC) + 32

_VERSION = re.compile(r"\d+(\.\d+)*[\w.+-]*$")


class AtomicCheckpointIO(CheckpointIO):
    """Writes a checkpoint to a temporary name in its own folder, syncs it and moves it into place; verifies on reading.

    The file is what ``torch.save`` writes, followed by a footer of 40 bytes with the SHA-256 of what stands before it
    (``torch.load`` reads such a file as usual). It is always read with ``weights_only=True``, spelled out, because an
    environment variable can otherwise turn unpickling back on.

    Parameters
    ----------
    require_checksum : bool, default=True
        Whether to refuse files without our footer. False lets checkpoints in that a plain Lightning Trainer wrote;
        damage inside their tensors then goes unnoticed.
    """

    def __init__(self, require_checksum: bool = True) -> None:
        self.require_checksum = require_checksum

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``; the old file stays whole until the new one is."""
        if storage_options is not None:
            raise TypeError("storage_options are for remote file systems; checkpoints are written to local paths")
        with atomic_write(path) as file:
            writer = HashingWriter(file)
            try:
                torch.save(checkpoint, writer)  # type: ignore[arg-type]
            except RuntimeError:
                if writer.error is not None:  # torch hides a full disk behind an error of its own
                    raise writer.error from None
                raise
            file.write(_MAGIC + writer.digest())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Verify and read a checkpoint.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        FileFormatError
            If it is a URL, a folder, damaged, incomplete, holds more than plain data, or is no checkpoint of
            Lightning's.
        """
        if weights_only is False:
            raise FileFormatError(f"{path}: weights_only=False would run code from the file; it is never used here")
        file = self.verify(path)
        remove_stale(file.parent)
        try:
            with file.open("rb") as stream:  # by a name that ends in .safetensors torch would guess another format
                loaded = torch.load(stream, map_location=map_location, weights_only=True)
        except Exception as error:
            raise FileFormatError(
                f"{file} is not a checkpoint that can be read safely: damaged, or it holds more than tensors and "
                f"plain values ({type(error).__name__}). Models are shared with model.save and moeapps.load"
            ) from None
        _check_content(loaded, file)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that is no longer wanted."""
        Path(path).unlink(missing_ok=True)

    def verify(self, path: str | Path) -> Path:
        """Check that a file is there and that its content is what was written.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        FileFormatError
            If it is a URL, a folder, damaged or incomplete.
        """
        file = ordinary_file(path, "a checkpoint")
        size = file.stat().st_size
        with open(file, "rb") as stream:
            stream.seek(max(size - _FOOTER, 0))
            footer = stream.read()
            if len(footer) == _FOOTER and footer.startswith(_MAGIC):
                stream.seek(0)
                if _sha256(stream, size - _FOOTER) != footer[len(_MAGIC) :]:
                    raise FileFormatError(f"{file} ({size} bytes) is damaged: its SHA-256 does not match its content")
            elif self.require_checksum:
                raise FileFormatError(
                    f"{file} ({size} bytes) does not end in a moeapps checksum: it is damaged or incomplete, or "
                    "another program wrote it (moeapps.core.checkpoint.AtomicCheckpointIO(require_checksum=False) "
                    "reads a plain Lightning checkpoint)"
                )
        return file


def _check_content(loaded: Any, file: Path) -> None:
    """Refuse what Lightning and torch would stumble over without a word about the file."""
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise FileFormatError(f"{file} is not a Lightning checkpoint: it has no state_dict")
    weights = loaded["state_dict"]
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise FileFormatError(f"{file} is not a Lightning checkpoint: its state_dict is not weights by their names")
    size = file.stat().st_size
    for name, weight in weights.items():
        if name.endswith("_extra_state"):  # whatever a module wants to keep beside its weights
            continue
        if not isinstance(weight, Tensor):
            raise FileFormatError(f"{file}: {name} of its state_dict is a {type(weight).__name__}, not a tensor")
        if weight.is_meta:
            raise FileFormatError(f"{file}: {name} of its state_dict has a shape, but no values")
        # a tensor with a stride of 0 has more elements than bytes
        if weight.layout == torch.strided and weight.numel() > size:
            raise FileFormatError(
                f"{file} ({size} bytes): {name} of its state_dict has shape {tuple(weight.shape)}, more than fits in it"
            )
    version = loaded.get("pytorch-lightning_version", "0")
    if not isinstance(version, str) or not _VERSION.match(version):
        raise FileFormatError(f"{file}: its pytorch-lightning_version is {str(version)[:40]!r}, which is no version")


def _sha256(stream: Any, length: int) -> bytes:
    digest = hashlib.sha256()
    while length > 0:
        block = stream.read(min(length, 1 << 20))
        if not block:
            break
        digest.update(block)
        length -= len(block)
    return digest.digest()
