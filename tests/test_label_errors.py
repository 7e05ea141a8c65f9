"""Label errors, photos that resemble each other, and judging labels one by one."""

import base64
import io
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cropkit import create_model, open_photo, scan
from cropkit.data import read_corrections
from cropkit.data.photos import contain
from cropkit.evaluation import find_label_errors, label_errors, nearest_photos, review

COLOURS = {"apple": (200, 30, 30), "kiwi": (120, 90, 40), "pear": (150, 200, 40), "plum": (80, 20, 90)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Crops of one colour each; two photos lie in another crop's folder."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for crop, colour in COLOURS.items():
        (root / "train" / crop).mkdir(parents=True)
        for number in range(15):
            noise = rng.integers(-40, 40, (6, 8, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).resize((80, 60)).save(root / "train" / crop / f"{number}.jpg")
    shutil.move(root / "train/apple/3.jpg", root / "train/pear/wrong.jpg")
    shutil.move(root / "train/plum/5.jpg", root / "train/kiwi/wrong.jpg")
    return root


@pytest.fixture(scope="module")
def catalog(root):
    return scan(root)


@pytest.fixture(scope="module")
def model():
    return create_model("efficientnet_lite0", resolution=64)


def test_wrong_labels_are_the_first_and_the_right_ones_are_suggested(catalog, model):
    table = find_label_errors(catalog, model=model)
    assert set(table["path"]) == set(catalog["path"])
    assert set(table["path"].head(2)) == {"train/pear/wrong.jpg", "train/kiwi/wrong.jpg"}
    suggested = table.set_index("path")["suggested"]
    assert suggested["train/pear/wrong.jpg"] == "apple" and suggested["train/kiwi/wrong.jpg"] == "plum"
    assert table["score"].is_monotonic_decreasing
    assert (table["suggested"] != table["label"]).all()


def test_no_photo_is_judged_by_a_head_that_learned_from_it_or_from_its_copy(catalog, model, monkeypatch):
    doubled = catalog.copy()
    twin = catalog.iloc[0].copy()
    folder = f"{twin['root']}/train/apple"
    shutil.copyfile(f"{twin['root']}/{twin['path']}", f"{folder}/twin.jpg")
    doubled.loc[len(doubled)] = twin.to_dict() | {"path": "train/apple/twin.jpg"}
    seen = []
    from sklearn.linear_model import LogisticRegression

    fit, judge = LogisticRegression.fit, LogisticRegression.predict_proba
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, x, y: (setattr(self, "rows", {*map(bytes, x)}), fit(self, x, y))[1]
    )

    def predict_proba(self, x):
        seen.extend(bytes(row) in self.rows for row in x)
        return judge(self, x)

    monkeypatch.setattr(LogisticRegression, "predict_proba", predict_proba)
    find_label_errors(doubled, model=model)
    assert len(seen) == label_errors.ROUNDS * label_errors.DIVISIONS * len(doubled) and not any(seen)


def test_what_cannot_be_judged_is_named(catalog, model):
    one = catalog[(catalog["label"] != "plum") | catalog["path"].str.endswith("/0.jpg")]
    with pytest.raises(ValueError, match="class 'plum' has a single picture"):
        find_label_errors(one, model=model)
    with pytest.raises(ValueError, match="folds is 1"):
        find_label_errors(catalog, model=model, folds=1)


def test_the_nearest_photos_are_training_photos_of_that_colour_and_never_the_photo_itself(catalog, model, root):
    some = catalog.copy()
    val = some["path"].str.endswith(("/1.jpg", "/2.jpg"))
    some.loc[val, "split"] = "val"
    asked = ["train/plum/1.jpg", "train/plum/0.jpg"]  # one of val, one of train
    table = nearest_photos(some, asked, model=model, photos=4)
    assert table["path"].tolist() == [path for path in asked for _ in range(4)]
    assert set(table["nearest"]).isdisjoint(some.loc[val, "path"])
    assert (table["path"] != table["nearest"]).all()
    assert (table["label"] == "plum").mean() > 0.7
    for _, rows in table.groupby("path"):
        assert rows["similarity"].is_monotonic_decreasing
    with pytest.raises(ValueError, match="nothing is no good photo"):
        nearest_photos(some, ["nothing"], model=model)


@pytest.fixture
def suspects(catalog):
    chosen = catalog[catalog["path"].str.endswith("wrong.jpg")]
    return pd.concat([chosen, catalog.head(2)]).assign(suggested=["plum", "apple", "kiwi", "kiwi"])


def parts(panel):
    head, photo, buttons, answer, told, likes = panel.children
    return head, photo, {button.description: button for button in buttons.children}, answer, told, likes


def test_every_decision_is_a_line_before_the_next_photo_appears(suspects, tmp_path):
    file = tmp_path / "corrections.csv"
    panel = review(suspects, file)
    head, photo, buttons, answer, told, _ = parts(panel)
    shown = re.search(r"base64,([^\"]*)", photo.value)[1]
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))), float)
    first = suspects.iloc[0]
    true = np.asarray(contain(open_photo(f"{first['root']}/{first['path']}"), 480), float)
    assert seen.shape == true.shape and np.abs(seen - true).mean() < 8
    buttons["it is plum"].click()
    assert read_corrections(file)[["path", "to"]].to_numpy().tolist() == [["train/kiwi/wrong.jpg", "plum"]]
    assert "1 of 4 judged" in head.value and "train/pear/wrong.jpg" in photo.value
    buttons["exclude"].click()
    assert read_corrections(file)["to"].tolist() == ["plum", "exclude"]
    buttons["undo"].click()
    assert read_corrections(file)["to"].tolist() == ["plum"]
    assert "1 of 4 judged" in parts(review(suspects, file))[0].value  # in another kernel it is not judged either
    assert "train/pear/wrong.jpg" in photo.value  # shown again
    answer.value = "no such class"
    assert "is no class here" in told.value and len(read_corrections(file)) == 1
    answer.value = "apple"
    assert read_corrections(file)["to"].tolist() == ["plum", "apple"]
    answer.value = "r"
    assert len(read_corrections(file)) == 2 and "3 of 4 judged" in head.value
    # Another kernel, another day: the same call goes on.
    again = parts(review(suspects, file))
    assert "3 of 4 judged" in again[0].value and suspects.iloc[3]["path"] in again[1].value
    again[2]["right"].click()
    assert "4 of 4 judged" in again[0].value and again[1].value == ""
    assert all(button.disabled for name, button in again[2].items() if name != "undo")


def test_the_nearest_photos_stand_below(suspects, tmp_path):
    near = pd.DataFrame({"path": "train/kiwi/wrong.jpg", "nearest": ["train/plum/0.jpg"] * 3, "label": "plum"})
    near["root"] = suspects["root"].iloc[0]
    *_, likes = parts(review(suspects, tmp_path / "corrections.csv", nearest=near))
    assert likes.value.count("<img") == 3


def test_what_cannot_be_reviewed_says_so(suspects, tmp_path):
    with pytest.raises(ValueError, match="has no column sha256"):
        review(suspects.drop(columns="sha256"), tmp_path / "corrections.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        review(suspects, tmp_path / "file" / "corrections.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no column path, sha256"):
        review(suspects, tmp_path / "other.csv")
