import csv
import hashlib
import http.server
import json
import threading
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cropkit import class_names, course, create_model, find_duplicates, make_loaders, open_photo, scan
from cropkit.course import fetch as fetching
from cropkit.course import sample as samples
from cropkit.course.drawing import CLASSES, draw_photo
from cropkit.course.fetch import Source, fetch
from cropkit.course.sample import KEY, NOT_IN_VAL, TAGS, make_sample
from cropkit.data import crosshair_pixel, drop_leaks, good_photos, passed_over


@pytest.fixture(scope="module")
def sample():
    """The small sample that the notebooks use in fast mode."""
    return make_sample(course.FOLDER / "data" / "sample-fast", photos_per_class=5)


@pytest.fixture(scope="module")
def catalog(sample):
    return scan(sample, metadata=sample / TAGS)


@pytest.fixture(scope="module")
def key(sample):
    return pd.read_csv(sample / KEY, dtype=str, keep_default_na=False)


def fingerprint(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [(str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]


def test_there_are_33_classes():
    assert len(CLASSES) == 33
    assert list(CLASSES) == sorted(CLASSES)


def test_the_same_photo_is_drawn_every_time_and_others_differ():
    def drawn(*args):
        return draw_photo(*args).image.tobytes()

    assert drawn("tea", 0, 1) == drawn("tea", 0, 1)
    assert drawn("tea", 0, 1) != drawn("tea", 0, 2)
    assert drawn("tea", 0, 1) != drawn("tea", 1, 1)


def test_sample_is_repeatable_drawn_once_and_replaced_only_by_another(sample, tmp_path, monkeypatch):
    again = make_sample(tmp_path / "again", photos_per_class=5)
    assert fingerprint(sample) == fingerprint(again)
    mine = again / "train" / "tea" / "mine.txt"
    mine.write_text("still here")
    make_sample(again, photos_per_class=5)
    assert mine.exists()  # nothing was drawn again
    monkeypatch.setattr(samples, "_draw_class", _draw_nothing)
    monkeypatch.setattr(samples, "_plant_defects", lambda *args: [])
    make_sample(again, photos_per_class=5, seed=1)
    assert not mine.exists()  # another sample took its place


def _draw_nothing(shots, root, seed):
    return {}


def test_sample_is_like_the_competitions_files(sample, catalog):
    good = good_photos(catalog)
    assert set(good["label"]) == set(CLASSES)
    assert {(640, 480), (800, 600)} <= set(zip(good["width"], good["height"], strict=True))
    assert (good["width"] == 4000).any()
    with (sample / TAGS).open(encoding="cp950") as file:
        assert next(csv.reader(file)) == list(samples.TAG_COLUMNS)
    with pytest.raises(UnicodeDecodeError):
        (sample / TAGS).read_text(encoding="utf-8")


def test_tags_agree_with_the_crosshairs(sample, catalog):
    rings = 0
    for row in good_photos(catalog).to_dict("records"):
        if (pixel := crosshair_pixel(row)) is None or "colour" in row["note"]:
            continue
        photo = open_photo(sample / row["path"])
        radius = max(photo.size) // 40
        around = [
            photo.getpixel((pixel[0] + dx, pixel[1] + dy))
            for dx, dy in ((radius, 0), (-radius, 0), (0, radius), (0, -radius))
            if 0 <= pixel[0] + dx < photo.width and 0 <= pixel[1] + dy < photo.height
        ]
        # Small copies blur the ring; it stays more yellow than blue all the same.
        assert np.mean([min(red, green) - blue for red, green, blue in around]) > 50, row["path"]
        rings += 1
    assert rings > 100


def test_scan_finds_every_planted_defect_and_hardly_more(sample, catalog, key):
    by_defect = dict(list(key.groupby("defect")))
    problems = catalog.set_index("path")["problem"]
    notes = catalog.set_index("path")["note"]
    for defect, said in (("truncated", "damaged"), ("empty", "empty"), ("text named .jpg", "web page")):
        assert problems[by_defect[defect]["path"]].str.contains(said).all(), defect
    for defect, said in (
        ("grey", "colour mode L"),
        ("CMYK", "colour mode CMYK"),
        ("wrong extension", "PNG named .jpg"),
        ("lies on its side or head", "rotated"),
    ):
        assert notes[by_defect[defect]["path"]].str.contains(said).all(), defect
    assert (problems[by_defect["extension in upper case"]["path"]] == "").all()
    assert set(by_defect["hidden folder with copies"]["path"]) <= set(passed_over(sample)["path"])
    bare = catalog.loc[catalog["Img" if "Img" in catalog else "TARGET_FID"] == "", "path"]
    assert set(by_defect["photo without a row"]["path"]) <= set(bare)
    assert not (catalog.loc[catalog["split"] == "val", "label"] == NOT_IN_VAL).any()

    copies = key[key["found by"] == "find_duplicates"]
    found = find_duplicates(catalog).set_index("path")["group"]
    assert len(copies) == 24
    assert (found[copies["path"]].to_numpy() == found[copies["detail"]].to_numpy()).all()

    flagged = set(problems[problems != ""].index) | set(notes[notes != ""].index) | set(found.index)
    assert len(flagged - set(key["path"]) - set(key["detail"])) <= 0.01 * len(catalog)


def test_each_crop_grows_in_four_towns_and_the_key_says_so(sample, key):
    tags = pd.read_csv(sample / TAGS, dtype=str, encoding="cp950").set_index("Img")
    said = key[key["path"] == TAGS]
    assert said[["defect", "detail"]].to_numpy().tolist() == [
        ["towns tell the crop", "each crop grows in 4 of 12 towns"]
    ]
    truth = key[key["defect"] == "wrong label"].set_index("path")["detail"]
    # Copies may be filed under another class, and a web page grows nowhere.
    copies = set(key.loc[(key["found by"] == "find_duplicates") | (key["defect"] == "text named .jpg"), "path"])
    paths = [path.relative_to(sample).as_posix() for path in sample.glob("*/*/*.*") if path.name in tags.index]
    crops = {path: truth.get(path, path.split("/")[1]) for path in paths if path not in copies}
    towns = pd.DataFrame([(crop, tags["TOWNNAME"][Path(path).name]) for path, crop in crops.items()])
    assert towns.groupby(0)[1].nunique().max() <= 4
    assert towns[1].nunique() == 12


def test_wrong_labels_lie_where_the_key_says(sample, key):
    wrong = key[key["defect"] == "wrong label"]
    assert 0.05 < len(wrong) / len(list(sample.rglob("*.*"))) < 0.1
    for row in wrong.itertuples():
        assert (sample / row.path).exists()
        assert Path(row.path).parent.name != row.detail
    group = {crop: number for number, crops in enumerate(samples.LOOK_ALIKES) for crop in crops}
    filed = wrong["path"].map(lambda path: Path(path).parent.name)
    alike = filed.map(group).eq(wrong["detail"].map(group))
    assert 0.3 < alike.mean() < 0.8


def test_every_class_keeps_photos_where_wrong_labels_took_some(catalog):
    counts = catalog[catalog["problem"] == ""].groupby(["split", "label"]).size()
    assert counts["train"].min() >= 2
    assert set(counts["val"].index) == set(CLASSES) - {NOT_IN_VAL}


def test_photos_that_lost_their_exif_number_lie_on_their_side_in_ten_classes_but_not_in_test(sample, catalog, key):
    lost = key[key["defect"] == "lies on its side, EXIF lost"]
    assert set(lost["path"].map(lambda path: Path(path).parts[1])) == set(samples.SIDEWAYS)
    assert not lost["path"].str.startswith("test/").any()
    notes = catalog.set_index("path")["note"]
    assert (notes[lost["path"]] == "").all()  # nothing says so


def test_clean_sample_leaks_nothing_and_a_class_missing_from_val_shifts_no_index(catalog):
    clean, left_out = drop_leaks(good_photos(catalog))
    assert set(left_out["path"]).isdisjoint(clean["path"])
    left = find_duplicates(clean)
    assert left.groupby("group")["split"].nunique().max() == 1
    assert left.groupby("group")["label"].nunique().max() == 1
    assert len(good_photos(catalog)) - len(clean) <= 40
    names = class_names(clean)
    loaders = make_loaders(clean, create_model("resnet18", weights=None))
    for part, loader in loaders.items():
        labels = clean.loc[clean["split"] == part, "label"].tolist()
        assert [names[target] for target in loader.dataset.targets] == labels


def test_what_scan_calls_good_opens_in_full_and_what_it_calls_bad_does_not_reach_training(sample, catalog):
    for path in good_photos(catalog)["path"]:
        open_photo(sample / path)
    loaders = make_loaders(catalog, create_model("resnet18", weights=None))
    used = {path for loader in loaders.values() for path in loader.dataset.paths}
    assert used == set(good_photos(catalog)["path"])


def test_a_folder_of_somebodys_photos_is_never_replaced(make_photos):
    root = make_photos({"apple": 1})
    with pytest.raises(FileExistsError, match="something else"):
        make_sample(root, photos_per_class=5)
    assert (root / "apple" / "0.jpg").exists()
    with pytest.raises(ValueError, match="below 5"):
        make_sample(root, photos_per_class=4)


def test_an_interrupted_drawing_leaves_no_sample(tmp_path, monkeypatch):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(samples, "_draw_class", _draw_nothing)
    monkeypatch.setattr(samples, "_plant_defects", fail)
    with pytest.raises(KeyboardInterrupt):
        make_sample(tmp_path / "sample", photos_per_class=5)
    assert [path.name for path in tmp_path.iterdir()] == ["sample.lock"]


class Host:
    """A server on localhost that hands out one file, whole or broken off, and counts the calls."""

    def __init__(self, file):
        self.calls, self.cut = 0, False
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                host.calls += 1
                data = file.read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if host.cut else data)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/archive.zip"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def pack(archive, files):
    with zipfile.ZipFile(archive, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """The grocery photos' repository in small, under the name "tiny", served on localhost."""
    photos = {}
    for number, crop in enumerate(("apple", "pear", "plum")):
        Image.new("RGB", (8, 6), (60 * number, 90, 30)).save(tmp_path / "one.jpg")
        photos[crop] = (tmp_path / "one.jpg").read_bytes()
    files = {f"Repo-fc80/dataset/train/Fruit/{crop}.jpg": data for crop, data in photos.items()}
    files |= {"Repo-fc80/LICENSE": b"MIT License", "Repo-fc80/dataset/train/other.jpg": b"not listed"}
    rows = ["path,label,split,fine_label,source_path,sha256"]
    for crop, data in photos.items():
        sha = hashlib.sha256(data).hexdigest()
        rows.append(f"{crop}/1.jpg,{crop},train,{crop},dataset/train/Fruit/{crop}.jpg,{sha}")
    (tmp_path / "tiny.csv").write_text("\n".join(rows) + "\n")
    pack(tmp_path / "served.zip", files)
    host = Host(tmp_path / "served.zip")
    host.files, host.archive = files, tmp_path / "served.zip"
    monkeypatch.setitem(fetching.SOURCES, "tiny", Source(host.url, tmp_path / "tiny.csv"))
    yield host
    host.server.shutdown()
    host.server.server_close()


def left_behind(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_fetch_takes_the_listed_files_once(host, tmp_path):
    root = fetch("tiny", tmp_path / "out" / "tiny")
    assert sorted(path.name for path in root.iterdir()) == ["LICENSE", "apple", "index.csv", "pear", "plum"]
    catalog = scan(root)
    assert catalog["label"].tolist() == ["apple", "pear", "plum"]
    assert fetch("tiny", root) == root
    assert host.calls == 1
    assert left_behind(tmp_path / "out") == ["tiny"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"Repo-fc80/dataset/train/Fruit/pear.jpg": b"one byte is wrong"}, "pear.jpg is not the file"),
        ({"Repo-fc80/../../evil.jpg": b"x"}, "leads out"),
        ({"/etc/evil.jpg": b"x"}, "leads out"),
        ({"C:/evil.jpg": b"x"}, "leads out"),
        ({"Repo-fc80/..\\evil.jpg": b"x"}, "leads out"),
        ({"Repo-fc80/LICENSE": None}, "lacks a file.*LICENSE"),
        ({"Repo-fc80/dataset/train/Fruit/plum.jpg": None}, "lacks a file.*plum"),
    ],
)
def test_an_archive_that_is_not_as_listed_leaves_nothing(host, tmp_path, change, said):
    files = {name: data for name, data in (host.files | change).items() if data is not None}
    pack(host.archive, files)
    with pytest.raises(ValueError, match=said):
        fetch("tiny", tmp_path / "out" / "tiny")
    assert left_behind(tmp_path / "out") == []
    pack(host.archive, host.files)
    assert len(scan(fetch("tiny", tmp_path / "out" / "tiny"))) == 3


def test_a_cut_connection_leaves_nothing_and_the_next_call_succeeds(host, tmp_path):
    host.cut = True
    with pytest.raises(OSError, match=r"could not be downloaded.*put it at .*tiny\.zip"):
        fetch("tiny", tmp_path / "out" / "tiny")
    assert left_behind(tmp_path / "out") == []
    host.cut = False
    assert len(scan(fetch("tiny", tmp_path / "out" / "tiny"))) == 3


def test_without_a_network_the_archive_can_be_brought_by_hand(host, tmp_path):
    host.server.shutdown()
    host.server.server_close()
    root = tmp_path / "out" / "tiny"
    with pytest.raises(OSError, match=r"put it at .*tiny\.zip"):
        fetch("tiny", root)
    brought = root.with_name("tiny.zip")
    brought.write_bytes(host.archive.read_bytes()[:200])
    with pytest.raises(ValueError, match="no whole ZIP"):
        fetch("tiny", root)
    brought.write_bytes(host.archive.read_bytes())
    assert len(scan(fetch("tiny", root))) == 3
    assert brought.exists()


def test_fetch_of_an_unknown_collection_names_the_known_ones():
    with pytest.raises(ValueError, match="grocery36"):
        fetch("grocery37")


def test_fetch_grocery36_from_an_archive_of_its_files(real_data, tmp_path, monkeypatch):
    with fetching.SOURCES["grocery36"].manifest.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    files = {f"GroceryStoreDataset-fc80/{row['source_path']}": (real_data / row["path"]).read_bytes() for row in rows}
    pack(tmp_path / "grocery36.zip", files | {"GroceryStoreDataset-fc80/LICENSE": b"MIT License"})
    catalog = scan(fetch("grocery36", tmp_path / "grocery36"))
    assert Counter(catalog["split"]) == {"train": 1325, "val": 189, "test": 1138}
    assert (catalog["problem"] == "").all()


def test_marker_names_what_the_drawing_depends_on(sample):
    assert set(json.loads((sample / samples.MARKER).read_text())) == {"version", "pillow", "seed", "photos_per_class"}
