"""Open one photo, whatever it is, as upright 8-bit RGB. Every photo that cropkit reads passes through here."""

import io
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

# Named, since Pillow otherwise also tries EPS, which starts Ghostscript. MPO arrives through "JPEG".
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "GIF", "AVIF", "JPEG2000")
MAX_PIXELS = 100_000_000
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPhoto(ValueError):
    """A file that cannot be read as a photo.

    Attributes:
        path: the file.
        reason: why, in a few words.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{path}: {reason}. Remove the file or replace it by a good copy.")

    def __reduce__(self) -> tuple[type, tuple[Path, str]]:
        # An exception is rebuilt from its arguments when a loader worker hands it to the main process.
        return type(self), (self.path, self.reason)


def open_photo(path: str | PathLike[str], *, min_side: int | None = None) -> Image.Image:
    """Open a photo as upright RGB.

    Args:
        path: the file; its content decides the format, not its extension.
        min_side: if given, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where both sides still have at least
            `min_side` pixels, which is several times faster for large photos.

    Returns:
        An RGB image, 8 bits a channel. ``info`` holds ``format`` and ``full_size``, the upright (width, height)
        in pixels before any reduction.

    Raises:
        BadPhoto: if the file is missing, no photo, damaged, or larger than `MAX_PIXELS`.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadPhoto(path, f"cannot be read ({error.strerror})") from error
    return decode_photo(data, path, min_side=min_side)


def decode_photo(data: bytes, path: str | PathLike[str], *, min_side: int | None = None) -> Image.Image:
    """Decode a photo from its bytes; `path` is only for the error. See `open_photo`."""
    if not data:
        raise BadPhoto(path, "is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            photo_format, (width, height) = image.format, image.size
            if width * height > MAX_PIXELS:
                raise BadPhoto(path, f"declares {width} x {height} pixels, more than {MAX_PIXELS:,}")
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            image.load()
            orientation = _orientation(image)
            photo = _to_rgb(image)
    except BadPhoto:
        raise
    except Image.UnidentifiedImageError as error:
        raise BadPhoto(path, "is not a photo in a format that Pillow can decode") from error
    except Image.DecompressionBombError as error:
        raise BadPhoto(path, f"declares more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly anything
        raise BadPhoto(path, f"is damaged ({error})") from error
    if orientation in UPRIGHT:
        photo = photo.transpose(UPRIGHT[orientation])
        if orientation >= 5:  # lies on its side
            width, height = height, width
    photo.info = {"format": photo_format, "full_size": (width, height)}
    return photo


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the metadata are absent or broken, since the pixels may still be sound."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode == "LAB":  # Pillow's convert() knows no way from LAB
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return to_rgb.apply(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _to_8_bit(np.asarray(image)).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(pixels: np.ndarray) -> Image.Image:
    """Grey pixels of more than 8 bits: integers by their type's maximum, floats as [0, 1], else by their range."""
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinite pixels")
    low, high = float(values.min()), float(values.max())
    if pixels.dtype.kind in "iu":
        # 16-bit files may arrive as 32-bit integers.
        low, high = 0.0, 65535.0 if high <= 65535 else float(np.iinfo(pixels.dtype).max)
    elif low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    scaled = (values - low) / max(high - low, 1e-12) * 255.0
    return Image.fromarray(scaled.clip(0, 255).round().astype(np.uint8))


def contain(photo: Image.Image, side: int) -> Image.Image:
    """A copy that fits a square of `side` pixels, proportions kept; for thumbnails."""
    return ImageOps.contain(photo, (side, side))
