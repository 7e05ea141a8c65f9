import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from cropkit import BadPhoto, cache_size, clear_cache
from cropkit.cache import open_shrunk


@pytest.fixture
def large(tmp_path):
    """A photo of 800 x 600 with something to see in it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((800, 600), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    return tmp_path / "large.jpg"


def kept(cache):
    return sorted(cache.rglob("*.jpg"))


def test_a_large_photo_is_kept_small_and_every_call_returns_the_same_pixels(large, tmp_path):
    cache = tmp_path / "cache"
    first = open_shrunk(large, 100, cache)
    assert first.size == (133, 100)
    assert len(kept(cache)) == 1
    second = open_shrunk(large, 100, cache)
    assert np.array_equal(np.asarray(first), np.asarray(second))
    direct = Image.open(large).resize((133, 100), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(first, int) - np.asarray(direct, int)).mean() < 3


def forge(copy, size, colour):
    """Put another picture into a copy, with hashes that are right."""
    picture = io.BytesIO()
    Image.new("RGB", size, colour).save(picture, "JPEG")
    of_photo = copy.read_bytes()[-128:-64]
    copy.write_bytes(picture.getvalue() + of_photo + hashlib.sha256(picture.getvalue()).hexdigest().encode())


def test_the_copy_is_used(large, tmp_path):
    open_shrunk(large, 100, tmp_path / "cache")
    forge(kept(tmp_path / "cache")[0], (133, 100), "red")
    assert open_shrunk(large, 100, tmp_path / "cache").getpixel((5, 5))[0] > 250


def test_a_photo_that_is_hardly_larger_is_not_kept(large, tmp_path):
    assert open_shrunk(large, 420, tmp_path / "cache").size == (800, 600)
    assert kept(tmp_path / "cache") == []


def test_a_changed_photo_is_read_anew(large, tmp_path):
    cache = tmp_path / "cache"
    open_shrunk(large, 100, cache)
    Image.new("RGB", (800, 600), "blue").save(large)
    assert open_shrunk(large, 100, cache).getpixel((5, 5))[2] > 250


def test_a_photo_replaced_by_one_of_equal_size_and_time_is_found_by_its_bytes(tmp_path):
    cache, path = tmp_path / "cache", tmp_path / "photo.bmp"
    Image.new("RGB", (800, 600), "red").save(path)
    facts = path.stat()
    open_shrunk(path, 100, cache)
    Image.new("RGB", (800, 600), "blue").save(path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    assert open_shrunk(path, 100, cache).getpixel((5, 5))[0] > 250  # nothing to see from outside
    assert open_shrunk(path, 100, cache, verify=True).getpixel((5, 5))[2] > 250


@pytest.mark.parametrize("keep", [0, 0.5])
def test_a_damaged_copy_is_made_anew(large, tmp_path, keep):
    cache = tmp_path / "cache"
    first = open_shrunk(large, 100, cache)
    copy = kept(cache)[0]
    copy.write_bytes(copy.read_bytes()[: int(keep * copy.stat().st_size)])
    assert np.array_equal(np.asarray(open_shrunk(large, 100, cache)), np.asarray(first))


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, -100, -5])
def test_a_flipped_byte_of_a_copy_is_noticed(large, tmp_path, place):
    cache = tmp_path / "cache"
    first = open_shrunk(large, 100, cache)
    copy = kept(cache)[0]
    data = bytearray(copy.read_bytes())
    data[int(place * len(data)) if 0 < place < 1 else place] ^= 0x55
    copy.write_bytes(data)
    verify = place == -100  # there lies the photo's hash, which only verify reads
    assert np.array_equal(np.asarray(open_shrunk(large, 100, cache, verify=verify)), np.asarray(first))


def test_a_copy_of_another_side_is_not_used(large, tmp_path):
    cache = tmp_path / "cache"
    open_shrunk(large, 100, cache)
    forge(kept(cache)[0], (66, 50), "red")  # too small for this model
    assert min(open_shrunk(large, 100, cache).size) == 100
    assert open_shrunk(large, 100, cache).getpixel((5, 5)) != (254, 0, 0)


def test_photos_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(BadPhoto, match=r"gone\.jpg"):
        open_shrunk(tmp_path / "gone.jpg", 100, tmp_path / "cache")
    (tmp_path / "text.jpg").write_text("ripe")
    with pytest.raises(BadPhoto, match=r"text\.jpg"):
        open_shrunk(tmp_path / "text.jpg", 100, tmp_path / "cache")


def test_size_is_told_and_one_call_removes_only_what_is_cropkits(large, tmp_path):
    cache = tmp_path / "cache"
    assert cache_size(cache) == 0
    open_shrunk(large, 100, cache)
    (cache / "mine.txt").write_text("mine")
    assert cache_size(cache) == kept(cache)[0].stat().st_size
    clear_cache(cache)
    assert cache_size(cache) == 0
    assert (cache / "mine.txt").exists()
