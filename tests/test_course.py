import re
from pathlib import Path

import pandas as pd
import pytest

from cropkit import course, scan
from cropkit.data import good_photos


@pytest.fixture
def data(monkeypatch):
    """A function that makes a folder the course's data, in full mode."""

    def use(root):
        monkeypatch.setattr(course.settings, "DATA", str(root))
        monkeypatch.setattr(course.settings, "FAST", False)

    return use


def test_a_given_split_is_kept(make_photos, data):
    data(make_photos({f"{part}/{crop}": 3 for part in ("train", "val", "test") for crop in ("apple", "pear")}))
    assert course.load_catalog()["split"].value_counts().to_dict() == {"train": 6, "val": 6, "test": 6}


def test_missing_parts_are_taken_out_of_train(make_photos, data):
    data(make_photos({"train/apple": 10, "train/pear": 10, "test/apple": 2, "test/pear": 2}))
    catalog = course.load_catalog()
    assert catalog["split"].value_counts().to_dict() == {"train": 16, "val": 4, "test": 4}
    assert catalog.loc[catalog["split"] == "test", "path"].str.startswith("test/").all()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"apple": 9}, "1 class"),
        ({"apple": 1, "pear": 1}, "too few photos for val and test"),
        ({"train/apple": 5, "train/pear": 5, "test/plum": 5}, "'plum' has no training photos"),
    ],
)
def test_data_that_cannot_serve_is_refused_in_one_sentence(make_photos, data, counts, said):
    data(make_photos(counts))
    with pytest.raises(ValueError, match=said):
        course.load_catalog()


def test_a_folder_that_is_not_there_is_named(data, tmp_path):
    data(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        course.load_catalog()


def test_photos_without_a_split_get_all_parts(make_photos, data):
    root = make_photos({"apple": 10, "pear": 10})
    data(root)
    catalog = course.load_catalog()
    assert set(catalog["split"]) == {"train", "val", "test"}
    assert isinstance(catalog, pd.DataFrame) and len(catalog) == len(good_photos(scan(root)))


def test_only_rows_of_the_table_can_be_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(course.records, "OUT", tmp_path)
    with pytest.raises(ValueError, match="is no row of the closing table"):
        course.record("05_feature_extraction", "magic", 1, 0.5, 1.0)
    course.record(*course.records.ROWS[0], 1, 0.5, 1.0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_piece_for_the_page_of_results_has_a_known_name(tmp_path, monkeypatch):
    monkeypatch.setattr(course.records, "OUT", tmp_path)
    with pytest.raises(ValueError, match="known are comparison, matrix"):
        course.keep_page("elsewhere", "")
    course.keep_page("matrix", "<table>the matrix</table>")
    assert (tmp_path / "matrix.html").read_text(encoding="utf-8") == "<table>the matrix</table>"


def test_other_photos_get_another_folder_for_runs(make_photos):
    catalog = scan(make_photos({"apple": 3, "pear": 3})).assign(split="train")
    folder = course.runs_folder("06", catalog)
    assert course.runs_folder("06", catalog.sample(frac=1, random_state=0)) == folder
    assert len({folder, course.runs_folder("06", catalog.head(4)), course.runs_folder("07", catalog)}) == 3
    assert course.runs_folder("06", catalog.assign(split="val")) != folder


def test_some_photos_are_few_and_of_classes_that_have_all_parts(make_photos):
    parts = {
        "train/apple": 9,
        "train/pear": 9,
        "val/pear": 9,
        "test/pear": 9,
        "train/plum": 2,
        "val/plum": 2,
        "test/plum": 2,
    }
    catalog = scan(make_photos(parts))
    some = course.some_photos(catalog, classes=2, photos=4)
    assert some.groupby(["label", "split"]).size().to_dict() == {
        ("pear", "test"): 4, ("pear", "train"): 4, ("pear", "val"): 4,
        ("plum", "test"): 2, ("plum", "train"): 2, ("plum", "val"): 2,
    }  # fmt: skip
    assert some.equals(course.some_photos(catalog, classes=2, photos=4))


def test_the_name_grocery36_fetches_it_once(data, tmp_path, monkeypatch):
    fetched = []
    monkeypatch.setattr(course.settings, "fetch", lambda name: fetched.append(name) or tmp_path)
    data("grocery36")
    assert course.data_folder() == tmp_path and fetched == ["grocery36"]


def test_the_recorded_curves_are_whole_and_say_where_they_come_from():
    file = Path(course.__file__).parent / "diary.csv"
    assert re.match(r"# 20\d\d-\d\d-\d\d, .* cores, .*: python benchmarks/diary\.py$", file.read_text().splitlines()[0])
    curves = pd.read_csv(file, comment="#")
    epochs = curves.groupby("recipe")["epoch"].agg(lambda epoch: epoch.tolist())
    assert epochs["fine-tuning, diary"] == epochs["feature extraction, diary"] == list(range(26))
    assert epochs["fine-tuning, head first"] == list(range(7))
    rates = curves[curves["recipe"] == "fine-tuning, diary"]["learning_rate"][1:]
    assert rates.tolist() == [0.001] * 7 + [0.0001] * 7 + [1e-5] * 7 + [1e-6] * 4
