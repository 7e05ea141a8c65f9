import hashlib

import pytest

from cropkit import find_duplicates, make_sample, samples, scan
from cropkit.samples import CLASSES, draw_photo


def fingerprint(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def test_there_are_33_classes():
    assert len(CLASSES) == 33
    assert list(CLASSES) == sorted(CLASSES)


def test_the_same_photo_is_drawn_every_time_and_others_differ():
    assert draw_photo("tea", 0, 1).tobytes() == draw_photo("tea", 0, 1).tobytes()
    assert draw_photo("tea", 0, 1).tobytes() != draw_photo("tea", 0, 2).tobytes()
    assert draw_photo("tea", 0, 1).tobytes() != draw_photo("tea", 1, 1).tobytes()


def test_sample_is_whole_repeatable_and_drawn_once(tmp_path):
    first = make_sample(tmp_path / "one", photos_per_class=1)
    assert fingerprint(first) == fingerprint(make_sample(tmp_path / "two", photos_per_class=1))
    catalog = scan(first)
    assert set(catalog["label"]) == set(CLASSES)
    assert sorted(catalog.loc[catalog["problem"] != "", "path"]) == ["pear/not-found.jpg", "tea/interrupted-upload.jpg"]
    assert find_duplicates(catalog)["exact"].sum() == 2 * len(CLASSES[::4])
    marked = first / "tea" / "mine.txt"
    marked.write_text("still here")
    make_sample(first, photos_per_class=1)
    assert marked.exists()  # nothing was drawn again
    make_sample(first, photos_per_class=1, seed=1)
    assert not marked.exists()  # another sample took its place


def test_a_folder_of_somebodys_photos_is_never_replaced(make_photos):
    root = make_photos({"apple": 1})
    with pytest.raises(FileExistsError, match="something else"):
        make_sample(root, photos_per_class=1)
    assert (root / "apple" / "0.jpg").exists()


def test_an_interrupted_drawing_leaves_no_sample(tmp_path, monkeypatch):
    def fail(folder, seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "_plant_defects", fail)
    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "sample", photos_per_class=1)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.lock"]
