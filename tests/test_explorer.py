import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics

from cropkit import open_photo, scan
from cropkit.data import good_photos
from cropkit.data.photos import contain
from cropkit.evaluation.explorer import THUMBNAIL, explore
from cropkit.evaluation.metrics import similarity_order

SUMMARY = re.compile(r'<summary [^>]*aria-label="([^"]*)">([^<]*)</summary>(.*?)</details>')
PHOTO = re.compile(r'<img src="data:image/jpeg;base64,([^"]*)" .*?loss ([\d.]+)</div><div title="([^"]*)"')


def made_up(root, paths, targets, seed=0):
    """Random predictions; every class that is a target may be predicted."""
    rng = np.random.default_rng(seed)
    names = sorted(set(targets))
    logits = rng.normal(size=(len(paths), len(names)))
    logits[np.arange(len(paths)), [names.index(target) for target in targets]] += 1
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log([row[names.index(target)] for row, target in zip(p, targets, strict=True)])
    predictions = pd.DataFrame({"path": paths, "target": targets, "predicted": [names[k] for k in p.argmax(axis=1)]})
    predictions = predictions.assign(probability=p.max(axis=1), loss=loss)
    predictions.insert(0, "root", str(root))
    return pd.concat([predictions, pd.DataFrame(p, columns=[f"p_{name}" for name in names])], axis=1)


@pytest.fixture
def predictions(make_photos):
    root = make_photos({"apple": 30, "pear": 30, "plum": 30})
    catalog = scan(root)
    return made_up(root, catalog["path"], catalog["label"])


def opened(page):
    """The cells of a page: {(true, predicted): (number, [(picture, loss, path)])}."""
    cells = {}
    for title, number, rest in SUMMARY.findall(page):
        true, predicted = re.fullmatch(r"\d+ photos? of (.*) predicted as (.*)", title).groups()
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
    found = [[int(cells.get((true, predicted), ("0", []))[0]) for predicted in names] for true in names]
    assert found == expected.tolist()
    rows = predictions.set_index("path")
    for (true, predicted), (number, photos) in cells.items():
        assert len(photos) == min(int(number), per_cell)
        here = (rows["target"] == true) & (rows["predicted"] == predicted)
        losses = rows.loc[here, "loss"].nlargest(per_cell)
        assert [path for *_, path in photos] == losses.index.tolist()  # the largest, in their order
        for picture, loss, path in photos:
            assert loss == pytest.approx(rows.at[path, "loss"], abs=0.006)
            photo = contain(open_photo(f"{rows.at[path, 'root']}/{path}", min_side=THUMBNAIL), THUMBNAIL)
            assert picture.size == photo.size
            assert np.abs(np.asarray(picture, float) - np.asarray(photo, float)).mean() < 12  # JPEG's losses


def test_every_cell_has_its_count_and_its_photos(predictions):
    check_against_the_photos(explore(predictions).html, predictions)


def test_at_most_per_cell_photos_are_shown_and_all_are_counted(predictions):
    page = explore(predictions, per_cell=2).html
    check_against_the_photos(page, predictions, per_cell=2)
    assert re.search(r"<b>\d+ photos of apple predicted as apple</b>, 2 of them shown", page)


def test_real_photos_are_those_that_the_cells_claim(real_data):
    catalog = good_photos(scan(real_data))
    test = catalog[catalog["split"] == "test"]
    predictions = made_up(real_data, test["path"].tolist(), test["label"].tolist())
    check_against_the_photos(explore(predictions).html, predictions)


def test_the_page_needs_nothing_that_jupyterlab_removes(predictions):
    page = explore(predictions).html
    assert not re.search(r"<(script|style|link|iframe)|\sid=|\son\w+=|https?:|url\(", page)


def test_names_are_shown_as_they_are_and_run_nothing(make_photos):
    root = make_photos({"<i>a & b": 3, '"quoted"': 3})
    catalog = scan(root)
    page = explore(made_up(root, catalog["path"], catalog["label"])).html
    assert "<i>" not in page and "&lt;i&gt;a &amp; b" in page and "&quot;quoted&quot;" in page


def test_a_missing_photo_is_replaced_by_the_reason(predictions, tmp_path):
    (tmp_path / "photos" / predictions["path"][0]).unlink()
    page = explore(predictions, per_cell=99).html
    assert page.count("<img") == len(predictions) - 1
    assert "No such file" in page


def test_order_by_similarity_or_by_name(predictions):
    columns = ["p_apple", "p_pear", "p_plum"]
    predictions[columns] = 0.1
    predictions.loc[predictions["target"] != "pear", ["p_apple", "p_plum"]] = 0.4  # these two are similar
    assert similarity_order(predictions) != ["apple", "pear", "plum"]
    pages = [explore(predictions, order=order).html for order in ("name", "similarity")]
    heads = [re.findall(r'scope="col".*?<div[^>]*>(\w+)', page) for page in pages]
    assert heads == [["apple", "pear", "plum"], similarity_order(predictions)]
    with pytest.raises(ValueError, match="order is 'size'"):
        explore(predictions, order="size")


def test_chosen_classes_are_shown_with_those_they_are_confused_with(predictions):
    cells = opened(explore(predictions, classes=["apple"]).html)
    assert cells and all("apple" in pair for pair in cells)
    all_cells = opened(explore(predictions).html)
    assert {pair: number for pair, (number, _) in cells.items()} == {
        pair: number for pair, (number, _) in all_cells.items() if "apple" in pair
    }
    with pytest.raises(ValueError, match=r"'aple' is no class here\. Did you mean 'apple'"):
        explore(predictions, classes=["aple"])


def test_without_a_folder_or_photos_the_error_names_the_remedy(predictions):
    for without in (predictions.drop(columns="root"), predictions.assign(root=None)):
        with pytest.raises(ValueError, match="give root=<folder>"):
            explore(without)
    with pytest.raises(ValueError, match="no predictions"):
        explore(predictions.head(0))


def test_the_argument_root_overrides_the_column(predictions):
    root = predictions["root"][0]
    for other in (predictions.drop(columns="root"), predictions.assign(root="/nowhere")):
        assert explore(other, root=root, per_cell=99).html.count("<img") == len(predictions)
    assert "<img" not in explore(predictions, root="/nowhere").html


def test_each_photo_is_read_from_its_own_folder(make_photos, tmp_path):
    roots = [make_photos({"apple": 2, "pear": 2}, tmp_path / name) for name in ("one", "other")]
    (roots[1] / "apple" / "0.jpg").unlink()
    tables = [made_up(root, (catalog := scan(root))["path"], catalog["label"]) for root in roots]
    both = pd.concat(tables)  # the same paths twice, below two folders
    assert explore(both).html.count("<img") == len(both) == 7
    check_against_the_photos(explore(both[both["root"] == str(roots[1])]).html, tables[1])


def test_live_controls_change_the_table(predictions):
    pytest.importorskip("ipywidgets")
    widget = explore(predictions, live=True)
    controls, shown = widget.children
    pick, (find, normalize, least) = controls.children[0], controls.children[1].children
    check_against_the_photos(shown.value, predictions)
    confident = predictions[predictions["probability"] >= 0.6]
    least.value = 0.6
    check_against_the_photos(shown.value, confident)
    find.value = "PEAR/1"
    assert f">{confident['path'].str.contains('pear/1').sum()} photos, " in shown.value
    least.value, find.value, normalize.value = 0.0, "", "true"
    numbers = {pair: int(number) for pair, (number, _) in opened(shown.value).items()}
    assert abs(sum(number for (true, _), number in numbers.items() if true == "apple") - 100) <= 1
    of_row = numbers["apple", "pear"]
    pick.value = ("pear",)
    cells = opened(shown.value)
    assert all("pear" in pair for pair in cells)
    assert int(cells["apple", "pear"][0]) == of_row  # still a share of all apples
    least.value = 1.0  # no confidence is that high
    assert ">0 photos, 0 correct" in shown.value


def test_a_strip_of_a_photo_and_a_loss_that_is_not_a_number_are_shown(predictions, tmp_path):
    Image.new("RGB", (4000, 10)).save(tmp_path / "photos" / predictions["path"][0])
    predictions.loc[1, ["loss", "p_apple", "p_pear", "p_plum"]] = np.nan
    predictions.loc[1, ["target", "predicted"]] = "apple"
    cells = opened(explore(predictions, per_cell=99).html.replace("loss nan", "loss 9999"))
    assert cells["apple", "apple"][1][0][2] == predictions["path"][1]  # the largest of all
    assert sum(len(photos) for _, photos in cells.values()) == len(predictions)


def test_per_cell_must_show_something(predictions):
    with pytest.raises(ValueError, match="per_cell is 0"):
        explore(predictions, per_cell=0)
