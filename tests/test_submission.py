import pandas as pd
import pytest

from cropkit.evaluation import write_submission


@pytest.fixture
def answers():
    paths = ["0/a.jpg", "0/b.jpg", "f/c.jpg"]
    table = pd.DataFrame({"path": paths, "predicted": ["tea", "taro", "tea"], "root": "test"})
    return table.assign(p_taro=0.4, p_tea=0.6)


@pytest.fixture
def template(tmp_path):
    """A function that writes a template of such rows."""

    def write(*rows, header="filename,label"):
        file = tmp_path / "template.csv"
        file.write_text("\n".join([header, *rows]) + "\n")
        return file

    return write


def test_the_rows_are_those_of_the_template_in_its_order(answers, template, tmp_path):
    out = tmp_path / "new" / "submission.csv"
    table = write_submission(answers, template("c.jpg,", "a.jpg,", "b.jpg,"), out)
    assert out.read_bytes() == b"filename,label\nc.jpg,tea\na.jpg,tea\nb.jpg,taro\n"
    assert table.to_numpy().tolist() == [["c.jpg", "tea"], ["a.jpg", "tea"], ["b.jpg", "taro"]]
    shuffled = write_submission(answers[::-1], template("c.jpg,", "a.jpg,", "b.jpg,"), out)
    assert shuffled.equals(table)


def test_a_template_of_paths_is_matched_by_path(answers, template, tmp_path):
    answers.loc[2, "path"] = "f/a.jpg"  # the same file name in two folders
    table = write_submission(answers, template("f/a.jpg,taro", "0/b.jpg,tea", "0/a.jpg,tea"), tmp_path / "out.csv")
    assert table["label"].tolist() == ["tea", "taro", "tea"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a.jpg,", "b.jpg,"], r"1 photos have no row in .*template.csv, such as 'c.jpg'"),
        (["a.jpg,", "b.jpg,", "c.jpg,", "d.jpg,"], r"line 5: 'd.jpg' is none of the 3 photos"),
        (["a.jpg,", "b.jpg,", "c.jpg,", "a.jpg,"], r"line 5: 'a.jpg' comes twice"),
        (["a.jpg,", "b.jpg,kale", "c.jpg,"], r"line 3: 'b.jpg' has the label 'kale', which the model does not know"),
        ([], "has 0 rows"),
    ],
)
def test_a_template_that_does_not_fit_is_refused_and_nothing_is_written(answers, template, tmp_path, rows, said):
    out = tmp_path / "submission.csv"
    out.write_text("the one before")
    with pytest.raises(ValueError, match=said):
        write_submission(answers, template(*rows), out)
    assert out.read_text() == "the one before"


def test_other_columns_are_refused(answers, template, tmp_path):
    with pytest.raises(ValueError, match=r"must have rows of \['filename', 'label'\]"):
        write_submission(answers, template("a.jpg,1", header="image,label"), tmp_path / "out.csv")


def test_no_template_is_refused(answers, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such template"):
        write_submission(answers, tmp_path / "nowhere.csv", tmp_path / "out.csv")


def test_a_photo_that_could_not_be_read_is_named(answers, template, tmp_path):
    answers.loc[1, "predicted"] = ""
    with pytest.raises(ValueError, match=r"'b.jpg' could not be read"):
        write_submission(answers, template("a.jpg,", "b.jpg,", "c.jpg,"), tmp_path / "out.csv")


def test_two_photos_of_one_name_are_refused_where_the_template_has_only_names(answers, template, tmp_path):
    answers.loc[1, "path"] = "1/a.jpg"
    with pytest.raises(ValueError, match=r"two photos are called 'a.jpg'"):
        write_submission(answers, template("a.jpg,", "c.jpg,"), tmp_path / "out.csv")
