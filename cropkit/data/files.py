"""Files that are written whole or not at all, and in which damage is noticed.

Everything binary that cropkit writes, checkpoints as well as what is kept to save time, is a safetensors file with the
SHA-256 of its content in its header.
"""

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DamagedCheckpoint(ValueError):
    """A file that is not what was saved."""


def replace_file(path: Path, data: bytes, *, durable: bool = False, keep_previous: bool = False) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part of it.

    Args:
        path: the file; its folder is made.
        data: the new content.
        durable: also after a power cut, for what cannot be computed again.
        keep_previous: keep the content before as ``<name>.previous``. Between two renamings there is no ``<name>``
            then, so whoever reads it must look for both.

    Raises:
        OSError: if the disk is full or the folder cannot be written; the file is then as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if keep_previous and path.exists():
            os.replace(path, previous_of(path))
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)
    except OSError as error:
        why = "disk full" if error.errno in FULL else f"cannot be written ({error.strerror})"
        raise OSError(
            error.errno, f"{why}: {path}. The content before is intact; correct this and call again"
        ) from error
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file, so that also after a power cut it is the old one or the new one."""
    replace_file(path, text.encode("utf-8", "surrogateescape"), durable=True)


def previous_of(path: Path) -> Path:
    """Where the content before the last one is kept."""
    return path.with_name(f"{path.name}.previous")


def seal(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    """The bytes of a safetensors file: tensors, facts about them (plain types), and the SHA-256 of both."""
    text = json.dumps(about)
    # In one entry, since safetensors writes several in any order, and the same content must give the same bytes.
    return safetensors.torch.save(tensors, {"cropkit": json.dumps([_digest(tensors, text), text])})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `seal` made.

    Raises:
        DamagedCheckpoint: if it is not what was written.
        FileNotFoundError: if there is none.
    """
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        digest, text = json.loads(header["__metadata__"]["cropkit"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path}: is damaged, or no file of cropkit's ({error}).") from error
    if digest != _digest(tensors, text):
        raise DamagedCheckpoint(f"{path}: is damaged, since its content does not have the SHA-256 in its header.")
    return tensors, json.loads(text)


def file_hash(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """Make renamings in a folder last; Windows has no way to ask for it, and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
