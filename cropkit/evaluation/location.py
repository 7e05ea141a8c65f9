"""What the place of a photo says about its class: a prior of counts, used only as far as val shows that it helps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cropkit.evaluation.metrics import accuracy, classes_of
from cropkit.evaluation.predictions import answered_by

SMOOTHING = 5.0  # photos of the average place that every place is taken to have had
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def location_prior(
    train: pd.DataFrame, class_names: Sequence[str], *, column: str = "TOWNNAME", smoothing: float = SMOOTHING
) -> pd.DataFrame:
    """How much more often each class was photographed in a place than elsewhere.

    The share of a class in a place is smoothed towards its share in all places: a place with few photos says little.

    Args:
        train: training photos only, from `prepare` with metadata: ``label``, ``split`` and the column of the place.
        class_names: of the model.
        column: names the place; rows where it is empty do not count. Towns of two counties may share a name: then make
            a column of both.
        smoothing: photos of the average place that are added to each place, > 0.

    Returns:
        One row a place, one column a class: log (share in this place / share in all places); 0 for a class that has no
        photo with a place.

    Raises:
        ValueError: if there is no such column, or `train` holds photos of val or test: their places and labels must not
            be known.

    Example:
        >>> train = pd.DataFrame({"label": ["tea", "tea", "taro"], "split": "train", "TOWNNAME": ["A", "A", "B"]})
        >>> location_prior(train, ["taro", "tea"], smoothing=1).round(2)
                  taro   tea
        TOWNNAME
        A        -1.10  0.29
        B         0.69 -0.69
    """
    if column not in train:
        raise ValueError(f"the photos have no column {column!r}. Give their table: prepare(root, metadata=...).")
    if len(others := train.loc[train["split"] != "train", "path" if "path" in train else "label"]):
        raise ValueError(
            f"{len(others)} of the photos are not in train, such as {others.iloc[0]}: a prior that knows their labels "
            "flatters. Give the training photos only."
        )
    known = train[(train[column] != "") & train[column].notna()]
    counts = pd.crosstab(known[column], known["label"]).reindex(columns=list(class_names), fill_value=0)
    overall = counts.sum() / len(known)
    seen = overall.index[overall > 0]
    share = (counts[seen] + smoothing * overall[seen]).div(counts.sum(axis=1) + smoothing, axis=0)
    # A class without a place is as probable in all of them.
    return np.log(share / overall[seen]).reindex(columns=counts.columns, fill_value=0.0).rename_axis(columns=None)


def with_prior(predictions: pd.DataFrame, places: pd.Series, prior: pd.DataFrame, strength: float) -> pd.DataFrame:
    """Predictions that also count where each photo was taken (Bayes' rule, the prior to the power of `strength`).

    Args:
        predictions: from `predict`.
        places: of each photo, by its path; one that is missing, or that the prior does not know, changes nothing.
        prior: from `location_prior`.
        strength: 0 leaves everything as it is, 1 takes the prior at its word.

    Returns:
        As from `predict`, with other probabilities.

    Raises:
        ValueError: if no photo has a place, or two, or the prior is of other classes.

    Example:
        >>> answers = pd.DataFrame({"path": ["1.jpg"], "predicted": ["taro"], "probability": [0.6]})
        >>> answers = answers.assign(p_taro=[0.6], p_tea=[0.4])
        >>> prior = pd.DataFrame({"taro": [-1.0], "tea": [1.0]}, index=["A"])
        >>> with_prior(answers, pd.Series({"1.jpg": "A"}), prior, 1)["predicted"].tolist()
        ['tea']
    """
    names = classes_of(predictions)
    if not places.index.is_unique or not predictions["path"].isin(places.index).any():
        raise ValueError(
            "places must have the photos' paths as index, each once: catalog.set_index('path')['TOWNNAME'], as in "
            f"{predictions['path'].iloc[0]!r}."
        )
    if list(prior.columns) != names:
        raise ValueError("the prior is of other classes than the predictions. Make it with the model's class_names.")
    shift = prior.reindex(places.reindex(predictions["path"])).fillna(0.0).to_numpy()
    probabilities = predictions[[f"p_{name}" for name in names]].to_numpy() * np.exp(strength * shift)
    return answered_by(predictions, probabilities / probabilities.sum(axis=1, keepdims=True))


def choose_strength(
    val: pd.DataFrame, places: pd.Series, prior: pd.DataFrame, *, strengths: Sequence[float] = STRENGTHS
) -> pd.DataFrame:
    """Which strength of the prior is best on val: the least mean loss, of equals the weaker.

    Args:
        val: predictions of the val photos.
        places: of each, by its path.
        prior: from `location_prior`.
        strengths: which are tried, the weakest first.

    Returns:
        One row a strength: ``strength``, ``val_loss``, ``val_accuracy``, ``chosen``.

    Example:
        >>> val = pd.DataFrame({"path": ["1.jpg"], "target": ["tea"], "predicted": ["taro"], "probability": [0.6]})
        >>> val = val.assign(loss=0.9, p_taro=[0.6], p_tea=[0.4])
        >>> prior = pd.DataFrame({"taro": [-1.0], "tea": [1.0]}, index=["A"])
        >>> choose_strength(val, pd.Series({"1.jpg": "A"}), prior, strengths=(0, 1))["chosen"].tolist()
        [False, True]
    """
    tried = [with_prior(val, places, prior, strength) for strength in strengths]
    table = pd.DataFrame({"strength": strengths, "val_loss": [float(one["loss"].mean()) for one in tried]})
    table["val_accuracy"] = [accuracy(one) for one in tried]
    return table.assign(chosen=table.index == table["val_loss"].idxmin())
