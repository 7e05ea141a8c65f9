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
        column: names the place; rows where it is empty do not count.
        smoothing: photos of the average place that are added to each place, > 0.

    Returns:
        One row a place, one column a class: log (share in this place / share in all places).

    Raises:
        ValueError: if there is no such column, or `train` holds photos of val or test: their places and labels must not
            be known.

    Example:
        >>> train = pd.DataFrame({"label": ["tea", "tea", "taro"], "split": "train", "TOWNNAME": ["A", "A", "B"]})
        >>> location_prior(train, ["taro", "tea"], smoothing=1).round(2)
                  taro   tea
        TOWNNAME
        A        -1.10  0.37
        B         0.56 -0.69
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
    overall = (counts.sum() + 1) / (counts.sum().sum() + len(counts.columns))
    share = (counts + smoothing * overall).div(counts.sum(axis=1) + smoothing, axis=0)
    return np.log(share / overall).rename_axis(columns=None)


def with_prior(predictions: pd.DataFrame, places: Sequence[str], prior: pd.DataFrame, strength: float) -> pd.DataFrame:
    """Predictions that also count where each photo was taken (Bayes' rule, the prior to the power of `strength`).

    Args:
        predictions: from `predict`.
        places: of each photo, in the same order; one that the prior does not know changes nothing.
        prior: from `location_prior`.
        strength: 0 leaves everything as it is, 1 takes the prior at its word.

    Returns:
        As from `predict`, with other probabilities.

    Raises:
        ValueError: if there is not one place a photo, or the prior is of other classes.

    Example:
        >>> answers = pd.DataFrame({"path": ["1.jpg"], "predicted": ["taro"], "probability": [0.6]})
        >>> answers = answers.assign(p_taro=[0.6], p_tea=[0.4])
        >>> prior = pd.DataFrame({"taro": [-1.0], "tea": [1.0]}, index=["A"])
        >>> with_prior(answers, ["A"], prior, 1)["predicted"].tolist()
        ['tea']
    """
    names = classes_of(predictions)
    if len(places) != len(predictions):
        raise ValueError(f"{len(predictions)} photos, but {len(places)} places. Give one place a photo.")
    if list(prior.columns) != names:
        raise ValueError("the prior is of other classes than the predictions. Make it with the model's class_names.")
    shift = prior.reindex(list(places)).fillna(0.0).to_numpy()
    probabilities = predictions[[f"p_{name}" for name in names]].to_numpy() * np.exp(strength * shift)
    return answered_by(predictions, probabilities / probabilities.sum(axis=1, keepdims=True))


def choose_strength(
    val: pd.DataFrame, places: Sequence[str], prior: pd.DataFrame, *, strengths: Sequence[float] = STRENGTHS
) -> pd.DataFrame:
    """Which strength of the prior is best on val: the least mean loss, of equals the weaker.

    Args:
        val: predictions of the val photos.
        places: of each, in the same order.
        prior: from `location_prior`.
        strengths: which are tried.

    Returns:
        One row a strength: ``strength``, ``val_loss``, ``val_accuracy``, ``chosen``.

    Example:
        >>> val = pd.DataFrame({"path": ["1.jpg"], "target": ["tea"], "predicted": ["taro"], "probability": [0.6]})
        >>> val = val.assign(loss=0.9, p_taro=[0.6], p_tea=[0.4])
        >>> prior = pd.DataFrame({"taro": [-1.0], "tea": [1.0]}, index=["A"])
        >>> choose_strength(val, ["A"], prior, strengths=(0, 1))["chosen"].tolist()
        [False, True]
    """
    tried = [with_prior(val, places, prior, strength) for strength in strengths]
    table = pd.DataFrame({"strength": strengths, "val_loss": [float(one["loss"].mean()) for one in tried]})
    table["val_accuracy"] = [accuracy(one) for one in tried]
    return table.assign(chosen=table.index == table["val_loss"].idxmin())
