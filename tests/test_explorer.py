import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics

from cropkit import explore, good_photos, open_photo, scan
from cropkit.explorer import THUMBNAIL
from cropkit.interpret import similarity_order
from cropkit.photos import contain

SUMMARY = re.compile(r'<summary [^>]*aria-label="([^"]*)">([^<]*)</summary>(.*?)</details>')
PHOTO = re.compile(r'<img src="data:image/jpeg;base64,([^"]*)" .*?loss ([\d.]+)</div><div title="([^"]*)"')


def made_up(root, paths, targets, seed=0):
    """Predictions by chance; every class that is a target may be predicted."""
    rng = np.random.default_rng(seed)
    names = sorted(set(targets))
    logits = rng.normal(size=(len(paths), len(names)))
    logits[np.arange(len(paths)), [names.index(target) for target in targets]] += 1
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log([row[names.index(target)] for row, target in zip(p, targets, strict=True)])
    predictions = pd.DataFrame({"path": paths, "target": targets, "predicted": [names[k] for k in p.argmax(axis=1)]})
    predictions = predictions.assign(probability=p.max(axis=1), loss=loss)
    predictions = pd.concat([predictions, pd.DataFrame(p, columns=[f"p_{name}" for name in names])], axis=1)
    predictions.attrs["root"] = str(root)
    return predictions


@pytest.fixture
def predictions(make_photos):
    root = make_photos({"apple": 30, "pear": 30, "plum": 30})
    catalog = scan(root)
    return made_up(root, catalog["path"], catalog["label"])


def opened(page):
    """What the cells of a page hold: {(true, predicted): (number, [(picture, loss, path)])}."""
    cells = {}
    for said, number, rest in SUMMARY.findall(page):
        true, predicted = re.fullmatch(r"\d+ photos? of (.*) taken for (.*)", said).groups()
        photos = [
            (Image.open(io.BytesIO(base64.b64decode(data))), float(loss), path)
            for data, loss, path in PHOTO.findall(rest)
        ]
        cells[true, predicted] = (number, photos)
    return cells


def check_against_the_photos(page, predictions, per_cell=12):
    """The counts are scikit-learn's, and every thumbnail is the photo that it claims to be, by its pixels."""
    cells = opened(page)
    names = sorted(set(predictions["target"]))
    expected = metrics.confusion_matrix(predictions["target"], predictions["predicted"], labels=names)
    found = [[int(cells.get((true, said), ("0", []))[0]) for said in names] for true in names]
    assert found == expected.tolist()
    rows = predictions.set_index("path")
    for (true, predicted), (number, photos) in cells.items():
        assert len(photos) == min(int(number), per_cell)
        here = (rows["target"] == true) & (rows["predicted"] == predicted)
        losses = rows.loc[here, "loss"].nlargest(per_cell)
        assert [path for *_, path in photos] == losses.index.tolist()  # the worst, in their order
        for picture, loss, path in photos:
            assert loss == pytest.approx(rows.at[path, "loss"], abs=0.006)
            photo = contain(open_photo(f"{predictions.attrs['root']}/{path}", min_side=THUMBNAIL), THUMBNAIL)
            assert picture.size == photo.size
            assert np.abs(np.asarray(picture, float) - np.asarray(photo, float)).mean() < 12  # but for JPEG's losses


def test_every_cell_counts_right_and_shows_its_own_photos(predictions):
    check_against_the_photos(explore(predictions).html, predictions)


def test_at_most_per_cell_photos_are_shown_and_all_are_counted(predictions):
    page = explore(predictions, per_cell=2).html
    check_against_the_photos(page, predictions, per_cell=2)
    assert re.search(r"<b>\d+ photos of apple taken for apple</b>, 2 of them shown", page)


def test_real_photos_are_those_that_the_cells_claim(real_data):
    catalog = good_photos(scan(real_data))
    test = catalog[catalog["split"] == "test"]
    predictions = made_up(real_data, test["path"].tolist(), test["label"].tolist())
    check_against_the_photos(explore(predictions).html, predictions)


def test_the_page_needs_nothing_that_jupyterlab_takes_away(predictions):
    page = explore(predictions).html
    assert not re.search(r"<(script|style|link|iframe)|\sid=|\son\w+=|https?:|url\(", page)


def test_names_are_shown_as_they_are_and_run_nothing(make_photos):
    root = make_photos({"<i>a & b": 3, '"quoted"': 3})
    catalog = scan(root)
    page = explore(made_up(root, catalog["path"], catalog["label"])).html
    assert "<i>" not in page and "&lt;i&gt;a &amp; b" in page and "&quot;quoted&quot;" in page


def test_a_photo_that_is_gone_is_said_in_its_place(predictions, tmp_path):
    (tmp_path / "photos" / predictions["path"][0]).unlink()
    page = explore(predictions, per_cell=99).html
    assert page.count("<img") == len(predictions) - 1
    assert "No such file" in page


def test_order_by_likeness_or_by_name(predictions):
    columns = ["p_apple", "p_pear", "p_plum"]
    predictions[columns] = 0.1
    predictions.loc[predictions["target"] != "pear", ["p_apple", "p_plum"]] = 0.4  # these two are alike
    assert similarity_order(predictions) != ["apple", "pear", "plum"]
    pages = [explore(predictions, order=order).html for order in ("name", "similarity")]
    heads = [re.findall(r'scope="col".*?<div[^>]*>(\w+)', page) for page in pages]
    assert heads == [["apple", "pear", "plum"], similarity_order(predictions)]
    with pytest.raises(ValueError, match="order is 'size'"):
        explore(predictions, order="size")


def test_some_classes_bring_those_that_they_are_mixed_up_with(predictions):
    cells = opened(explore(predictions, classes=["apple"]).html)
    assert cells and all("apple" in pair for pair in cells)
    all_cells = opened(explore(predictions).html)
    assert {pair: number for pair, (number, _) in cells.items()} == {
        pair: number for pair, (number, _) in all_cells.items() if "apple" in pair
    }
    with pytest.raises(ValueError, match=r"'aple' is no class here\. Did you mean 'apple'"):
        explore(predictions, classes=["aple"])


def test_it_says_what_it_lacks(predictions):
    root = predictions.attrs.pop("root")
    with pytest.raises(ValueError, match="Give root="):
        explore(predictions)
    assert explore(predictions, root=root).html.count("<img")
    with pytest.raises(ValueError, match="no predictions"):
        explore(predictions.head(0), root=root)


def test_live_controls_change_the_table(predictions):
    pytest.importorskip("ipywidgets")
    widget = explore(predictions, live=True)
    controls, shown = widget.children
    pick, (find, normalize, least) = controls.children[0], controls.children[1].children
    check_against_the_photos(shown.value, predictions)
    sure = predictions[predictions["probability"] >= 0.6]
    least.value = 0.6
    check_against_the_photos(shown.value, sure)
    find.value = "PEAR/1"
    assert f">{sure['path'].str.contains('pear/1').sum()} photos, " in shown.value
    least.value, find.value, normalize.value = 0.0, "", "true"
    numbers = {pair: int(number) for pair, (number, _) in opened(shown.value).items()}
    assert abs(sum(number for (true, _), number in numbers.items() if true == "apple") - 100) <= 1
    of_row = numbers["apple", "pear"]
    pick.value = ("pear",)
    cells = opened(shown.value)
    assert all("pear" in pair for pair in cells)
    assert int(cells["apple", "pear"][0]) == of_row  # still of all apples
    least.value = 1.0  # nothing is that sure
    assert ">0 photos, 0 right" in shown.value


def test_a_strip_of_a_photo_and_a_loss_that_is_not_a_number_are_shown(predictions, tmp_path):
    Image.new("RGB", (4000, 10)).save(tmp_path / "photos" / predictions["path"][0])
    predictions.loc[1, ["loss", "p_apple", "p_pear", "p_plum"]] = np.nan
    predictions.loc[1, ["target", "predicted"]] = "apple"
    cells = opened(explore(predictions, per_cell=99).html.replace("loss nan", "loss 9999"))
    assert cells["apple", "apple"][1][0][2] == predictions["path"][1]  # the worst of all
    assert sum(len(photos) for _, photos in cells.values()) == len(predictions)


def test_per_cell_must_show_something(predictions):
    with pytest.raises(ValueError, match="per_cell is 0"):
        explore(predictions, per_cell=0)
