import numpy as np
import pandas as pd
import pytest

from cropkit.evaluation import choose_strength, location_prior, with_prior

NAMES = ["taro", "tea"]


def answers(probabilities, targets=None):
    """Predictions as `predict` returns them, from the probability of tea."""
    tea = np.array(probabilities)
    table = pd.DataFrame(
        {"path": [f"{n}.jpg" for n in range(len(tea))], "predicted": np.where(tea > 0.5, "tea", "taro")}
    )
    if targets is not None:
        table.insert(1, "target", list(targets))
        table["loss"] = -np.log(np.where(table["target"] == "tea", tea, 1 - tea))
    return table.assign(probability=np.maximum(tea, 1 - tea), p_taro=1 - tea, p_tea=tea)


def by_path(places):
    """Places by the paths of `answers`."""
    return pd.Series(list(places), index=[f"{n}.jpg" for n in range(len(places))])


def photos(**places):
    """Training photos: so many of (taro, tea) in each place."""
    rows = [
        (label, place)
        for place, counts in places.items()
        for label, n in zip(NAMES, counts, strict=True)
        for _ in range(n)
    ]
    return pd.DataFrame(rows, columns=["label", "TOWNNAME"]).assign(split="train")


def test_a_prior_shifts_answers_towards_what_grows_there_by_bayes_rule():
    prior = location_prior(photos(hill=(0, 200), plain=(200, 0)), NAMES, smoothing=1)
    assert prior.loc["hill", "tea"] == pytest.approx(np.log(200.5 / 201 / 0.5))
    shifted = with_prior(answers([0.4, 0.4, 0.4]), by_path(["hill", "plain", "elsewhere"]), prior, 1)
    assert shifted["predicted"].tolist() == ["tea", "taro", "taro"]
    odds = 0.4 / 0.6 * np.exp(prior.loc["hill", "tea"] - prior.loc["hill", "taro"])
    assert shifted["p_tea"][0] == pytest.approx(odds / (1 + odds))
    assert shifted["p_tea"][2] == pytest.approx(0.4)  # nothing is known of the place
    assert np.allclose(shifted[["p_taro", "p_tea"]].sum(axis=1), 1)


def test_strength_0_changes_nothing_and_half_the_strength_half_the_shift():
    prior = location_prior(photos(hill=(1, 9), plain=(9, 1)), NAMES)
    before = answers([0.4], ["tea"])
    assert np.allclose(
        with_prior(before, by_path(["hill"]), prior, 0)[["p_taro", "p_tea", "loss"]],
        before[["p_taro", "p_tea", "loss"]],
    )
    odds = [
        np.log(one["p_tea"][0] / one["p_taro"][0])
        for s in (0, 0.5, 1)
        for one in [with_prior(before, by_path(["hill"]), prior, s)]
    ]
    assert odds[1] - odds[0] == pytest.approx(odds[2] - odds[1])


def test_a_place_with_few_photos_says_less():
    prior = location_prior(photos(large=(0, 100), small=(0, 1), rest=(101, 0)), NAMES)
    assert 0 < prior.loc["small", "tea"] < prior.loc["large", "tea"]
    assert np.isfinite(prior.to_numpy()).all()


def test_photos_of_test_and_val_are_refused():
    leaked = photos(hill=(2, 2)).assign(split=["train", "train", "val", "test"])
    with pytest.raises(ValueError, match=r"2 of the photos are not in train"):
        location_prior(leaked, NAMES)


def test_a_missing_column_other_classes_and_missing_places_are_refused():
    with pytest.raises(ValueError, match=r"no column 'COUNTYNAME'"):
        location_prior(photos(hill=(2, 2)), NAMES, column="COUNTYNAME")
    prior = location_prior(photos(hill=(2, 2)), NAMES)
    for places in (pd.Series(["hill"]), pd.Series(["hill", "hill"], index=["0.jpg", "0.jpg"])):
        with pytest.raises(ValueError, match=r"paths as index, each once"):
            with_prior(answers([0.1]), places, prior, 1)
    with pytest.raises(ValueError, match=r"other classes"):
        with_prior(answers([0.1]), by_path(["hill"]), prior[NAMES[::-1]], 1)


def test_places_are_found_by_path_whatever_their_order():
    prior = location_prior(photos(hill=(1, 9), plain=(9, 1)), NAMES)
    places = by_path(["hill", "plain", "hill"])
    shuffled = with_prior(answers([0.4, 0.5, 0.6]), places[::-1], prior, 1)
    assert shuffled.equals(with_prior(answers([0.4, 0.5, 0.6]), places, prior, 1))


def test_a_class_whose_photos_have_no_place_is_as_probable_everywhere():
    train = pd.concat([photos(hill=(0, 9), plain=(0, 3)), photos(x=(5, 0)).assign(TOWNNAME="")])
    assert location_prior(train, NAMES)["taro"].tolist() == [0, 0]


def test_rows_without_a_place_do_not_count():
    train = pd.concat([photos(hill=(3, 3)), photos(x=(50, 0)).assign(TOWNNAME="")])
    assert location_prior(train, NAMES).index.tolist() == ["hill"]
    assert np.allclose(location_prior(train, NAMES), 0)


def test_val_chooses_the_strength_and_takes_none_where_places_say_nothing():
    rng = np.random.default_rng(0)
    targets = np.array(["taro", "tea"] * 60)
    tea = np.clip(np.where(targets == "tea", 0.6, 0.4) + rng.normal(0, 0.15, 120), 0.05, 0.95)
    val, places = answers(tea, targets), by_path(np.where(targets == "tea", "hill", "plain"))
    prior = location_prior(photos(hill=(5, 95), plain=(95, 5)), NAMES)
    told = choose_strength(val, places, prior)
    assert told["chosen"].sum() == 1
    assert told.loc[told["chosen"], "strength"].item() == 1
    assert told.loc[told["chosen"], "val_accuracy"].item() > told["val_accuracy"][0]
    shuffled = choose_strength(val, by_path(rng.permutation(places)), prior)
    assert shuffled.loc[shuffled["chosen"], "strength"].item() == 0
