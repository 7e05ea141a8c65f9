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

SUMMARY = re.compile(r'<summary [^>]*aria-label="([^"]*)">([^<]*)</summary>(.*?)</td>')
PHOTO = re.compile(
    r'<img src="data:image/jpeg;base64,([^"]*)" alt="[^"]*" style="max-width:160px(?:(?!max-width:160px).)*?'
    r'loss ([\d.]+)</div><div title="([^"]*)"'
)


SIDE = f"max-width:{THUMBNAIL}px"  # of a photo of a cell; what stands beside it has another size


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
    assert re.search(r"<b>\d+ photos of apple predicted as apple</b></div><div [^>]*>2 of them shown", page)


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
    assert page.count(SIDE) == len(predictions) - 1
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
        assert explore(other, root=root, per_cell=99).html.count(SIDE) == len(predictions)
    assert "<img" not in explore(predictions, root="/nowhere").html


def test_each_photo_is_read_from_its_own_folder(make_photos, tmp_path):
    roots = [make_photos({"apple": 2, "pear": 2}, tmp_path / name) for name in ("one", "other")]
    (roots[1] / "apple" / "0.jpg").unlink()
    tables = [made_up(root, (catalog := scan(root))["path"], catalog["label"]) for root in roots]
    both = pd.concat(tables)  # the same paths twice, below two folders
    assert explore(both).html.count(SIDE) == len(both) == 7
    check_against_the_photos(explore(both[both["root"] == str(roots[1])]).html, tables[1])


def large(page):
    return page.count("max-width:400px")


def test_wrong_answers_open_larger_and_stand_beside_the_surest_photo_of_both_classes(predictions):
    page = explore(predictions).html
    wrong = (predictions["target"] != predictions["predicted"]).sum()
    assert large(page) == wrong
    right = predictions[predictions["target"] == predictions["predicted"]]
    surest = right.loc[right.groupby("target")["probability"].idxmax()].set_index("target")
    small = re.findall(r'<img src="data:image/jpeg;base64,([^"]*)" alt="(\w+), the surest right answer"', page)
    assert {name for _, name in small} == {"apple", "pear", "plum"}
    for data, name in small:
        seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float)
        row = surest.loc[name]
        photo = np.asarray(contain(open_photo(f"{row['root']}/{row['path']}", min_side=80), 80), float)
        assert np.abs(seen - photo).mean() < 12


def test_training_photos_that_a_wrong_answer_is_near_to_are_shown(predictions):
    wrong = predictions[predictions["target"] != predictions["predicted"]]
    near = pd.DataFrame({"path": wrong["path"], "root": wrong["root"], "nearest": "plum/3.jpg", "label": "plum"})
    page = explore(predictions, nearest=near).html
    assert page.count("learned from: plum") == page.count('alt="a training photo of plum"') == len(wrong)


def test_look_alikes_can_be_put_together(predictions):
    page = explore(predictions, groups=2).html
    cells = opened(page)
    names = {name for pair in cells for name in pair}
    assert len(names) == 2
    assert sum(int(number) for number, _ in cells.values()) == len(predictions)
    with pytest.raises(ValueError, match="groups is 0"):
        explore(predictions, groups=0)


def test_names_are_shown_in_both_languages_where_they_are_known(make_photos):
    root = make_photos({"mango": 3, "thistle": 3})
    catalog = scan(root)
    page = explore(made_up(root, catalog["path"], catalog["label"])).html
    assert ">mango 芒果</th>" in page and ">thistle</th>" in page


def changed(page):
    """The cells of a page of two models: {(true, predicted): (change, [(heading, paths)])}."""
    cells = {}
    for title, number, rest in SUMMARY.findall(page):
        true, predicted = re.match(r"(.*) predicted as (.*): \d+ came", title).groups()
        groups = re.split(r"<div [^>]*>((?:came|went), [^<]*: \d+[^<]*)</div>", rest)[1:]
        shown = [(groups[k], re.findall(r'<div title="([^"]*)"', groups[k + 1])) for k in range(0, len(groups), 2)]
        cells[true, predicted] = (int(number), shown)
    return cells


def test_two_models_are_compared_photo_by_photo(predictions):
    after = made_up(predictions["root"][0], predictions["path"], predictions["target"], seed=1)
    shuffled = after.sample(frac=1, random_state=0)  # matched by path, not by row
    page = explore(predictions, shuffled, per_cell=99).html
    cells = changed(page)
    names = ["apple", "pear", "plum"]
    counts = [
        pd.crosstab(table["target"], table["predicted"]).reindex(index=names, columns=names, fill_value=0)
        for table in (predictions, after)
    ]
    before_of, after_of = (table.set_index("path")["predicted"] for table in (predictions, after))
    for true in names:
        for predicted in names:
            here = predictions.set_index("path")["target"] == true
            came = set(here.index[here & (after_of == predicted) & (before_of != predicted)])
            went = set(here.index[here & (before_of == predicted) & (after_of != predicted)])
            assert ((true, predicted) in cells) == bool(came or went)
            if not came | went:
                continue
            change, groups = cells[true, predicted]
            assert change == counts[1].at[true, predicted] - counts[0].at[true, predicted]
            for heading, paths in groups:
                among = came if heading.startswith("came") else went
                kind = {
                    "now right": lambda path, true=true: after_of[path] == true,
                    "now wrong": lambda path, true=true: before_of[path] == true,
                    "wrong in another way": lambda path, true=true: true not in (before_of[path], after_of[path]),
                }[re.fullmatch(r"\w+, (.*): \d+", heading)[1]]
                assert set(paths) == {path for path in among if kind(path)} and paths
            assert sum(len(paths) for _, paths in groups) == len(came) + len(went)
    test = metrics_of_two(predictions, after)
    assert f"{test[0]} now right, {test[1]} now wrong (McNemar's p = {test[2]:.3f})" in page


def metrics_of_two(before, after):
    from scipy.stats import binomtest

    right = (before["target"] == before["predicted"]).to_numpy(), (after["target"] == after["predicted"]).to_numpy()
    fixed, spoilt = int((~right[0] & right[1]).sum()), int((right[0] & ~right[1]).sum())
    return fixed, spoilt, binomtest(fixed, fixed + spoilt).pvalue


def test_what_got_worse_is_told_without_colour(predictions):
    after = predictions.copy()
    first = after.index[after["predicted"] == after["target"]][0]
    target = after.at[first, "target"]
    other = next(name for name in ("apple", "pear", "plum") if name != target)
    after.loc[first, "predicted"] = other
    page = explore(predictions, after).html
    titles = [title for title, *_ in SUMMARY.findall(page)]
    assert sorted(titles) == sorted(
        [
            f"{target} predicted as {target}: 0 came, 1 went, worse",
            f"{target} predicted as {other}: 1 came, 0 went, worse",
        ]
    )
    assert page.count("text-decoration:underline") == 2


def test_tables_of_other_photos_labels_or_classes_are_not_compared(predictions):
    with pytest.raises(ValueError, match="in one table only"):
        explore(predictions, predictions.head(80))
    with pytest.raises(ValueError, match="another true class"):
        explore(predictions, predictions.assign(target="plum"))
    with pytest.raises(ValueError, match="other classes"):
        explore(predictions, predictions.drop(columns="p_plum"))


def test_a_page_of_many_photos_stays_small(predictions):
    many = pd.concat([predictions.assign(path=[f"{k}/{path}" for path in predictions["path"]]) for k in range(60)])
    root = predictions["root"][0]
    import shutil

    for k in range(60):
        shutil.copytree(root, f"{root}/{k}", ignore=shutil.ignore_patterns("[0-9]*[0-9]", "?"))
    assert len(explore(many, per_cell=999).html) < 15_000_000


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
