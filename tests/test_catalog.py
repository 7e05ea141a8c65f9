import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cropkit import class_names, find_duplicates, make_loaders, scan, split
from cropkit.data import catalog as catalog_module
from cropkit.data import check_split, drop_leaks, good_photos, passed_over, pictures, prepare, relabel, splitting
from cropkit.models.surgery import create_model


def test_scan_reads_class_folders(make_photos):
    root = make_photos({"apple": 3, "pear": 2})
    (root / "pear" / "broken.jpg").write_text("no photo")
    (root / "pear" / "notes.txt").write_text("ripe")
    (root / ".ipynb_checkpoints").mkdir()
    catalog = scan(root)
    assert list(catalog["label"]) == ["apple"] * 3 + ["pear"] * 3
    assert list(catalog["path"]) == sorted(catalog["path"])
    assert catalog.loc[0, ["width", "height", "format"]].tolist() == [80, 60, "JPEG"]
    assert catalog.loc[catalog["problem"] != "", "path"].tolist() == ["pear/broken.jpg"]
    assert passed_over(root).set_index("path")["reason"].to_dict() == {
        "pear/notes.txt": "not a photo (.txt)",
        ".ipynb_checkpoints": "hidden folder",
    }
    assert len(good_photos(catalog)) == 5


def test_odd_but_good_photos_have_a_note(make_photos):
    root = make_photos({"apple": 2})
    Image.open(root / "apple" / "0.jpg").convert("L").save(root / "apple" / "grey.JPG")
    Image.open(root / "apple" / "0.jpg").save(root / "apple" / "really.jpg", "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "apple" / "0.jpg").save(root / "apple" / "turned.jpg", exif=exif)
    catalog = scan(root).set_index("path")
    assert catalog.loc["apple/0.jpg", "note"] == ""
    assert catalog.loc["apple/grey.JPG", "note"] == "colour mode L"
    assert catalog.loc["apple/really.jpg", "note"] == "a PNG named .jpg"
    assert catalog.loc["apple/turned.jpg", "note"] == "rotated (EXIF orientation 6)"
    assert catalog.loc["apple/turned.jpg", ["width", "height"]].tolist() == [60, 80]  # upright


@pytest.mark.parametrize("folders", [("train", "valid"), ("Train", "Test"), ("train", "unsorted")])
def test_folders_beside_train_that_are_no_parts_are_not_taken_for_classes(make_photos, folders):
    root = make_photos({f"{folder}/{crop}": 1 for folder in folders for crop in ("apple", "pear")})
    with pytest.raises(ValueError, match="Beside train only val and test"):
        scan(root)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp950"])
def test_metadata_is_joined_by_file_name_in_either_encoding(make_photos, tmp_path, encoding, capsys):
    root = make_photos({"apple": 2, "pear": 1})  # pear/0.jpg shares its name with apple/0.jpg
    table = tmp_path / "tags.csv"
    table.write_text("TARGET_FID,Img,label,town\n7,0.jpg,x,西螺鎮\n7,lost.jpg,x,NA\n", encoding=encoding)
    capsys.readouterr()
    catalog = scan(root, metadata=table)
    printed = capsys.readouterr().out
    assert catalog["town"].tolist() == ["西螺鎮", "", "西螺鎮"]
    assert catalog["label"].tolist() == ["apple", "apple", "pear"]  # not the table's
    assert f"{table} ({encoding.removesuffix('-sig')}): 1 rows without a photo: lost.jpg\n" in printed
    assert "1 photos without a row: apple/1.jpg\n" in printed


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"name,town\n0.jpg,x\n", "names no photos"),
        (b"Img,town\n../0.jpg,x\n", "line 2.*leads out"),
        (b"Img,town\n0.jpg,x\nC:\\0.jpg,x\n", "line 3.*leads out"),
        (b"Img,town\na/0.jpg,x\nb/0.jpg,x\n", "'0.jpg' occurs in two rows"),
        (b"Img,town\n0.jpg,\xff\xff\n", "neither UTF-8 nor cp950"),
        (b"", "must name the columns"),
        (b"Img,Img\n0.jpg,x\n", "must name the columns, each once"),
        (b'Img,town\n0.jpg,"x\ny"\n\n1.jpg,x,5\n', "line 5.*3 fields, but the header has 2"),
        (b'Img,town\n0.jpg,"x', "line 2.*no row"),
    ],
)
def test_malformed_metadata_is_refused(make_photos, tmp_path, table, said):
    (tmp_path / "tags.csv").write_bytes(table)
    with pytest.raises(ValueError, match=said):
        scan(make_photos({"apple": 1}), metadata=tmp_path / "tags.csv")


def test_an_interrupted_scan_leaves_no_thread_and_the_next_one_works(make_photos, monkeypatch):
    root = make_photos({"apple": 30, "pear": 30})

    def interrupted(root, name):
        if name.endswith("/7.jpg"):
            raise KeyboardInterrupt
        time.sleep(0.02)
        return inspect(root, name)

    inspect = catalog_module._inspect
    monkeypatch.setattr(catalog_module, "_inspect", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        scan(root)
    assert threading.active_count() == before
    monkeypatch.undo()
    assert len(scan(root)) == 60


def test_scan_is_the_same_for_any_number_of_workers(make_photos):
    root = make_photos({"apple": 5, "pear": 5})
    pd.testing.assert_frame_equal(scan(root, workers=1), scan(root, workers=4))


def test_scan_reads_split_folders(make_photos):
    root = make_photos({"train/apple": 2, "train/pear": 2, "test/apple": 1})
    catalog = scan(root)
    assert catalog.groupby(["split", "label"]).size().to_dict() == {
        ("test", "apple"): 1,
        ("train", "apple"): 2,
        ("train", "pear"): 2,
    }


def test_scan_reads_an_index_and_keeps_labels_as_text(make_photos):
    root = make_photos({"a": 3})
    (root / "index.csv").write_text("path,label,split\na/0.jpg,NA,train\na/1.jpg,007,val\n")
    catalog = scan(root)
    assert catalog["label"].tolist() == ["NA", "007"]
    assert catalog["split"].tolist() == ["train", "val"]
    assert ["a/2.jpg", "not in index.csv"] in passed_over(root).to_numpy().tolist()


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("path,name\na/0.jpg,x\n", "no column"),
        ("path,label\n../secret.jpg,x\n", "line 2.*leads out"),
        ("path,label\na/0.jpg,x\n/etc/passwd,x\n", "line 3.*leads out"),
        ("path,label,split\na/0.jpg,x,holdout\n", "line 2.*holdout"),
        ("path,label\na/0.jpg,\n", "line 2.*no label"),
        ("path,label\n\na/0.jpg\n", "line 3.*no label"),
        ("path,label\na/0.jpg,x\n./a//0.jpg,y\n", "line 3.*twice"),
        ("path,label\na/0.jpg,x,train\n", "line 2.*3 fields"),
        ("path,label\na/0.jpg,x\na/0.jpg,y\n", "line 3.*twice"),
        ("path,label\nC:\\secret.jpg,x\n", "line 2.*leads out"),
        ("path,label,split\na/0.jpg,x,train\na/1.jpg,x,\n", "line 3.*no split"),
    ],
)
def test_malformed_index_is_refused_with_its_line(make_photos, index, said):
    root = make_photos({"a": 1})
    (root / "index.csv").write_text(index)
    with pytest.raises(ValueError, match=said):
        scan(root)


def test_row_of_the_index_without_a_photo_is_reported(make_photos):
    root = make_photos({"a": 1})
    (root / "index.csv").write_text("path,label\na/0.jpg,x\na/lost.jpg,y\n")
    assert "No such file" in scan(root).set_index("path").loc["a/lost.jpg", "problem"]


def test_missing_empty_and_single_class_folders_are_refused_in_one_sentence(make_photos, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        scan(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no photos"):
        scan(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"1 class \(apple\)"):
        class_names(scan(make_photos({"apple": 2})))


def test_copies_and_resized_photos_are_duplicates(make_photos):
    root = make_photos({"apple": 6, "pear": 6})
    shutil.copyfile(root / "apple" / "0.jpg", root / "pear" / "copy.jpg")
    Image.open(root / "apple" / "1.jpg").resize((160, 120)).save(root / "apple" / "larger.png")
    duplicates = find_duplicates(scan(root))
    groups = {frozenset(rows["path"]) for _, rows in duplicates.groupby("group")}
    assert groups == {frozenset({"apple/0.jpg", "pear/copy.jpg"}), frozenset({"apple/1.jpg", "apple/larger.png"})}
    assert duplicates.groupby("group")["exact"].all().sum() == 1


def test_photos_without_a_margin_are_duplicates_and_other_photos_are_not(make_photos):
    root = make_photos({"apple": 20, "pear": 20})
    for number in range(20):
        photo = Image.open(root / "apple" / f"{number}.jpg").resize((400, 300))
        photo.crop((8, 6, 392, 294)).save(root / "pear" / f"cut{number}.jpg")
    duplicates = find_duplicates(scan(root))
    pairs = {frozenset(rows["path"]) for _, rows in duplicates.groupby("group")}
    assert pairs == {frozenset({f"apple/{number}.jpg", f"pear/cut{number}.jpg"}) for number in range(20)}


def test_near_hashes_among_100_000_are_found():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (100_000, 2))
    hashes[1] = hashes[0] ^ 0b1011  # three bits
    hashes[3] = hashes[2] ^ (2**20 - 1)  # twenty
    pairs = pictures._near_pairs(pd.Index([f"{a:016x}{b:016x}" for a, b in hashes]))
    found = np.transpose(pairs).tolist()
    assert [0, 1] in found and [2, 3] not in found and len(found) < 100


def test_a_picture_that_is_there_a_thousand_times_takes_no_million_comparisons(make_photos, monkeypatch):
    root = make_photos({"apple": 1})
    data = (root / "apple" / "0.jpg").read_bytes()
    for number in range(1, 1000):
        (root / "apple" / f"{number}.jpg").write_bytes(data + bytes([number % 256, number // 256]))  # equal pixels
    catalog, calls, same = scan(root), [], pictures.same_picture
    monkeypatch.setattr(pictures, "same_picture", lambda one, other: calls.append(1) or same(one, other))
    assert find_duplicates(catalog).groupby("group").size().tolist() == [1000]
    assert len(calls) < 1100


def fruit(colour, place, size, seed):
    """A round fruit with its shading and shadow on white, as a shop photographs it."""
    y, x = np.mgrid[0:240, 0:320]
    rng = np.random.default_rng(seed)
    inside = np.hypot(x - place[0], y - place[1]) / size
    light = np.clip(1.15 - 0.5 * np.hypot(x - place[0] + size / 3, y - place[1] + size / 3) / size, 0.2, 1.2)
    pixels = (
        np.full((240, 320, 3), 250.0)
        - 60 * np.exp(-((inside - 1) ** 2) * 8)[..., None] * (y > place[1])[..., None]  # shadow
    )
    pixels = np.where((inside < 1)[..., None], np.array(colour) * light[..., None], pixels)
    return Image.fromarray(np.clip(pixels + rng.normal(0, 2, pixels.shape), 0, 255).astype(np.uint8))


def test_studio_photos_of_other_objects_are_no_duplicates_but_copies_of_one_are(tmp_path):
    rng = np.random.default_rng(0)
    kinds = {"tomato": (200, 40, 30), "lime": (90, 160, 40), "plum": (90, 40, 110)}
    for name, colour in kinds.items():
        (tmp_path / name).mkdir()
        for number in range(10):
            place, size = rng.normal((160, 120), 14), rng.normal(60, 7)
            fruit(colour + rng.normal(0, 12, 3), place, size, number).save(tmp_path / name / f"{number}.jpg")
    assert find_duplicates(scan(tmp_path)).empty
    one = Image.open(tmp_path / "lime" / "3.jpg")
    one.resize((200, 150)).save(tmp_path / "lime" / "small.jpg", quality=70)
    one.crop((6, 5, 314, 235)).point(lambda value: value * 1.05).save(tmp_path / "plum" / "brighter.jpg")
    assert find_duplicates(scan(tmp_path))["path"].tolist() == ["lime/3.jpg", "lime/small.jpg", "plum/brighter.jpg"]


def test_only_direct_neighbours_are_named_and_a_chain_is_never_divided(make_photos, monkeypatch):
    catalog = scan(make_photos({"apple": 6, "pear": 6}))
    chain = [(0, 1), (1, 2), (2, 3)]  # 0 is not like 2, nor 1 like 3
    monkeypatch.setattr(splitting, "pictures_of", lambda photos: (np.arange(len(photos)), chain))
    found = find_duplicates(catalog)
    assert found["path"].tolist() == [f"apple/{number}.jpg" for number in range(3)]  # 3 is only like 2
    divided = split(catalog)
    assert divided.loc[:3, "split"].nunique() == 1
    given = catalog.assign(split=["train", "train", "train", "test", *["train"] * 8])
    kept, left_out = drop_leaks(given)
    assert left_out["path"].tolist() == ["apple/2.jpg"] and len(kept) == 11


def test_split_does_not_slow_down_with_skipped_files(make_photos):
    root = make_photos({"apple": 20, "pear": 20})
    for number in range(3000):
        (root / "apple" / f"{number}.txt").write_text("")
    catalog = scan(root)
    assert not catalog.attrs  # pandas would copy them at every step
    assert set(split(catalog)["split"]) == {"train", "val", "test"}


def test_prepare_names_what_it_leaves_out_and_why(make_photos):
    root = make_photos({f"{part}/{crop}": 4 for part in ("train", "val", "test") for crop in ("apple", "pear")})
    shutil.copyfile(root / "test" / "apple" / "0.jpg", root / "train" / "apple" / "copy.jpg")
    (root / "val" / "pear" / "broken.jpg").write_text("no photo")
    catalog, left_out = prepare(root)
    reasons = left_out.set_index("path")["reason"].to_dict()
    assert reasons == {
        "train/apple/copy.jpg": "same picture as test/apple/0.jpg, which is in test",
        "val/pear/broken.jpg": "is text",
    }
    assert len(catalog) + len(left_out) == len(scan(root))


def test_drop_leaks_keeps_test_then_val_and_drops_pictures_of_two_classes(make_photos):
    root = make_photos({f"{part}/{crop}": 3 for part in ("train", "val", "test") for crop in ("apple", "pear")})
    for source, copy in (
        ("train/apple/0.jpg", "test/apple/copy.jpg"),  # the copy in test stays
        ("train/apple/1.jpg", "val/apple/copy.jpg"),
        ("val/pear/0.jpg", "test/pear/copy.jpg"),
        ("train/pear/1.jpg", "train/pear/copy.jpg"),  # within a part both may stay
        ("test/apple/2.jpg", "train/pear/other.jpg"),  # two classes: nobody knows
    ):
        shutil.copyfile(root / source, root / copy)
    catalog = scan(root)
    kept, left_out = drop_leaks(catalog)
    gone = set(catalog["path"]) - set(kept["path"])
    assert gone == set(left_out["path"])
    assert gone == {
        "train/apple/0.jpg",
        "train/apple/1.jpg",
        "val/pear/0.jpg",
        "test/apple/2.jpg",
        "train/pear/other.jpg",
    }


def test_split_is_stratified_and_repeatable(make_photos):
    catalog = scan(make_photos({"apple": 20, "pear": 10, "plum": 1}))
    divided = split(catalog, seed=3)
    sizes = divided.groupby(["label", "split"]).size().to_dict()
    assert sizes == {
        ("apple", "train"): 12,
        ("apple", "val"): 4,
        ("apple", "test"): 4,
        ("pear", "train"): 6,
        ("pear", "val"): 2,
        ("pear", "test"): 2,
        ("plum", "train"): 1,
    }
    pd.testing.assert_frame_equal(divided, split(catalog, seed=3))
    assert (divided["split"] != split(catalog, seed=4)["split"]).any()


def test_split_keeps_copies_in_one_part(make_photos):
    root = make_photos({"apple": 10, "pear": 10})
    for number in range(10):
        shutil.copyfile(root / "apple" / f"{number}.jpg", root / "pear" / f"copy{number}.jpg")
    divided = split(scan(root))
    assert divided.groupby("sha256")["split"].nunique().max() == 1


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.2, 0.2), (0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_shares_are_refused(make_photos, fractions):
    with pytest.raises(ValueError, match="three shares"):
        split(scan(make_photos({"apple": 3, "pear": 3})), fractions=fractions)


def test_a_class_whose_only_photo_is_a_copy_of_another_class_has_it_in_train(make_photos):
    root = make_photos({"apple": 5, "pear": 1})
    (root / "apple" / "0.jpg").replace(root / "pear" / "0.jpg")
    shutil.copy(root / "pear" / "0.jpg", root / "apple" / "0.jpg")
    for seed in range(10):
        check_split(split(scan(root), seed=seed))


def test_class_without_training_photos_is_named(make_photos):
    root = make_photos({"train/apple": 2, "train/pear": 2, "test/plum": 3})
    with pytest.raises(ValueError, match=r"'plum' has no training photos \(3 in test\)"):
        check_split(scan(root))


def test_grocery36_is_sound_and_a_class_missing_from_val_shifts_no_index(real_data):
    catalog = scan(real_data)
    assert len(catalog) == len(good_photos(catalog)) == 2652
    assert catalog["split"].value_counts().to_dict() == {"train": 1325, "test": 1138, "val": 189}
    names = class_names(catalog)
    assert len(names) == 36
    lacking = set(names) - set(catalog.loc[catalog["split"] == "val", "label"])
    assert lacking == {"garlic", "nectarine", "papaya", "plum"}
    loaders = make_loaders(catalog, create_model("resnet18", weights=None))
    for part, loader in loaders.items():
        labels = catalog.loc[catalog["split"] == part, "label"].tolist()
        assert [names[target] for target in loader.dataset.targets] == labels


def test_links_in_a_circle_and_odd_files_are_reported(make_photos):
    root = make_photos({"apple": 2, "pear": 1})
    (root / "apple" / "circle.jpg").symlink_to(root / "apple" / "circle.jpg")
    os.mkfifo(root / "apple" / "pipe.jpg")
    catalog = scan(root)
    problems = catalog.set_index("path")["problem"]
    assert "levels of symbolic links" in problems["apple/circle.jpg"]
    assert problems["apple/pipe.jpg"] == "is no regular file"
    assert len(good_photos(catalog)) == 3


def test_links_out_of_the_folder_are_not_followed(make_photos, tmp_path):
    root, secret = make_photos({"apple": 1}), make_photos({"apple": 1}, tmp_path / "elsewhere")
    (root / "apple" / "link.jpg").symlink_to(secret / "apple" / "0.jpg")
    (root / "pear").symlink_to(secret / "apple")
    (root / "index.csv").write_text("path,label\napple/0.jpg,apple\napple/link.jpg,apple\npear/0.jpg,pear\n")
    problems = scan(root).set_index("path")["problem"]
    assert problems["apple/0.jpg"] == ""
    assert all("not followed" in problems[name] for name in ("apple/link.jpg", "pear/0.jpg"))


def test_metadata_with_paths_is_joined_by_path(make_photos, tmp_path):
    (tmp_path / "tags.csv").write_text("path,town\napple/0.jpg,x\npear/0.jpg,y\n")
    catalog = scan(make_photos({"apple": 1, "pear": 1}), metadata=tmp_path / "tags.csv")
    assert catalog["town"].tolist() == ["x", "y"]


def test_the_encoding_of_an_index_is_said(make_photos, capsys):
    root = make_photos({"a": 1})
    (root / "index.csv").write_bytes("path,label\na/0.jpg,鳳梨\n".encode("cp950"))
    assert scan(root)["label"].tolist() == ["鳳梨"]
    assert f"{root / 'index.csv'}: is not UTF-8, so it is read as cp950" in capsys.readouterr().out


def test_flat_photos_are_duplicates_only_if_their_bytes_are_equal(make_photos):
    root = make_photos({"apple": 1})
    for name, colour in (("black", 0), ("grey", 128), ("copy", 128)):
        Image.new("RGB", (80, 60), (colour,) * 3).save(root / "apple" / f"{name}.png")
    assert find_duplicates(scan(root))["path"].tolist() == ["apple/copy.png", "apple/grey.png"]


def test_val_and_test_without_train_are_not_classes(make_photos):
    catalog = scan(make_photos({"val/apple": 1, "val/pear": 1, "test/apple": 1}))
    assert set(catalog["label"]) == {"apple", "pear"}
    with pytest.raises(ValueError, match="no training photos"):
        check_split(catalog)


def test_rows_with_a_field_too_many_shift_nothing(make_photos, tmp_path):
    (tmp_path / "tags.csv").write_text("Img,town\n0.jpg,5,\n")
    assert scan(make_photos({"apple": 1}), metadata=tmp_path / "tags.csv")["town"].tolist() == ["5"]


def test_no_good_photo_at_all_is_one_sentence(make_photos):
    root = make_photos({"apple": 1})
    (root / "apple" / "0.jpg").write_text("ripe")
    with pytest.raises(ValueError, match="has 0 classes"):
        class_names(drop_leaks(scan(root))[0])


def test_split_takes_a_catalog_put_together_from_two(make_photos):
    one = scan(make_photos({"apple": 10, "pear": 10}))
    both = pd.concat([one, scan(make_photos({"plum": 10}, Path(one["root"].iloc[0] + "2")))])  # equal row numbers
    assert set(split(both)["split"]) == {"train", "val", "test"}


def test_relabel_merges_classes_and_leaves_the_catalog_as_it_was(make_photos):
    catalog = scan(make_photos({"apple": 2, "pear": 2, "plum": 1}))
    merged = relabel(catalog, {"pear": "apple", "plum": "stone fruit"})
    assert merged["label"].tolist() == ["apple"] * 4 + ["stone fruit"]
    assert catalog["label"].tolist() == ["apple", "apple", "pear", "pear", "plum"]


def test_relabel_refuses_a_name_that_would_rename_nothing(make_photos):
    catalog = scan(make_photos({"apple": 1, "pear": 1}))
    with pytest.raises(ValueError, match=r"'Pear' is no class here.*Did you mean 'pear'"):
        relabel(catalog, {"Pear": "apple"})
    with pytest.raises(ValueError, match=r"'mango' is no class here.*There are apple, pear"):
        relabel(catalog, {"mango": "apple"})


def in_towns(make_photos, towns=6):
    """A catalog whose photos come from so many towns, a few of them from nowhere."""
    catalog = scan(make_photos({"apple": 40, "pear": 40}))
    rng = np.random.default_rng(1)
    return catalog.assign(town=[*(f"town {n}" for n in rng.integers(0, towns, 76)), "", "", "", ""])


def test_split_by_groups_keeps_a_town_in_one_part_and_the_shares_nearly(make_photos):
    catalog = in_towns(make_photos, towns=12)
    divided = split(catalog, groups="town", seed=1)
    assert divided[divided["town"] != ""].groupby("town")["split"].nunique().max() == 1
    counts = divided["split"].value_counts()
    assert set(counts.index) == {"train", "val", "test"}
    assert 40 <= counts["train"] <= 56 and counts[["val", "test"]].min() >= 9
    pd.testing.assert_frame_equal(divided, split(catalog, groups="town", seed=1))
    assert split(catalog, seed=1).groupby("town")["split"].nunique().max() > 1  # not without being asked


def test_split_by_a_column_that_is_not_there_is_refused(make_photos):
    with pytest.raises(ValueError, match=r"no column 'TOWN' to keep together"):
        split(scan(make_photos({"apple": 3, "pear": 3})), groups="TOWN")
