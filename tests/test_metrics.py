import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
from scipy.stats import binomtest, fisher_exact

from cropkit.evaluation.metrics import (
    accuracy,
    bootstrap_interval,
    classes_of,
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    lowest_f1,
    mcnemar,
    most_confused,
    never_predicted,
    reliability,
    similarity_order,
    slices,
    top_losses,
    weighted_precision,
)


def table(true, predicted, names="abc", probability=0.5):
    """Predictions as `predict` returns them, by hand."""
    true, predicted = list(true), list(predicted)
    predictions = pd.DataFrame({"path": [f"{k}.jpg" for k in range(len(true))], "target": true, "predicted": predicted})
    predictions.insert(0, "root", "photos")
    predictions["probability"] = probability
    predictions["loss"] = np.arange(len(true), dtype=float)
    for name in names:
        predictions[f"p_{name}"] = [0.8 if name == one else 0.1 for one in predicted]
    return predictions


def test_classes_are_the_columns_of_probabilities_in_the_models_order():
    assert classes_of(table("ab", "ab", names="cab")) == ["c", "a", "b"]  # neither root, path nor predicted


def test_rows_of_the_confusion_matrix_are_the_true_class():
    true, predicted = ["a", "a", "a", "b", "c"], ["b", "b", "a", "b", "a"]
    matrix = confusion_matrix(table(true, predicted))
    assert matrix.loc["a", "b"] == 2
    assert (matrix.to_numpy() == sklearn.metrics.confusion_matrix(true, predicted)).all()
    assert most_confused(table(true, predicted)).to_numpy().tolist() == [["a", "b", 2], ["c", "a", 1]]


def test_the_matrix_is_divided_by_row_or_by_column():
    predictions = table("aaabbc", "aabbba")
    by_row, by_column = (confusion_matrix(predictions, normalize=how) for how in ("true", "predicted"))
    assert by_row.sum(axis=1).tolist() == [1, 1, 1]
    assert by_row.loc["a", "b"] == pytest.approx(1 / 3)
    assert by_column.sum(axis=0).tolist() == [1, 1, 0]  # c was never predicted
    assert by_column.loc["c", "a"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"'true' \(by row\) or 'predicted'"):
        confusion_matrix(predictions, normalize="rows")


def test_scores_of_each_class_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    true, predicted = rng.choice(list("abc"), 200), rng.choice(list("abc"), 200)
    report = classification_report(table(true, predicted))
    expected = sklearn.metrics.classification_report(true, predicted, output_dict=True)
    for name in "abc":
        assert report.loc[name, "recall"] == pytest.approx(expected[name]["recall"])
        assert report.loc[name, "precision"] == pytest.approx(expected[name]["precision"])
        assert report.loc[name, "f1"] == pytest.approx(expected[name]["f1-score"])
        assert report.loc[name, "support"] == expected[name]["support"]
    assert weighted_precision(table(true, predicted)) == pytest.approx(expected["weighted avg"]["precision"])


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # files that other tests left open
def test_the_precision_of_a_class_that_is_never_predicted_is_0():
    predictions = table("aabc", "aaba")
    assert classification_report(predictions).loc["c"].tolist() == [0, 0, 0, 1]
    assert weighted_precision(predictions) == pytest.approx((2 * 2 / 3 + 1 + 0) / 4)


def test_the_gate_drops_weak_classes_and_keeps_those_on_it():
    predictions = table("aaaabbbb", "aaaabaaa")  # F1: a 8/11, b 2/5
    assert weighted_precision(predictions) == pytest.approx((4 / 7 + 1) / 2)
    assert weighted_precision(predictions, gate=0.7) == pytest.approx(4 / 7 / 2)
    assert weighted_precision(predictions, gate=2 / 5) == weighted_precision(predictions)


def test_top_losses_are_the_largest():
    predictions = table("abcab", "abcab")
    assert top_losses(predictions, 2)["loss"].tolist() == [4, 3]
    predictions.loc[1, "loss"] = np.nan  # worse than any number
    assert top_losses(predictions, 2).index.tolist() == [1, 4]


def test_reliability_by_hand():
    predictions = table("aaaaaa", "aabbab", probability=[0.05, 0.95, 0.95, 0.8, 0.8, 1.0])
    found = reliability(predictions, bins=10)
    assert found["photos"].tolist() == [1, 0, 0, 0, 0, 0, 0, 2, 0, 3]  # 0.8 is the end of its step, 1.0 in the last
    assert found.loc[9, "confidence"] == pytest.approx(2.9 / 3)
    assert found.loc[9, "accuracy"] == pytest.approx(1 / 3)
    expected = (1 * 0.95 + 2 * 0.3 + 3 * (2.9 / 3 - 1 / 3)) / 6
    assert expected_calibration_error(predictions, bins=10) == pytest.approx(expected)


def test_confidence_equal_to_accuracy_is_no_calibration_error():
    predictions = table("aaaa", "aaab", probability=0.75)
    assert expected_calibration_error(predictions) == pytest.approx(0)


def test_the_interval_contains_the_score_and_shrinks_with_more_photos():
    few, many = (table("ab" * n, "aa" * n) for n in (20, 500))
    (low, high), (low_many, high_many) = bootstrap_interval(few), bootstrap_interval(many)
    assert low < accuracy(few) < high
    # 1000 photos, half of them correct: 0.5 +- 1.96 * sqrt(0.25 / 1000).
    assert (low_many, high_many) == pytest.approx((0.469, 0.531), abs=0.006)
    assert high_many - low_many < (high - low) / 3
    assert bootstrap_interval(few) == (low, high)  # of the same seed
    assert bootstrap_interval(many, seed=1, resamples=99) != bootstrap_interval(many, resamples=99)
    assert bootstrap_interval(few, weighted_precision)[1] <= 1
    assert bootstrap_interval(few, level=0.5)[0] > low


def test_mcnemar_counts_what_only_one_predicts_correctly():
    one = table("a" * 20, "a" * 12 + "b" * 8)
    other = table("a" * 20, "a" * 4 + "b" * 14 + "a" * 2)
    result = mcnemar(one, other.iloc[::-1])  # in any order
    assert (result["only_one"], result["only_other"]) == (8, 2)
    assert result["p_value"] == pytest.approx(2 * (1 + 10 + 45) / 1024)  # two-sided, exact
    assert mcnemar(one, one) == {"only_one": 0, "only_other": 0, "p_value": 1.0}


def test_mcnemar_refuses_what_cannot_be_compared():
    one = table("aab", "aab")
    with pytest.raises(ValueError, match=r"1 photos are in one table only, such as 2\.jpg"):
        mcnemar(one, one.head(2))
    with pytest.raises(ValueError, match=r"1\.jpg has another true class"):
        mcnemar(one, table("abb", "aab"))
    with pytest.raises(ValueError, match=r"0\.jpg occurs twice"):
        mcnemar(pd.concat([one, one]), one)


def test_similar_classes_are_neighbours():
    predictions = table("abcd" * 5, "cdab" * 5, names="abcde")  # a goes with c, b with d; e has no photos
    order = similarity_order(predictions)
    assert sorted(order) == list("abcde") and order[-1] == "e"
    assert abs(order.index("a") - order.index("c")) == 1
    assert abs(order.index("b") - order.index("d")) == 1


def test_a_table_that_lacks_what_is_needed_is_refused():
    with pytest.raises(ValueError, match="no columns p_<class>"):
        classification_report(table("ab", "ab", names=""))
    with pytest.raises(ValueError, match=r"0\.jpg is 'x', predicted as 'a'"):
        confusion_matrix(table("xa", "aa"))
    with pytest.raises(ValueError, match="needs photos and a level between 0 and 1, not 2 and 95"):
        bootstrap_interval(table("ab", "ab"), level=95)


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # files that other tests left open
def test_no_photos_are_no_error_where_they_can_be_counted():
    nothing = table("", "")
    assert confusion_matrix(nothing).to_numpy().sum() == 0
    assert classification_report(nothing)["support"].sum() == 0
    assert np.isnan(expected_calibration_error(nothing)) and np.isnan(accuracy(nothing))


def test_a_confidence_on_an_edge_falls_into_one_bin_from_memory_and_from_a_file():
    steps = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], dtype="float32")
    tables = [table("aaaaaa", "aaaaaa", probability=p) for p in (steps, steps.astype(str).astype(float))]
    assert reliability(tables[0])["photos"].tolist() == reliability(tables[1])["photos"].tolist()


def test_a_confidence_that_is_no_number_is_in_no_bin():
    assert reliability(table("ab", "aa", probability=[0.9, np.nan]))["photos"].tolist() == [0] * 8 + [1, 0]


def test_slices_give_each_group_its_accuracy_interval_and_corrected_p_value():
    answers = pd.DataFrame({"target": "a", "predicted": ["a"] * 20 + ["b"] * 20})
    groups = pd.DataFrame({"side": ["up"] * 20 + ["down"] * 20, "size": ["small", "large"] * 20})
    table = slices(answers, groups).set_index("value")
    assert table.loc["up", ["photos", "accuracy", "elsewhere"]].tolist() == [20, 1.0, 0.0]
    assert table.loc["small", "accuracy"] == 0.5 and table.loc["small", "p_value"] == 1.0
    low, high = binomtest(10, 20).proportion_ci(method="wilson")
    assert table.loc["small", ["low", "high"]].tolist() == [low, high]
    alone = fisher_exact([[20, 0], [0, 20]]).pvalue
    assert table.loc["up", "p_value"] == pytest.approx(4 * alone)  # four looks
    assert table["p_value"].is_monotonic_increasing


def test_slices_of_chance_are_seldom_called_real():
    random = np.random.default_rng(0)
    false_alarms = 0
    for _ in range(100):
        answers = pd.DataFrame({"target": "a", "predicted": random.choice(["a", "b"], 200)})
        groups = pd.DataFrame(random.integers(0, 2, (200, 10))).astype(str)
        false_alarms += slices(answers, groups)["p_value"].min() < 0.05
    assert false_alarms <= 10  # of 20 looks each, about 60 times without the correction


def test_slices_leave_out_what_is_not_known_and_refuse_other_photos():
    answers = pd.DataFrame({"target": list("aa"), "predicted": list("ab")})
    assert slices(answers, pd.DataFrame({"town": ["Xinshe", None]}))["photos"].tolist() == [1]
    assert slices(answers, pd.DataFrame({"town": [None, None]})).empty
    everything = slices(answers, pd.DataFrame({"town": ["Xinshe", "Xinshe"]})).iloc[0]
    assert np.isnan(everything["elsewhere"]) and everything["p_value"] == 1
    with pytest.raises(ValueError, match="2 photos, but 1 rows of attributes"):
        slices(answers, pd.DataFrame({"town": ["Xinshe"]}))


def test_a_class_that_is_never_predicted_is_named_and_one_without_photos_is_not():
    predictions = table(list("aabbcc"), list("aaabca"))
    assert never_predicted(predictions) == []
    assert never_predicted(predictions.assign(predicted="a")) == ["b", "c"]
    assert never_predicted(predictions.query("target != 'b'").assign(predicted="a")) == ["c"]


def test_the_lowest_f1_is_of_a_class_with_photos():
    predictions = table(list("aabbcc"), list("aabbca"))
    assert lowest_f1(predictions) == pytest.approx(2 / 3)
    assert lowest_f1(predictions.query("target != 'c'")) == 1
