import numpy as np
import pandas as pd
import pytest

from cropkit.evaluation import average


def table(*probabilities, paths=("1.jpg", "2.jpg"), targets=("pear", "plum"), **columns):
    """Predictions of two photos from their probabilities of pear."""
    pear = np.array(probabilities, np.float32)
    predicted = np.where(pear >= 0.5, "pear", "plum")
    facts = {"path": paths, "predicted": predicted, "probability": np.maximum(pear, 1 - pear), **columns}
    if targets:
        facts |= {"target": targets, "loss": -np.log(np.where(np.array(targets) == "pear", pear, 1 - pear))}
    return pd.DataFrame({**facts, "p_pear": pear, "p_plum": 1 - pear, "root": "photos"})


def test_the_surer_model_decides_and_every_column_follows():
    one, other = table(0.4, 0.2), table(0.9, 0.4)
    both = average(one, other)
    assert both["predicted"].tolist() == ["pear", "plum"]  # one alone called the first photo a plum
    assert np.allclose(both["p_pear"], [0.65, 0.3]) and np.allclose(both["probability"], [0.65, 0.7])
    assert np.allclose(both["loss"], -np.log([0.65, 0.7]))
    assert list(both.columns) == list(one.columns)


def test_photos_are_matched_by_path_not_by_row():
    one, other = table(0.4, 0.2), table(0.9, 0.4)
    swapped = other.iloc[::-1].reset_index(drop=True)
    assert average(one, swapped).equals(average(one, other))


def test_a_table_alone_stays_as_it_is():
    one = table(0.4, 0.2)
    pd.testing.assert_frame_equal(average(one), one)


def test_files_that_cannot_be_read_stay_without_an_answer():
    broken = table(0.4, np.nan, targets=None, problem=["", "is empty"]).assign(predicted=["plum", ""])
    both = average(broken, broken)
    assert both["predicted"].tolist() == ["plum", ""] and np.isnan(both["probability"][1])


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (table(0.9, 0.4, paths=("1.jpg", "3.jpg")), r"other photos than the first, such as 2\.jpg"),
        (table(0.9, 0.4, paths=("1.jpg", "1.jpg")), r"other photos than the first, such as 2\.jpg"),
        (table(0.9, 0.4, targets=("pear", "pear")), "other labels than the first"),
        (
            table(0.9, 0.4).rename(columns={"p_plum": "p_apple"}),
            "other classes than the first: pear, apple",
        ),
    ],
)
def test_other_photos_labels_and_classes_are_refused(other, said):
    with pytest.raises(ValueError, match=said):
        average(table(0.4, 0.2), other)


def test_nothing_cannot_be_averaged():
    with pytest.raises(ValueError, match="no predictions"):
        average()
