"""Small copies of large photos: opened in a hundredth of the time, pixel for pixel what the photo itself would give.

What is kept can be deleted at any time: what is missing, damaged or out of date is made again.
"""

import hashlib
import io
import math
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from cropkit.data.files import DamagedCheckpoint, read_sealed, replace_file, seal
from cropkit.data.photos import BadPhoto, crop_around, crosshair_pixel, open_photo

Cut = tuple[float, tuple[object, object]]

LARGEST_WEBP = 16_383  # pixels a side
WORTH = 1.5  # a photo is kept small if its short side is more than so many times the side that is asked for


def open_resized(
    path: str | os.PathLike[str],
    side: int,
    interpolation: str,
    *,
    cache: str | os.PathLike[str] | None = None,
    cut: Cut | None = None,
) -> Image.Image:
    """Open a photo, or a square of it, with a short side of `side` pixels.

    The pixels are the same with and without a cache, bit for bit. A copy belongs to one state of its file, known by
    path, size and time of change.

    Args:
        path: the photo.
        side: pixels of the short side, as the model's transform resizes it.
        interpolation: ``"bilinear"`` or ``"bicubic"``, as the model's transform resizes.
        cache: a folder for lossless copies of large photos; None keeps none.
        cut: the square that is taken of the photo first: its side as a share of the photo's short side, and the target
            (x, y) that it lies round, as the competition's table has it (see `crosshair_pixel`). It is moved inwards
            where it would leave the photo. None takes the whole photo.

    Returns:
        An upright RGB image; proportions kept.

    Raises:
        BadPhoto: if the photo cannot be read.
    """
    copy = None if cache is None else _place_of_copy(path, side, interpolation, Path(cache), cut)
    if copy is not None:
        try:
            tensors, _ = read_sealed(copy)
            return Image.open(io.BytesIO(tensors["webp"].numpy().tobytes())).convert("RGB")
        except (DamagedCheckpoint, OSError, KeyError):  # none, or made again below
            pass
    photo = open_photo(path, min_side=side if cut is None else math.ceil(side / cut[0]))
    worth = min(photo.info["full_size"]) > WORTH * side
    photo = photo if cut is None else _cut_out(photo, *cut)
    photo = v2.functional.resize(photo, [side], v2.InterpolationMode(interpolation))
    if copy is not None and worth and max(photo.size) <= LARGEST_WEBP:
        packed = io.BytesIO()
        photo.save(packed, "WEBP", lossless=True, method=0, quality=0)
        content = torch.from_numpy(np.frombuffer(packed.getvalue(), np.uint8).copy())
        keep(copy, seal({"webp": content}, {}))
    return photo


def _cut_out(photo: Image.Image, share: float, target: tuple[object, object]) -> Image.Image:
    """A square round a target; round the centre where none is recorded, or it lies outside the photo."""
    width, height = photo.info.get("full_size", photo.size)
    try:
        pixel = crosshair_pixel({"target_x": target[0], "target_y": target[1], "width": width, "height": height})
    except ValueError:  # the photo lies on its side, and neither it nor the table says so
        pixel = None
    column, row = pixel or (width // 2, height // 2)
    at = (round(column * photo.width / width), round(row * photo.height / height))  # it may be opened smaller
    return crop_around(photo, at, round(share * min(photo.size)))


def _place_of_copy(path: str | os.PathLike[str], side: int, interpolation: str, cache: Path, cut: Cut | None) -> Path:
    name = hashlib.sha256(os.fsencode(photo_key(path, cut))).hexdigest()
    return cache / f"photos-{side}-{interpolation}" / name[:2] / f"{name}.safetensors"


def photo_key(path: str | os.PathLike[str], cut: Cut | None = None) -> str:
    """A photo's place, size, time of change and cut: with another value it may show something else.

    Raises:
        BadPhoto: if there is no such file.
    """
    try:
        facts = os.stat(path)
    except OSError as error:
        raise BadPhoto(path, f"cannot be read ({error.strerror})") from error
    return f"{os.path.realpath(path)}|{facts.st_size}|{facts.st_mtime_ns}{'' if cut is None else f'|{cut}'}"


def keep(path: Path, data: bytes) -> None:
    """Write a file that only saves time; where it cannot be written, warn and go on without it."""
    try:
        replace_file(path, data)
    except OSError as error:
        # The same words each time, so that Python shows them once.
        warnings.warn(
            f"the cache cannot be written ({os.strerror(error.errno or 0)}): going on without it", stacklevel=2
        )


def cache_size(cache: str | os.PathLike[str]) -> int:
    """How much of the disk a cache takes.

    Args:
        cache: a folder that was given as ``cache``.

    Returns:
        Bytes; 0 where there is none.

    Example:
        >>> photo = open_resized("photos/apple/0.jpg", 32, "bilinear", cache="cache")
        >>> cache_size("cache") > 0
        True
    """
    return sum(file.stat().st_size for folder in _folders(cache) for file in folder.rglob("*") if file.is_file())


def clear_cache(cache: str | os.PathLike[str]) -> None:
    """Delete what cropkit keeps in a cache, and nothing else that may be there.

    Args:
        cache: a folder that was given as ``cache``.

    Example:
        >>> photo = open_resized("photos/apple/0.jpg", 32, "bilinear", cache="cache")
        >>> clear_cache("cache")
        >>> cache_size("cache")
        0
    """
    for folder in _folders(cache):
        shutil.rmtree(folder)


def _folders(cache: str | os.PathLike[str]) -> list[Path]:
    return [folder for kind in ("photos-*", "features-*") for folder in Path(cache).glob(kind) if folder.is_dir()]
