"""Corrections: decisions that are kept line by line, and what they do to a catalog and to a run."""

import json

import pytest

from cropkit import Config, compare_runs, prepare, run_experiment, scan
from cropkit.__main__ import main
from cropkit.data import add_correction, correct, read_corrections

TINY = {"arch": "mobilenet_v3_small", "weights": None, "resolution": 64, "method": "feature_extraction"}


@pytest.fixture
def catalog(make_photos):
    counts = {"train/apple": 6, "train/pear": 6, "val/apple": 3, "val/pear": 3, "test/apple": 3, "test/pear": 3}
    return scan(make_photos(counts))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "corrections.csv"


def photo(catalog, path):
    return catalog.set_index("path", drop=False).loc[path]


def test_the_last_line_of_a_photo_rules_and_no_line_is_rewritten(catalog, file):
    apple = photo(catalog, "train/apple/0.jpg")
    contents = []
    for to in ("pear", "exclude", "pear"):
        add_correction(file, apple, to)
        contents.append(file.read_bytes())
    assert contents[2].startswith(contents[1]) and contents[1].startswith(contents[0])
    assert read_corrections(file)["to"].tolist() == ["pear"]
    corrected = correct(catalog, file)
    assert photo(corrected, apple["path"])["label"] == "pear"
    assert photo(corrected, apple["path"])["note"] == "was filed as apple"
    add_correction(file, photo(corrected, apple["path"]), "apple")  # taken back, by a row of the corrected catalog
    assert read_corrections(file).empty
    assert correct(catalog, file).equals(catalog)


def test_what_is_excluded_is_left_out_with_its_reason(catalog, file):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "exclude")
    _, left_out = prepare(catalog["root"][0], corrections=file)
    assert left_out[["path", "reason"]].to_numpy().tolist() == [["train/apple/0.jpg", "excluded by corrections.csv"]]


def test_a_photo_that_has_changed_is_refused_by_name(catalog, file):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "pear")
    root = catalog["root"][0]
    (file.parent / "photos" / "train" / "apple" / "0.jpg").write_bytes(
        (file.parent / "photos" / "train" / "apple" / "1.jpg").read_bytes()
    )
    with pytest.raises(ValueError, match=r"line 2: train/apple/0\.jpg is another photo now"):
        scan(root, corrections=file)


def test_a_photo_that_was_filed_anew_is_refused_by_name(catalog, file):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "pear")
    catalog.loc[catalog["path"] == "train/apple/0.jpg", "label"] = "plum"
    with pytest.raises(ValueError, match=r"was filed as 'apple' then, and is 'plum' now"):
        correct(catalog, file)


def test_a_class_that_is_not_there_is_refused_with_the_nearest(catalog, file):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "paer")
    with pytest.raises(ValueError, match=r"'paer' is no class here\. Did you mean 'pear'\?"):
        correct(catalog, file)


def test_photos_of_elsewhere_are_counted_and_change_nothing(catalog, file, capsys):
    add_correction(file, {**photo(catalog, "train/apple/0.jpg"), "path": "train/apple/9.jpg"}, "pear")
    assert correct(catalog, file).equals(catalog)
    assert "1 corrections are of photos that are not here" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [1, 20, 90])
def test_a_line_that_a_power_cut_broke_off_does_not_count_and_the_next_one_does(catalog, file, capsys, kept):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "pear")
    whole = file.read_bytes()
    add_correction(file, photo(catalog, "train/apple/1.jpg"), "pear")
    file.write_bytes(file.read_bytes()[: len(whole) + kept])
    assert read_corrections(file)["path"].tolist() == ["train/apple/0.jpg"]
    assert "its last line is incomplete" in capsys.readouterr().out
    add_correction(file, photo(catalog, "train/apple/2.jpg"), "pear")
    assert read_corrections(file)["path"].tolist() == ["train/apple/0.jpg", "train/apple/2.jpg"]


def test_a_photo_that_is_judged_again_after_it_was_filed_anew_is_known_by_its_new_class(catalog, file):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "pear")
    catalog.loc[catalog["path"] == "train/apple/1.jpg", "label"] = "kiwi"
    catalog.loc[catalog["path"] == "train/apple/0.jpg", "label"] = "plum"
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "kiwi")
    assert photo(correct(catalog, file), "train/apple/0.jpg")["label"] == "kiwi"


def test_undo_is_a_line_and_leaves_nothing_said(catalog, file):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "exclude")
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "undo")
    assert len(file.read_text().splitlines()) == 3
    assert read_corrections(file).empty and correct(catalog, file).equals(catalog)
    with pytest.raises(ValueError, match="say a class, 'exclude' or 'undo'"):
        add_correction(file, photo(catalog, "train/apple/0.jpg"), "")


def test_a_class_that_is_called_as_a_decision_is_refused(catalog, file):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "pear")
    with pytest.raises(ValueError, match="a class is called 'exclude'"):
        correct(catalog.replace({"label": {"pear": "exclude"}}), file)


def test_a_file_that_excel_saved_is_gone_on_with_in_its_encoding(catalog, file):
    catalog.loc[0, "label"] = "芒果"
    add_correction(file, catalog.loc[0], "pear")
    file.write_bytes(file.read_text("utf-8").encode("cp950"))
    add_correction(file, catalog.loc[1], "pear")
    assert read_corrections(file)["from"].tolist() == ["芒果", "apple"]


def test_a_table_without_a_column_is_refused(file):
    file.write_text("path,sha256,to,when\n")
    with pytest.raises(ValueError, match="has no column from"):
        read_corrections(file)
    with pytest.raises(FileNotFoundError, match="no such file of corrections"):
        read_corrections(file.with_name("other.csv"))


def test_a_decision_is_on_disk_before_the_call_returns(catalog, file, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(file.read_bytes()))
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "pear")
    assert synced == [file.read_bytes()]


def test_corrected_labels_are_other_data_in_train_and_val_and_another_run(catalog, file, tmp_path):
    out = tmp_path / "runs"
    before = run_experiment(Config(**TINY), catalog, out)
    for path in ("train/apple/0.jpg", "val/apple/0.jpg", "test/apple/0.jpg"):
        add_correction(file, photo(catalog, path), "pear")
    config = Config(**TINY, corrections=file)
    after = run_experiment(config, catalog, out)
    assert before.folder != after.folder
    known = after.predictions.set_index("path")["target"]
    assert known["val/apple/0.jpg"] == "pear" and known["test/apple/0.jpg"] == "apple"
    split = (after.folder / "split.csv").read_text()
    assert "train/apple/0.jpg,pear,train" in split
    add_correction(file, photo(catalog, "train/apple/1.jpg"), "exclude")
    more = run_experiment(config, catalog, out)
    assert len({run.folder for run in (before, after, more)}) == 3
    assert "train/apple/1.jpg" not in (more.folder / "split.csv").read_text()
    file.unlink()  # what was run can be read without it
    table = compare_runs(out)
    assert len(table) == 3 and "corrections" in table


def test_the_shell_scans_with_corrections(catalog, file, capsys):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "pear")
    assert main(["scan", "--data", catalog["root"][0], "--corrections", str(file)]) == 0
    assert "train/apple/0.jpg,pear,train" in capsys.readouterr().out
    assert main(["train", "--data", catalog["root"][0], "--corrections", str(file.with_name("none.csv"))]) == 1
    assert "no such file of corrections" in capsys.readouterr().err


def test_a_record_says_which_corrections(catalog, file, tmp_path):
    add_correction(file, photo(catalog, "train/apple/0.jpg"), "pear")
    run = run_experiment(Config(**TINY, corrections=file), catalog, tmp_path / "runs")
    record = json.loads((run.folder / "config.json").read_text())
    assert record["config"]["corrections"] == str(file)
    assert len(record["resolved"]["corrections"]) == 16
