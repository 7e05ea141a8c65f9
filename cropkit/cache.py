"""What is kept on disk so that it need not be computed twice: small copies of large photos, and features.

Everything in a cache can be deleted at any time: what is missing, damaged or out of date is made anew.
"""

import errno
import hashlib
import io
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from cropkit.photos import BadPhoto, decode_photo, open_photo

QUALITY = 95  # of the small copies, JPEG with full colour resolution
SEAL = 128  # bytes of two hexadecimal SHA-256
WORTH = 1.5  # a photo is kept small if its short side is more than so many times the side that is asked for
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_shrunk(
    path: str | os.PathLike[str], side: int, cache: str | os.PathLike[str], *, verify: bool = False
) -> Image.Image:
    """Open a photo with the short side of `side` pixels, from its small copy where there is one.

    A photo that is hardly larger than that is opened as it is, since a copy would save nothing. A copy belongs to one
    state of its file, known by path, size and time of change. The first call returns the copy too, so that every call
    returns the same pixels.

    Args:
        path: the photo.
        side: pixels of the short side, as the model's transform resizes it.
        cache: a folder for the copies.
        verify: read the photo's bytes as well and compare their hash with the copy's.

    Returns:
        An upright RGB image; proportions kept.

    Raises:
        BadPhoto: if the photo cannot be read.
    """
    key = file_key(path)
    name = hashlib.sha256(os.fsencode(key)).hexdigest()
    copy = Path(cache) / f"photos-{side}" / name[:2] / f"{name}.jpg"
    try:
        data = copy.read_bytes()
    except OSError:  # none yet
        data = b""
    # Behind the JPEG stand two hashes: that of the photo's bytes, and that of the copy's own.
    packed, of_photo, of_copy = data[:-SEAL], data[-SEAL : -SEAL // 2].decode("latin1"), data[-SEAL // 2 :]
    if of_copy == hashlib.sha256(packed).hexdigest().encode() and (not verify or of_photo == file_hash(path)):
        photo = decode_photo(packed, copy)
        if min(photo.size) == side:
            return photo
    photo = open_photo(path, min_side=side)
    if min(photo.info["full_size"]) <= WORTH * side:
        return photo
    scale = side / min(photo.size)
    size = (max(side, round(photo.width * scale)), max(side, round(photo.height * scale)))
    small = io.BytesIO()
    photo.resize(size, Image.Resampling.BICUBIC).save(small, "JPEG", quality=QUALITY, subsampling=0)
    sealed = small.getvalue() + (file_hash(path) + hashlib.sha256(small.getvalue()).hexdigest()).encode()
    replace_file(copy, lambda temporary: temporary.write_bytes(sealed))
    return decode_photo(small.getvalue(), copy)


def file_key(path: str | os.PathLike[str]) -> str:
    """A file's place, size and time of change: another value means that it may hold something else."""
    try:
        facts = os.stat(path)
    except OSError as error:
        raise BadPhoto(path, f"cannot be read ({error.strerror})") from error
    return f"{os.path.realpath(path)}|{facts.st_size}|{facts.st_mtime_ns}"


def file_hash(path: str | os.PathLike[str]) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all; who reads meanwhile finds the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        why = "disk full" if error.errno in FULL else f"cannot be written ({error.strerror})"
        raise OSError(error.errno, f"{why}: {path}. What was there before is intact; mend it and call again") from error
    finally:
        temporary.unlink(missing_ok=True)


def cache_size(cache: str | os.PathLike[str]) -> int:
    """Bytes that a cache takes on disk; 0 where there is none."""
    return sum(file.stat().st_size for folder in _parts(cache) for file in folder.rglob("*") if file.is_file())


def clear_cache(cache: str | os.PathLike[str]) -> None:
    """Delete what cropkit keeps in a cache, and nothing else that may lie there."""
    for folder in _parts(cache):
        shutil.rmtree(folder)


def _parts(cache: str | os.PathLike[str]) -> list[Path]:
    return [folder for kind in ("photos-*", "features-*") for folder in Path(cache).glob(kind) if folder.is_dir()]
