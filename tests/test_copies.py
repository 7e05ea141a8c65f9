import numpy as np
import pytest
import torch
from PIL import Image

from cropkit.data import BadPhoto, CropDataset, cache_size, clear_cache
from cropkit.data.copies import open_resized

HOW = "bicubic"


@pytest.fixture
def large(tmp_path):
    """A photo of 800 x 600 with something to see in it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((800, 600), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=95)
    return tmp_path / "large.jpg"


def kept(cache):
    return sorted(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("how", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [100, 420])
def test_a_photo_its_copy_and_the_next_reading_have_the_same_pixels(large, tmp_path, side, how):
    cache = tmp_path / "cache"
    without = np.asarray(open_resized(large, side, how))
    assert min(without.shape[:2]) == side
    for _ in range(2):
        assert np.array_equal(np.asarray(open_resized(large, side, how, cache=cache)), without)
    assert len(kept(cache)) == (side == 100)  # one that is hardly larger is not kept


def test_the_tensor_of_a_photo_is_the_same_with_and_without_a_copy(make_photos, tmp_path):
    import pandas as pd

    root = make_photos({"apple": 3})
    rng = np.random.default_rng(1)
    for path in (root / "apple").iterdir():
        Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).resize((1500, 1000)).save(path)
    catalog = pd.DataFrame({"path": [f"apple/{k}.jpg" for k in range(3)], "label": "apple", "root": str(root)})
    expects = {"resize_size": 256, "crop_size": 224, "interpolation": HOW, "mean": [0.5] * 3, "std": [0.5] * 3}
    plain = CropDataset(catalog, ["apple"], expects, augment=True)
    first, second = (CropDataset(catalog, ["apple"], expects, augment=True, cache=tmp_path / "c") for _ in range(2))
    for dataset in (first, second):
        for place in (0, 1, 2, (1, 0), (7, 2)):  # as it is, and varied
            assert torch.equal(plain[place][0], dataset[place][0])
    assert len(kept(tmp_path / "c")) == 3


def test_a_changed_photo_is_read_anew(large, tmp_path):
    cache = tmp_path / "cache"
    open_resized(large, 100, HOW, cache=cache)
    Image.new("RGB", (800, 600), "blue").save(large)
    assert open_resized(large, 100, HOW, cache=cache).getpixel((5, 5))[2] > 250


def test_the_copy_is_used(large, tmp_path):
    open_resized(large, 100, HOW, cache=tmp_path)
    (copy,) = kept(tmp_path)
    other = tmp_path / "other.jpg"
    Image.new("RGB", (800, 600), "red").save(other)
    open_resized(other, 100, HOW, cache=tmp_path / "other")
    copy.write_bytes(kept(tmp_path / "other")[0].read_bytes())
    assert open_resized(large, 100, HOW, cache=tmp_path).getpixel((5, 5))[0] > 250


@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_copy_is_made_anew(large, tmp_path, place, damage):
    cache = tmp_path / "cache"
    first = open_resized(large, 100, HOW, cache=cache)
    (copy,) = kept(cache)
    data, at = bytearray(copy.read_bytes()), int(place * copy.stat().st_size)
    data[at] ^= 0x55
    copy.write_bytes(data if damage == "flipped" else data[:at])
    assert np.array_equal(np.asarray(open_resized(large, 100, HOW, cache=cache)), np.asarray(first))
    assert len(kept(cache)) == 1


def test_a_cache_that_cannot_be_written_only_warns(large, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="the cache cannot be written .*: going on without it"):
        photo = open_resized(large, 100, HOW, cache=tmp_path / "cache")
    assert np.array_equal(np.asarray(photo), np.asarray(open_resized(large, 100, HOW)))


def test_photos_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(BadPhoto, match=r"gone\.jpg"):
        open_resized(tmp_path / "gone.jpg", 100, HOW, cache=tmp_path / "cache")
    (tmp_path / "text.jpg").write_text("ripe")
    with pytest.raises(BadPhoto, match=r"text\.jpg"):
        open_resized(tmp_path / "text.jpg", 100, HOW, cache=tmp_path / "cache")


def test_one_call_removes_only_what_is_cropkits(large, tmp_path):
    cache = tmp_path / "cache"
    assert cache_size(cache) == 0
    open_resized(large, 100, HOW, cache=cache)
    (cache / "mine.txt").write_text("mine")
    assert cache_size(cache) == kept(cache)[0].stat().st_size
    clear_cache(cache)
    assert cache_size(cache) == 0
    assert (cache / "mine.txt").exists()


def marked(root, at, size=(800, 600)):
    """A black photo with a white square of 40 pixels round a pixel."""
    photo = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    photo[at[1] - 20 : at[1] + 20, at[0] - 20 : at[0] + 20] = 255
    Image.fromarray(photo).save(root / "marked.png")
    return root / "marked.png"


def test_a_cut_lies_round_its_target_and_is_as_large_as_asked_for(tmp_path):
    path = marked(tmp_path, (600, 150))  # 200 right of the centre, 150 above it
    seen = np.asarray(open_resized(path, 300, HOW, cut=(0.5, ("200", "150"))))
    assert seen.shape == (300, 300, 3)
    rows, columns = np.nonzero(seen[..., 0] > 128)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (130, 169, 130, 169)  # in the middle
    assert not np.asarray(open_resized(path, 300, HOW, cut=(0.5, (0, 0)))).any()  # at the centre it is not seen
    assert np.asarray(open_resized(path, 300, HOW, cut=(0.5, (900, 0)))).any() == 0  # outside: the centre


def test_a_cut_that_would_leave_the_photo_is_moved_inwards(tmp_path):
    path = marked(tmp_path, (780, 20))
    seen = np.asarray(open_resized(path, 300, HOW, cut=(0.5, (380, 280))))
    assert seen.shape == (300, 300, 3) and seen[:40, -40:].min() == 255


def test_a_cut_of_a_large_photo_is_the_same_from_its_copy_and_another_one_has_its_own(large, tmp_path):
    cache = tmp_path / "cache"
    for cut in (None, (0.5, (100, 50)), (0.5, (0, 0)), (0.7, (100, 50))):
        without = np.asarray(open_resized(large, 100, HOW, cut=cut))
        for _ in range(2):
            assert np.array_equal(np.asarray(open_resized(large, 100, HOW, cut=cut, cache=cache)), without)
    assert len(kept(cache)) == 4
