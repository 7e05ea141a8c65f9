import contextlib
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from cropkit import BadPhoto, open_photo
from cropkit.photos import UPRIGHT

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


MODES = {"png": ["1", "L", "LA", "P", "RGBA"], "tif": ["1", "L", "LA", "P", "RGBA", "CMYK"], "JPG": ["L", "CMYK"]}


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in MODES.items() for mode in modes])
def test_every_mode_becomes_rgb(tmp_path, suffix, mode):
    image = Image.new("L", (8, 8), 200)
    image = image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)
    image.save(tmp_path / f"photo.{suffix}")
    photo = open_photo(tmp_path / f"photo.{suffix}")
    assert photo.mode == "RGB"
    if mode != "1":  # black and white only
        assert abs(np.asarray(photo, int).mean() - 200) < 4


def test_lab_becomes_rgb(tmp_path):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    to_lab.apply(Image.new("RGB", (8, 8), (200, 60, 40))).save(tmp_path / "photo.tif")
    assert np.abs(np.asarray(open_photo(tmp_path / "photo.tif"), int)[0, 0] - [200, 60, 40]).max() < 12


def test_transparency_lies_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "photo.png")
    assert open_photo(tmp_path / "photo.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[0, 32768], [65535, 16384]], np.uint16), [[0, 128], [255, 64]]),
        (np.array([[0.0, 0.5], [1.0, 0.25]], np.float32), [[0, 128], [255, 64]]),
        (np.array([[-10.0, 0.0], [10.0, 5.0]], np.float32), [[0, 128], [255, 191]]),
    ],
)
def test_more_than_8_bits_are_scaled_not_clipped(tmp_path, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / "photo.tif")
    assert np.abs(np.asarray(open_photo(tmp_path / "photo.tif"), int)[..., 0] - expected).max() <= 1


def test_min_side_decodes_smaller_but_large_enough_and_tells_the_full_size(tmp_path):
    Image.new("RGB", (1600, 1200), "green").save(tmp_path / "photo.jpg")
    photo = open_photo(tmp_path / "photo.jpg", min_side=256)
    assert photo.size == (400, 300)
    assert photo.info["full_size"] == (1600, 1200)


def broken(name, tmp_path):
    whole = tmp_path / "whole.jpg"
    two_halves().resize((640, 320)).save(whole)
    data = whole.read_bytes()
    return {
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "truncated": data[: len(data) // 2],
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        "heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    }[name]


@pytest.mark.parametrize("name", ["empty", "text", "truncated", "eps", "heic"])
def test_broken_file_is_a_bad_photo_that_names_it(tmp_path, name):
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(broken(name, tmp_path))
    with pytest.raises(BadPhoto, match=f"{name}.jpg") as caught:
        open_photo(path)
    assert caught.value.path == path
    assert caught.value.reason


def test_nan_pixels_and_missing_files_are_bad_photos(tmp_path):
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(tmp_path / "nan.tif")
    for name in ("nan.tif", "nowhere.jpg"):
        with pytest.raises(BadPhoto, match=name):
            open_photo(tmp_path / name)


def test_bomb_is_refused_before_its_pixels_are_decoded(tmp_path):
    # A PNG header that declares 60,000 x 60,000 pixels, and no pixels at all.
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for chunk in (header, b"IDAT"):
        png += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "bomb.png").write_bytes(png)
    with pytest.raises(BadPhoto, match="100,000,000"):
        open_photo(tmp_path / "bomb.png")


def test_bad_photo_survives_the_way_from_a_loader_worker(tmp_path):
    copy = pickle.loads(pickle.dumps(BadPhoto(tmp_path / "a.jpg", "is empty")))
    assert (copy.path, copy.reason) == (tmp_path / "a.jpg", "is empty")


def test_flipped_bytes_give_a_photo_or_bad_photo_and_nothing_else(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "gif", "tif", "webp"):
        two_halves().save(tmp_path / f"good.{suffix}")
        good = np.frombuffer((tmp_path / f"good.{suffix}").read_bytes(), np.uint8)
        for _ in range(40):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 5)] = rng.integers(0, 256, 5)
            (tmp_path / "fuzzed").write_bytes(bad.tobytes())
            with contextlib.suppress(BadPhoto):
                assert open_photo(tmp_path / "fuzzed").mode == "RGB"
