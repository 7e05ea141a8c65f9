import contextlib
import io
import os
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from cropkit import open_photo
from cropkit.data import BadPhoto, crop_around, crosshair_pixel, photos
from cropkit.data.photos import UPRIGHT

INVERSE = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}


def two_halves():
    """Left half red, right half blue, 64 x 32."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32, 0] = pixels[:, 32:, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(tmp_path, orientation):
    stored = two_halves()
    if orientation > 1:
        stored = stored.transpose(UPRIGHT[INVERSE[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    photo = open_photo(tmp_path / "photo.jpg")
    assert photo.size == photo.info["full_size"] == (64, 32)
    assert np.abs(np.asarray(photo, int) - np.asarray(two_halves(), int)).mean() < 12


FORMATS = {  # how each is saved, and the mode that it can hold
    "JPEG": {},
    "PNG": {},
    "BMP": {},
    "DIB": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "PPM": {},
    "GIF": {},
    "MPO": {},
    "AVIF": {},
    "JPEG2000": {},
}


@pytest.mark.parametrize("name", ["photo.jpg", "PHOTO.PNG", "photo", "photo.txt"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_opens_whatever_the_file_is_called(tmp_path, kind, name):
    two_halves().save(tmp_path / name, kind, **FORMATS[kind])
    photo = open_photo(tmp_path / name)
    assert (photo.mode, photo.size) == ("RGB", (64, 32))
    assert photo.getpixel((5, 16))[0] > 200 > 60 > photo.getpixel((5, 16))[2]  # red on the left


def test_a_pillow_without_avif_opens_the_rest(tmp_path, monkeypatch):
    for kind in ("AVIF", "JPEG2000"):
        two_halves().save(tmp_path / kind, kind)
    monkeypatch.delitem(Image.OPEN, "AVIF")
    assert open_photo(tmp_path / "JPEG2000").size == (64, 32)
    with pytest.raises(BadPhoto):
        open_photo(tmp_path / "AVIF")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "MPO", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_taken(tmp_path, kind):
    two_halves().save(tmp_path / "photo", kind, save_all=True, append_images=[Image.new("RGB", (64, 32), "green")])
    assert open_photo(tmp_path / "photo").getpixel((5, 16))[0] > 200


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_read_from_other_formats_too(tmp_path, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    two_halves().save(tmp_path / "photo", kind, exif=exif)
    photo = open_photo(tmp_path / "photo")
    assert photo.size == photo.info["full_size"] == (32, 64)
    assert photo.info["orientation"] == 6


MODES = {
    "png": ["1", "L", "LA", "P", "RGBA"],
    "tif": ["1", "L", "LA", "P", "RGBA", "CMYK"],
    "JPG": ["L", "CMYK"],
    "webp": ["RGBA"],
    "gif": ["L", "P"],
    "pgm": ["L"],
    "pbm": ["1"],
}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_every_mode_becomes_rgb(tmp_path, suffix, mode):
    image = Image.new("L", (8, 8), 200)
    image = image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)
    image.save(tmp_path / f"photo.{suffix}")
    photo = open_photo(tmp_path / f"photo.{suffix}")
    assert photo.mode == "RGB"
    assert mode in ("1", "P", photo.info["mode"]) or suffix in ("gif", "webp")  # what the file was
    if mode != "1":  # black and white only
        assert abs(np.asarray(photo, int).mean() - 200) < 4


def test_lab_becomes_rgb(tmp_path):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    to_lab.apply(Image.new("RGB", (8, 8), (200, 60, 40))).save(tmp_path / "photo.tif")
    assert np.abs(np.asarray(open_photo(tmp_path / "photo.tif"), int)[0, 0] - [200, 60, 40]).max() < 12


def test_transparency_lies_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "photo.png")
    assert open_photo(tmp_path / "photo.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_transparent_colour_of_a_palette_lies_over_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.save(tmp_path / "photo.png", transparency=1)
    assert open_photo(tmp_path / "photo.png").getpixel((0, 0)) == (255, 255, 255)


def tiff(pixels, sample_format, order="<", photometric=1, tile=0, dng=False, thumbnail=False):
    """A TIFF file by hand, since Pillow writes few kinds of numbers; sample_format 1 unsigned, 2 signed, 3 float."""
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    height, width = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    short = {258: bits, 259: 1, 262: photometric, 277: 1, 339: sample_format}
    long = {256: width, 257: height, 273: 8, 278: height, 279: len(data)}
    long |= ({322: tile, 323: tile} if tile else {}) | ({50706: 1} if dng else {})
    long |= {254: 1, 330: 8} if thumbnail else {}
    entries = b""
    for tag, value in sorted((short | long).items()):
        kind, packed = (
            (3, struct.pack(f"{order}HH", value, 0)) if tag in short else (4, struct.pack(f"{order}I", value))
        )
        entries += struct.pack(f"{order}HHI", tag, kind, 1) + packed
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(short | long)) + entries + bytes(4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("pixels", "sample_format", "expected"),
    [
        (np.array([[0, 32768], [65535, 16384]], np.uint16), 1, [[0, 128], [255, 64]]),
        (np.array([[0, 100], [200, 300]], np.uint16), 1, [[0, 0], [1, 1]]),  # dark stays dark
        (np.array([[0, 16384], [32767, -5]], np.int16), 2, [[0, 128], [255, 0]]),
        (np.array([[0, 2**30], [2**31 - 1, -5]], np.int32), 2, [[0, 128], [255, 0]]),
        (np.array([[0.0, 0.5], [1.0, 0.25]], np.float32), 3, [[0, 128], [255, 64]]),
        (np.array([[0.0, 0.5], [0.5, 0.25]], np.float32), 3, [[0, 128], [128, 64]]),  # [0, 1] as such
        (np.array([[-10.0, 0.0], [10.0, 5.0]], np.float32), 3, [[0, 128], [255, 191]]),
        (np.array([[0.0, 200.0], [400.0, 100.0]], np.float32), 3, [[0, 128], [255, 64]]),
        (np.array([[7.0, 7.0], [7.0, 7.0]], np.float32), 3, [[0, 0], [0, 0]]),
    ],
)
def test_more_than_8_bits_are_scaled_not_clipped(tmp_path, pixels, sample_format, expected, order):
    (tmp_path / "photo.tif").write_bytes(tiff(pixels, sample_format, order))
    assert np.abs(np.asarray(open_photo(tmp_path / "photo.tif"), int)[..., 0] - expected).max() <= 1


def test_unsigned_32_bits_are_scaled(tmp_path):
    (tmp_path / "photo.tif").write_bytes(tiff(np.array([[0, 2**31], [2**32 - 1, 2**30]], np.uint32), 1))
    assert np.asarray(open_photo(tmp_path / "photo.tif"), int)[..., 0].tolist() == [[0, 128], [255, 64]]


@pytest.mark.parametrize(
    ("pgm", "expected"),
    [(b"P5 2 1 65535\n\xff\xff\x80\x00", [255, 128]), (b"P5 2 1 4095\n\x0f\xff\x08\x00", [255, 128])],
)
def test_16_bit_pgm_is_scaled(tmp_path, pgm, expected):
    (tmp_path / "photo.pgm").write_bytes(pgm)
    assert np.asarray(open_photo(tmp_path / "photo.pgm"), int)[0, :, 0].tolist() == expected


def png_with(kind, content, crc=None):
    whole = io.BytesIO()
    two_halves().save(whole, "PNG")
    crc = zlib.crc32(kind + content) if crc is None else crc
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)
    return whole.getvalue()[:33] + chunk + whole.getvalue()[33:]


def jpeg_with(kind, content):
    whole = io.BytesIO()
    two_halves().save(whole, "JPEG", quality=95)
    segment = bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content
    return whole.getvalue()[:2] + segment + whole.getvalue()[2:]


DAMAGED_METADATA = {
    **{
        f"png {kind.decode()}": png_with(kind, b"junk\0\0junk")
        for kind in (b"iCCP", b"zTXt", b"eXIf", b"iTXt", b"pHYs")
    },
    **{f"png {kind.decode()}, wrong sum": png_with(kind, b"junk", crc=5) for kind in (b"tEXt", b"eXIf", b"gAMA")},
    "jpeg icc, cut": jpeg_with(0xE2, b"ICC_PROFILE\0"),
    "jpeg icc": jpeg_with(0xE2, b"ICC_PROFILE\0\x01\x01junk"),
    "jpeg exif": jpeg_with(0xE1, b"Exif\0\0II*\0" + b"\xff" * 30),
    "jpeg exif, cut": jpeg_with(0xE1, b"Exif\0\0MM"),
    "jpeg xmp": jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
    "jpeg mpf": jpeg_with(0xE2, b"MPF\0junk"),
    "jpeg photoshop": jpeg_with(0xED, b"Photoshop 3.0\x008BIM\xff\xff"),
    "jpeg adobe, cut": jpeg_with(0xEE, b"Adobe"),
    "jpeg jfif, cut": jpeg_with(0xE0, b"JFIF"),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", DAMAGED_METADATA)
def test_damaged_metadata_round_sound_pixels_are_ignored(tmp_path, name):
    (tmp_path / "photo").write_bytes(DAMAGED_METADATA[name])
    photo = open_photo(tmp_path / "photo")
    assert photo.size == (64, 32)
    assert np.abs(np.asarray(photo, int) - np.asarray(two_halves(), int)).mean() < 12


def test_sound_metadata_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "_without_metadata", lambda data: b"")
    for content in (jpeg_with(0xE2, b"ICC_PROFILE\0\x01\x01"), png_with(b"tEXt", b"Title\0ripe")):
        (tmp_path / "photo").write_bytes(content)
        assert open_photo(tmp_path / "photo").size == (64, 32)


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def test_orientation_is_kept_where_other_metadata_are_damaged(tmp_path):
    jpeg, png = jpeg_with(0xE1, exif_of(6)), png_with(b"eXIf", exif_of(6)[6:])
    bomb = b"name\0\0" + zlib.compress(bytes(2_000_000))
    profile = struct.pack(">I", len(bomb)) + b"iCCP" + bomb + struct.pack(">I", zlib.crc32(b"iCCP" + bomb))
    for content in (jpeg[:2] + b"\xff\xe0\0\6JFIF" + jpeg[2:], png[:33] + profile + png[33:]):
        (tmp_path / "photo").write_bytes(content)
        assert open_photo(tmp_path / "photo").size == (32, 64)


def test_the_first_error_is_told_where_the_pixels_are_damaged_too(tmp_path):
    (tmp_path / "photo").write_bytes(jpeg_with(0xE0, b"JFIF")[:-200])
    with pytest.raises(BadPhoto, match="is a damaged JPEG"):
        open_photo(tmp_path / "photo")


XMP = b'<rdf:Description tiff:Orientation="6"/>'
RAW_EXIF = (
    b"\nexif\n      34\n" + b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".hex().encode()
)


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP),
        png_with(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        png_with(b"tEXt", b"Raw profile type exif\0" + RAW_EXIF),
        png_with(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW_EXIF)),
    ],
    ids=["jpeg xmp", "png xmp", "png raw profile", "png packed raw profile"],
)
def test_orientation_is_read_from_xmp_and_raw_profiles(tmp_path, content):
    (tmp_path / "photo").write_bytes(content)
    assert open_photo(tmp_path / "photo").size == (32, 64)


def test_a_transparent_value_of_16_bits_lies_over_white(tmp_path):
    grey = np.array([[0, 1000, 20000, 65535]], np.uint16)
    whole = io.BytesIO()
    Image.fromarray(grey).save(whole, "PNG")
    chunk = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 1000)
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    (tmp_path / "photo.png").write_bytes(whole.getvalue()[:33] + chunk + whole.getvalue()[33:])
    assert np.asarray(open_photo(tmp_path / "photo.png"))[0, :, 0].tolist() == [0, 255, 78, 255]


def test_16_bits_whose_zero_is_white_are_inverted(tmp_path):
    content = tiff(np.array([[0, 65535]], np.uint16), 1, photometric=0)
    (tmp_path / "photo.tif").write_bytes(content)
    assert np.asarray(open_photo(tmp_path / "photo.tif"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_raw_files_are_not_taken_for_their_thumbnails(tmp_path):
    def raw(**tags):
        return tiff(np.zeros((2, 2), np.uint16), 1, **tags)

    for content in (raw(dng=True), raw(thumbnail=True), b"II*\0\x10\0\0\0CR\x02\0"):
        (tmp_path / "photo.dng").write_bytes(content)
        with pytest.raises(BadPhoto, match="is a camera's raw file"):
            open_photo(tmp_path / "photo.dng")


def test_min_side_decodes_smaller_but_large_enough_and_tells_the_full_size(tmp_path):
    Image.new("RGB", (1600, 1200), "green").save(tmp_path / "photo.jpg")
    photo = open_photo(tmp_path / "photo.jpg", min_side=256)
    assert photo.size == (400, 300)
    assert photo.info["full_size"] == (1600, 1200)


def progressive():
    whole = io.BytesIO()
    two_halves().save(whole, "JPEG", progressive=True, quality=95)
    return whole.getvalue()


VIDEO = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\x0c" * 1000 + b"\xff\xd8\xff\xd9" + bytes(5000)


SEGMENTS = b"\xff\xfe\0\2" * 200_000


@pytest.mark.parametrize(
    "content",
    [
        jpeg_with(0xFE, b"") + VIDEO,
        progressive() + VIDEO,
        jpeg_with(0xE4, VIDEO),
        progressive() + SEGMENTS,
        jpeg_with(0xE0, b"JFIF") + SEGMENTS,
    ],
    ids=["video", "progressive", "video inside", "segments", "damaged metadata"],
)
def test_a_video_behind_a_jpeg_is_passed_over(tmp_path, content):
    (tmp_path / "photo.jpg").write_bytes(content)
    for min_side in (None, 8):
        assert open_photo(tmp_path / "photo.jpg", min_side=min_side).info["full_size"] == (64, 32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(12_000, 9_000), (16_320, 12_240)])  # 108 and 200 megapixels
def test_a_jpeg_of_more_than_50_megapixels_opens_where_it_is_reduced(tmp_path, size):
    Image.new("L", size, 200).save(tmp_path / "photo.jpg")
    before = Image.MAX_IMAGE_PIXELS
    photo = open_photo(tmp_path / "photo.jpg", min_side=256)
    assert (photo.size, photo.info["full_size"]) == ((size[0] // 8, size[1] // 8), size)
    assert before == Image.MAX_IMAGE_PIXELS
    for min_side in (None, 9_000):
        with pytest.raises(BadPhoto, match="50,000,000"):
            open_photo(tmp_path / "photo.jpg", min_side=min_side)


def declaring(jpeg, width, height):
    """A JPEG whose header declares other sides than its pixels fill."""
    place = max(jpeg.find(b"\xff\xc0"), jpeg.find(b"\xff\xc2")) + 5
    return jpeg[:place] + struct.pack(">HH", height, width) + jpeg[place + 4 :]


@pytest.mark.filterwarnings("error")
def test_what_would_take_too_long_or_too_much_memory_even_reduced_is_refused(tmp_path):
    whole = io.BytesIO()
    Image.new("L", (7000, 7000), 200).save(whole, "JPEG", progressive=True)
    jpeg = whole.getvalue()
    bad = {
        "50,000,000": declaring(jpeg_with(0xFE, b""), 16_000, 16_000),
        "13000 x 12000 pixels in 10 scans": declaring(progressive(), 13_000, 12_000),
        "13000 x 12000 pixels in 1 scans": declaring(progressive().rsplit(b"\xff\xda", 9)[0], 13_000, 12_000),
        "in 42 scans": jpeg[:-2] + jpeg[jpeg.index(b"\xff\xda") : -2] * 6 + jpeg[-2:],
    }
    for why, content in bad.items():
        (tmp_path / "photo").write_bytes(content)
        begun = time.monotonic()
        with pytest.raises(BadPhoto, match=why):
            open_photo(tmp_path / "photo", min_side=256)
        assert time.monotonic() - begun < 1


NO_PHOTOS = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "PDF": b"%PDF-1.7\n",
    "PSD": b"8BPS\0\1",
    "JPEG XL": b"\xff\x0a\xff\xff",
    "video": b"\0\0\0\x18ftypisom",
    "ZIP": b"PK\3\4",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
    "web page": b"<!DOCTYPE html><html>404 Not Found</html>",
    "SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text": b"ripe",
    "TIFF of an unusual kind": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    "damaged JPEG": b"\xff\xd8\xff\xe0",
    "damaged PNG": b"\x89PNG\r\n\x1a\n",
    "no format": bytes(range(128, 200)),
    "empty": b"",
}


@pytest.mark.parametrize("kind", NO_PHOTOS)
def test_what_is_no_photo_is_a_bad_photo_that_says_what_it_is(tmp_path, kind):
    path = tmp_path / "upload.jpg"
    path.write_bytes(NO_PHOTOS[kind])
    with pytest.raises(BadPhoto, match=rf"upload\.jpg: is .*{kind}") as caught:
        open_photo(path)
    assert caught.value.path == path
    assert kind in caught.value.reason


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "AVIF", "JPEG2000"])
def test_truncated_file_is_a_bad_photo(tmp_path, kind, share):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo", kind)
    whole = (tmp_path / "photo").read_bytes()
    (tmp_path / "photo").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(BadPhoto, match="photo: is"):
        open_photo(tmp_path / "photo")
    with pytest.raises(BadPhoto):  # as `scan` reads it
        open_photo(tmp_path / "photo", min_side=8)


def chunks_of(png):
    """Name and content of each chunk."""
    place, found = 8, []
    while place < len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        found.append((kind, png[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


def png_of(chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def noise():
    """A PNG with a palette, whose pixels do not pack well."""
    whole = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    Image.fromarray(pixels).quantize(16).save(whole, "PNG")
    return whole.getvalue()


NOISE = noise()
PARTS = dict(chunks_of(NOISE))
HEAD, PACKED = PARTS[b"IHDR"], PARTS[b"IDAT"]


def noise_with(**parts):
    """Some chunks replaced, their sums right."""
    return png_of((PARTS | {kind.encode(): content for kind, content in parts.items()}).items())


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGED_PNG = {
    "no IEND": NOISE[:-12],
    "IEND cut": NOISE[:-1],
    "IEND cut before its sum": NOISE[:-4],
    "IDAT cut by its sum": NOISE[:-16],
    "IDAT cut by 3 bytes more": NOISE[:-19],
    "IDAT shorter than its stream": noise_with(IDAT=PACKED[:-3]),
    "Adler sum": noise_with(IDAT=flipped(PACKED, len(PACKED) - 1)),
    "flipped byte": noise_with(IDAT=flipped(PACKED, len(PACKED) // 2)),
    "too few pixels": noise_with(IDAT=zlib.compress(zlib.decompress(PACKED)[:-40])),
    "far too many pixels": noise_with(IDAT=zlib.compress(bytes(3_000_000))),
    "compression method": noise_with(IHDR=HEAD[:10] + b"\1\0\0"),
    "filter method": noise_with(IHDR=HEAD[:11] + b"\1\0"),
    "interlace method": noise_with(IHDR=HEAD[:12] + b"\2"),
    "IHDR not first": png_of([(b"tEXt", b"a\0b"), *PARTS.items()]),
    "no palette": png_of(part for part in PARTS.items() if part[0] != b"PLTE"),
    **{
        f"sum of {kind.decode()}": flipped(NOISE, NOISE.index(kind) + 4 + len(content))
        for kind, content in PARTS.items()
    },
}


@pytest.mark.parametrize("metadata", ["sound", "damaged"])
@pytest.mark.parametrize("name", DAMAGED_PNG)
def test_a_png_that_a_strict_decoder_refuses_is_a_bad_photo(tmp_path, name, metadata):
    png = DAMAGED_PNG[name]
    if metadata == "damaged":
        png = png[:33] + png_with(b"tEXt", b"junk", crc=5)[33:49] + png[33:]
    (tmp_path / "photo.png").write_bytes(png)
    with pytest.raises(BadPhoto, match=r"photo\.png: is .*damaged"):
        open_photo(tmp_path / "photo.png")


def test_an_unusual_but_sound_png_opens(tmp_path):
    pieces = [(b"IDAT", PACKED[place : place + 7]) for place in range(0, len(PACKED), 7)]
    start, end = [(kind, PARTS[kind]) for kind in (b"IHDR", b"PLTE")], [(b"IEND", b"")]
    unusual = [
        png_of([*start, (b"IDAT", b""), *pieces, *end]),
        png_of([*start, (b"IDAT", PACKED), (b"tIME", b"junk"), *end]),
        noise_with(IDAT=PACKED + b"more"),
        noise_with(IDAT=PACKED + bytes(30_000_000)),
        NOISE + VIDEO,
        NOISE + b"\0\0\0\4IDATjunk sum",
    ]
    for content in unusual:
        (tmp_path / "photo.png").write_bytes(content)
        begun = time.monotonic()
        assert np.array_equal(open_photo(tmp_path / "photo.png"), Image.open(io.BytesIO(NOISE)).convert("RGB"))
        assert time.monotonic() - begun < 1


def test_nan_pixels_and_missing_files_are_bad_photos(tmp_path):
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(tmp_path / "nan.tif")
    for name in ("nan.tif", "nowhere.jpg"):
        with pytest.raises(BadPhoto, match=name):
            open_photo(tmp_path / name)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [60_000, 10_000, 9_000])  # Pillow itself refuses the first, and warns of the second
def test_bomb_is_refused_before_its_pixels_are_decoded(tmp_path, side):
    # A PNG header that declares side x side pixels, and no pixels at all.
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT"):
        png += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(BadPhoto, match="50,000,000"):
        open_photo(tmp_path / "bomb.png")


def test_what_would_take_too_long_or_too_much_memory_is_refused(tmp_path):
    whole = io.BytesIO()
    two_halves().save(whole, "JPEG", progressive=True)
    jpeg = whole.getvalue()
    scans = jpeg[jpeg.index(b"\xff\xda") : -2]
    comment, chunk = b"\xff\xfe\0\2", struct.pack(">I4sI", 0, b"tEXt", zlib.crc32(b"tEXt"))
    png = png_with(b"tEXt", b"")
    exif = b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)
    bad = [
        ("100 scans", jpeg[:-2] + scans * 20 + jpeg[-2:]),
        ("100,000 segments", jpeg[:2] + comment * 200_000 + jpeg[2:]),
        ("100,000 segments", jpeg[:2] + b"\xff" * 20_000_000 + jpeg[2:]),
        ("8,000,000 bytes before its pixels", jpeg[:4] + b"\0\2" + bytes(50_000_000)),
        ("8,000,000 bytes before its pixels", jpeg[:2] + b"\xff\xd9" + bytes(50_000_000)),
        ("8,000,000 bytes before its pixels", jpeg[:2] + exif * 2000 + jpeg[2:]),
        ("100,000 chunks", png[:33] + chunk * 200_000 + png[33:]),
        ("tiles of 9000 x 9000", tiff(np.zeros((2, 2), np.uint16), 1, tile=9000)),
    ]
    for why, content in bad:
        (tmp_path / "photo").write_bytes(content)
        begun = time.monotonic()
        with pytest.raises(BadPhoto, match=why):
            open_photo(tmp_path / "photo")
        assert time.monotonic() - begun < 2


def test_a_jpeg_of_very_large_metadata_opens(tmp_path):
    jpeg = jpeg_with(0xED, bytes(65_000))
    (tmp_path / "photo").write_bytes(jpeg[:2] + jpeg[2:65_006] * 400 + jpeg[2:])
    assert open_photo(tmp_path / "photo").size == (64, 32)


def test_pipes_and_huge_files_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(10**12)
    for name, why in (("pipe.jpg", "no regular file"), ("sparse.jpg", "1,000,000,000,000 bytes"), (".", "no regular")):
        with pytest.raises(BadPhoto, match=why):
            open_photo(tmp_path / name)


def test_bad_photo_survives_the_way_from_a_loader_worker(tmp_path):
    copy = pickle.loads(pickle.dumps(BadPhoto(tmp_path / "a.jpg", "is empty")))
    assert (copy.path, copy.reason) == (tmp_path / "a.jpg", "is empty")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "AVIF", "JPEG2000", "MPO"])
def test_flipped_bytes_give_a_photo_or_bad_photo_and_nothing_else(tmp_path, kind):
    two_halves().save(tmp_path / "good", kind)
    good = np.frombuffer((tmp_path / "good").read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(50):
        bad = good.copy()
        bad[rng.integers(0, len(bad), 5)] = rng.integers(0, 256, 5)
        (tmp_path / "fuzzed").write_bytes(bad.tobytes())
        with contextlib.suppress(BadPhoto):
            assert open_photo(tmp_path / "fuzzed").mode == "RGB"


def test_crosshair_lies_where_the_table_says():
    row = {"path": "a.jpg", "width": 1280, "height": 720, "target_x": "100", "target_y": "-128"}
    assert crosshair_pixel(row) == (740, 488)
    assert crosshair_pixel(row | {"target_x": "0", "target_y": "0"}) is None  # none recorded
    assert crosshair_pixel(row | {"target_x": "", "target_y": ""}) is None  # no row in the table
    with pytest.raises(ValueError, match=r"a\.jpg: target \(100, -500\) lies outside"):
        crosshair_pixel(row | {"target_y": "-500"})


@pytest.mark.parametrize(
    ("pixel", "corner"), [((50, 40), (40, 30)), ((0, 0), (0, 0)), ((99, 79), (80, 60)), ((95, 5), (80, 0))]
)
def test_crop_around_a_pixel_stays_inside(pixel, corner):
    y, x = np.mgrid[:80, :100]
    photo = Image.fromarray(np.stack([x, y, x], axis=-1).astype(np.uint8))
    cut = crop_around(photo, pixel, 20)
    assert cut.size == (20, 20)
    assert cut.getpixel((0, 0))[:2] == corner
    assert crop_around(photo, pixel, 500).size == (80, 80)
