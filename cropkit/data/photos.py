"""Open one photo, whatever it is, as upright 8-bit RGB. Every photo that cropkit reads passes through here."""

import io
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

# Named, since Pillow otherwise also tries EPS, which starts Ghostscript.
FORMATS = ("PNG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "GIF", "AVIF", "JPEG2000")  # and JPEG, with MPO
MAX_PIXELS = 50_000_000  # decoded in at most 1 GB, whatever the mode
MAX_BYTES = 400_000_000  # more than `MAX_PIXELS` fill in any mode
MAX_PARTS = 100_000  # segments and chunks that are walked through, far more than any camera writes
MAX_JPEG_PIXELS = 250_000_000  # before it is reduced to `MAX_PIXELS`; phones make up to 200 million
MAX_HEADER = 8_000_000  # bytes before a JPEG's pixels, which Pillow reads slowly
MAX_SCANS = 100  # passes over a progressive JPEG; encoders make up to 64
# Its pixels times its scans, but at least 10: decoded in 2 to 3 s and at most 1 GB, since all stay until the last.
MAX_PASSED = 1_200_000_000
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
# What people take for photos, by its first bytes; only for the error.
OTHERS = {
    "HEIC (save it as JPEG)": rb".{4}ftyp(hei|hev|mif1|msf1)",
    "a video": rb".{4}ftyp",
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PDF": rb"%PDF",
    "PSD": rb"8BPS",
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "a ZIP archive": rb"PK\x03\x04",
    "a Git LFS pointer": rb"version https://git-lfs",
    "an SVG drawing": rb"\s*(<\?xml[^>]*>\s*)?<svg",
    "a web page": rb"(?i)\s*<(!doctype )?html",
    "a camera's raw file (develop it to JPEG)": rb"II\*\x00.{4}CR|II(U\x00|RO|RS)|FUJIFILMCCD-RAW",
    "a TIFF of an unusual kind (save it with 8 or 16 bits a channel)": rb"II\*\x00|MM\x00\*|II\+\x00|MM\x00\+",
    "a damaged JPEG": rb"\xff\xd8",
    "a damaged PNG": rb"\x89PNG",
}
JPEG, SCAN, END, FILL = b"\xff\xd8", b"\xda", b"\xd9", b"\xff"
# Of the segments that tell their length. Pillow passes over others; a byte that fills up is slow there, so it counts.
MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe\xff])")
PNG, PNG_PIXELS = b"\x89PNG\r\n\x1a\n", (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
# Text in a PNG that may say how the photo lies.
PNG_TEXT, ORIENTED = (b"tEXt", b"zTXt", b"iTXt"), (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
XMP = b"http://ns.adobe.com/xap/1.0/\0"
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
        An RGB image, 8 bits a channel. ``info`` holds what the file was: ``format``, ``mode`` (Pillow's name),
        ``orientation`` (EXIF, 1 to 8) and ``full_size``, the upright (width, height) in pixels before any reduction.

    Raises:
        BadPhoto: if the file is missing, no photo, damaged, or larger than `MAX_PIXELS` even if reduced.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> Image.new("RGB", (1600, 1200), "green").save(f"{folder}/leaf.jpg")
        >>> photo = open_photo(f"{folder}/leaf.jpg", min_side=256)
        >>> photo.size, photo.info["full_size"]
        ((400, 300), (1600, 1200))
    """
    return decode_photo(read_photo(path), path, min_side=min_side)


def read_photo(path: str | PathLike[str]) -> bytes:
    """The bytes of a file that may be a photo; raises `BadPhoto` where it cannot be one."""
    try:
        facts = Path(path).stat()
        if not stat.S_ISREG(facts.st_mode):  # reading a pipe would wait for ever
            raise BadPhoto(path, "is no regular file")
        if facts.st_size > MAX_BYTES:
            raise BadPhoto(path, f"has {facts.st_size:,} bytes, more than {MAX_BYTES:,}")
        return Path(path).read_bytes()
    except BadPhoto:
        raise
    except (OSError, ValueError, MemoryError) as error:  # a name may hold what no file system takes
        raise BadPhoto(path, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error


def decode_photo(data: bytes, path: str | PathLike[str], *, min_side: int | None = None) -> Image.Image:
    """Decode a photo from its bytes; `path` is only for the error. See `open_photo`."""
    if not data:
        raise BadPhoto(path, "is empty (0 bytes)")
    try:
        if data.startswith(PNG):
            _check_png(data)
        try:
            return _decode(data, path, min_side)
        except BadPhoto:
            raise
        except Exception:  # Pillow gives up on damaged metadata, too
            if not data.startswith((PNG, JPEG)):
                raise
            with suppress(Exception):
                return _decode(_without_metadata(data), path, min_side)
            raise
    except BadPhoto:
        raise
    except (Image.UnidentifiedImageError, SyntaxError) as error:
        raise BadPhoto(path, _what_else(data)) from error
    except Image.DecompressionBombError as error:
        raise BadPhoto(path, f"declares more than {MAX_PIXELS:,} pixels") from error
    except Exception as error:  # on damaged bytes Pillow's decoders raise nearly anything
        raise BadPhoto(path, f"is damaged ({error})") from error


def _decode(data: bytes, path: str | PathLike[str], min_side: int | None) -> Image.Image:
    scans = _scans(data) if data.startswith(JPEG) else 0
    with _identify(data) as image:
        photo_format, mode, (width, height) = image.format, image.mode, image.size
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        _check_size(image, (width, height), scans, path)
        if image.format == "TIFF":
            _check_tiff(image, path)
        before = _orientation(image)
        image.load()
        orientation = _orientation(image)  # now 1 in a TIFF, which Pillow has set upright itself
        photo = _to_rgb(image)
    if orientation in UPRIGHT:
        photo = photo.transpose(UPRIGHT[orientation])
        if orientation >= 5:  # lies on its side
            width, height = height, width
    photo.info = {"format": photo_format, "mode": mode, "full_size": (width, height)}
    photo.info["orientation"] = max(before, orientation)
    return photo


def _identify(data: bytes) -> ImageFile.ImageFile:
    """The photo before its pixels are decoded. `Image.open` would warn of large ones or refuse them."""
    if data.startswith(JPEG):
        return JpegImageFile(io.BytesIO(data))
    Image.init()
    for name in FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))  # a Pillow may lack AVIF
        if factory and accepts and accepts(data[:16]) is True:
            with suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(io.BytesIO(data), "")
    raise Image.UnidentifiedImageError


def _check_size(image: ImageFile.ImageFile, full: tuple[int, int], scans: int, path: str | PathLike[str]) -> None:
    """Refuse what takes too long or too much memory, before its pixels are decoded."""
    pixels, what = full[0] * full[1], f"declares {full[0]} x {full[1]} pixels"
    if image.width * image.height > MAX_PIXELS or pixels > MAX_JPEG_PIXELS:
        raise BadPhoto(path, f"{what}, more than {MAX_PIXELS:,}")
    if scans > MAX_SCANS or (scans and max(scans, 10) * pixels > MAX_PASSED):
        raise BadPhoto(path, f"{what} in {scans} scans, more than {MAX_SCANS} scans or too large for so many")


def _what_else(data: bytes) -> str:
    """Why bytes that Pillow does not know are no photo."""
    for name, start in OTHERS.items():
        if re.match(start, data[:512], re.DOTALL):
            return f"is {name}, which cannot be decoded here"
    if data[:512].isascii():
        return "is text"
    return "is in no format that can be decoded here"


def _without_metadata(data: bytes) -> bytes:
    """A PNG or JPEG without the parts that only describe it.

    What the pixels need stays, and so do EXIF and XMP, for the orientation.
    """
    parts, stays = (_chunks, _chunk_stays) if data.startswith(PNG) else (_segments, _segment_stays)
    kept, place = [], 0
    for kind, begin, end in parts(data):
        if kind == SCAN:
            break
        if not stays(kind, data[begin:end]):
            kept.append(data[place:begin])
            place = end
    return b"".join([*kept, data[place:]])


def _chunk_stays(kind: bytes, chunk: bytes) -> bool:
    sound = zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
    lies = kind == b"eXIf" or (kind in PNG_TEXT and chunk[8:].startswith(ORIENTED))
    return kind in PNG_PIXELS or (lies and sound)


def _segment_stays(kind: bytes, segment: bytes) -> bool:
    describes = b"\xe0" <= kind <= b"\xef" or kind == b"\xfe"
    lies = kind == b"\xe1" and segment[4:].startswith((b"Exif\0\0", XMP))
    colours = (kind == b"\xee" and segment[4:9] == b"Adobe" and len(segment) >= 16) or (
        kind == b"\xe0" and segment[4:8] == b"JFIF" and len(segment) >= 18
    )
    return not describes or lies or colours


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of each chunk of a PNG."""
    place = len(PNG)
    for _ in range(MAX_PARTS):
        if place + 8 > len(data):
            return
        length, kind = struct.unpack_from(">I4s", data, place)
        yield kind, place, place + 12 + length
        if kind == b"IEND":
            return
        place += 12 + length
    raise ValueError(f"more than {MAX_PARTS:,} chunks")


def _segments(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, begin and end of each segment of a JPEG, as Pillow finds them."""
    place = len(JPEG)
    for _ in range(MAX_PARTS):
        found = MARKER.search(data, place)
        if not found:
            return
        length = int.from_bytes(data[found.end() : found.end() + 2], "big")
        place = found.start() + 1 if found[1] in (END, FILL) else found.end() + length
        yield found[1], found.start(), place
    raise ValueError(f"more than {MAX_PARTS:,} segments")


def _scans(data: bytes) -> int:
    """How many scans a JPEG keeps in memory until the last one; 0 if it has a single one.

    Raises ValueError if there is too much before them. What follows the JPEG's end, as a phone's video, does not count.
    """
    scans, header, components = 0, len(data), b""
    for kind, begin, _ in _segments(data):
        if kind in (b"\xc0", b"\xc1"):  # a frame that is not progressive
            components = data[begin + 9 : begin + 10]
        if kind == SCAN:
            header = min(header, begin)
            if data[begin + 4 : begin + 5] == components:  # all in this scan
                break
            scans += 1
        if kind == END:
            break
    if header > MAX_HEADER:
        raise ValueError(f"more than {MAX_HEADER:,} bytes before its pixels")
    return scans


def _check_png(data: bytes) -> None:
    """Refuse a PNG that a strict decoder refuses; Pillow shows what is left of it."""
    if data[8:16] != b"\0\0\0\x0dIHDR" or len(data) < 33:
        raise Image.UnidentifiedImageError
    width, height, _, colours, compression, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if width * height > MAX_PIXELS:  # `_check_size` says so
        return
    if compression or interlace > 1:  # Pillow looks at the filter method
        raise ValueError("unknown compression or interlace method")
    view, pixels, missing = memoryview(data), [], {b"IEND"} | ({b"PLTE"} if colours == 3 else set())
    for kind, begin, end in _chunks(data):
        critical = not kind[0] & 32
        if critical and zlib.crc32(view[begin + 4 : end - 4]).to_bytes(4, "big") != view[end - 4 : end]:
            raise ValueError(f"chunk {kind.decode('latin1')} is cut off or has a wrong sum")
        if kind == b"IDAT":
            pixels.append(view[begin + 8 : end - 4])
        missing.discard(kind)
    if missing:
        raise ValueError(f"chunk {missing.pop().decode()} is missing")
    _inflate(pixels, 8 * width * height + 2 * height + 64)  # 8 bytes a pixel, and one to begin each line


def _inflate(chunks: list[memoryview], most: int) -> None:
    """Raise an error unless the chunks hold one whole zlib stream of at most so many bytes."""
    stream, size = zlib.decompressobj(), 0
    for piece in (chunk[place : place + 2**14] for chunk in chunks for place in range(0, len(chunk), 2**14)):
        size += len(stream.decompress(piece))  # at most 17 MB
        if size > most:
            raise ValueError("more data than its pixels need")
        if stream.eof:
            return
    raise ValueError("the data of its pixels are cut off")


def _check_tiff(image: Image.Image, path: str | PathLike[str]) -> None:
    """Refuse a TIFF whose tiles are larger than any photo, and a raw file, of which Pillow shows a thumbnail."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    small = bool(tags.get(254, 0) & 1)  # NewSubfileType: a reduced image
    if 50706 in tags or (small and 330 in tags):  # DNGVersion; SubIFDs, where the full image lies
        raise BadPhoto(path, "is a camera's raw file (develop it to JPEG), which cannot be decoded here")
    across, down = tags.get(322, 0), tags.get(323, 0)
    if across * down > MAX_PIXELS:
        raise BadPhoto(path, f"declares tiles of {across} x {down} pixels, more than {MAX_PIXELS:,}")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the metadata are absent or broken, since the pixels may still be sound."""
    try:
        orientation = int(image.getexif().get(0x0112, 1))
    except Exception:
        return 1
    return orientation if orientation in UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey_of_integers(image).convert("RGB")
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        return white
    if image.mode == "LAB":  # Pillow's convert() knows no way from LAB
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        return to_rgb.apply(image)
    if image.mode == "F":
        return _to_8_bit(np.array(image)).convert("RGB")
    return image.convert("RGB")


def _grey_of_integers(image: Image.Image) -> Image.Image:
    values = np.array(image)
    grey = _to_8_bit(values, _largest_integer(image))
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]  # white is zero
        grey = ImageOps.invert(grey)
    if "transparency" in image.info:  # one value, in the file's own scale
        grey.paste(255, mask=Image.fromarray(values == image.info["transparency"]))
    return grey


def _largest_integer(image: Image.Image) -> int:
    """What stands for white in a file of integers of more than 8 bits; Pillow's mode "I" hides the file's type."""
    if image.format != "TIFF":
        return 65535
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits, signed = tags.get(258, (16,))[0], tags.get(339, (1,))[0] == 2
    return int(2 ** (bits - signed) - 1)


def _to_8_bit(values: np.ndarray, largest: int | None = None) -> Image.Image:
    """Grey pixels of more than 8 bits: integers by their type's maximum, floats as [0, 1], else by their range."""
    if largest == 2**32 - 1:
        values = values.view(np.uint32)  # Pillow reads unsigned numbers into signed ones
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("holds NaN or infinite pixels")
    if largest is not None:
        low, high = 0.0, float(largest)
    elif low >= 0.0 and high <= 1.0:
        low, high = 0.0, 1.0
    scaled = np.subtract(values, low, dtype=np.float32)
    scaled *= 255.0 / max(high - low, 1e-12)
    return Image.fromarray(scaled.clip(0, 255, out=scaled).round(out=scaled).astype(np.uint8))


def contain(photo: Image.Image, side: int) -> Image.Image:
    """A copy that fits a square of `side` pixels, proportions kept; for thumbnails."""
    longer = max(photo.size)
    return photo.resize([max(1, round(length * side / longer)) for length in photo.size], Image.Resampling.BICUBIC)


def crosshair_pixel(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """Where the competition's crosshair lies in a photo, as its table ``tag_locCoor.csv`` has it.

    The table counts pixels from the centre of the upright photo, x to the right and y up. In the pixels as they are
    stored, a photo that lies on its side thus has its axes swapped; `open_photo` sets it upright first.

    Args:
        row: of a catalog that was scanned with this metadata: ``target_x``, ``target_y``, ``width``, ``height``.

    Returns:
        Column and row in the photo as `open_photo` returns it at full size; None if no target is recorded.

    Raises:
        ValueError: if the target lies outside the photo, as where a photo lies on its side and EXIF does not say so.

    Example:
        >>> crosshair_pixel({"target_x": "-100", "target_y": "50", "width": 640, "height": 480})
        (220, 190)
    """
    told = [row["target_x"], row["target_y"]]
    if any(value in ("", None) or value != value for value in told):  # NaN differs from itself
        return None
    x, y = (round(float(value)) for value in told)
    if x == y == 0:
        return None
    column, line = int(row["width"]) // 2 + x, int(row["height"]) // 2 - y
    if not (0 <= column < row["width"] and 0 <= line < row["height"]):
        raise ValueError(
            f"{row.get('path', 'the photo')}: target ({x}, {y}) lies outside {row['width']} x {row['height']} pixels. "
            "Does the photo lie on its side without saying so?"
        )
    return column, line


def crop_around(photo: Image.Image, pixel: tuple[int, int], side: int) -> Image.Image:
    """A square of `side` pixels round a pixel, moved inwards where it would leave the photo.

    Args:
        photo: of any mode.
        pixel: column and row of the middle.
        side: in pixels.

    Returns:
        The square; smaller than `side` only if the photo is.

    Example:
        >>> crop_around(Image.new("RGB", (640, 480)), (630, 240), 200).size
        (200, 200)
    """
    side = min(side, *photo.size)
    left, top = (min(max(p - side // 2, 0), length - side) for p, length in zip(pixel, photo.size, strict=True))
    return photo.crop((left, top, left + side, top + side))
