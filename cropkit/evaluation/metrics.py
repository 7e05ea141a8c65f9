"""Scores of a table of predictions, as `predict` returns it: one row a photo, one column ``p_<class>`` a class."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd


def classes_of(predictions: pd.DataFrame) -> list[str]:
    """The classes of a table of predictions, in the model's order.

    Args:
        predictions: from `predict`.

    Returns:
        The names of the columns ``p_<class>``, without ``p_``.

    Raises:
        ValueError: if there are no such columns.

    Example:
        >>> classes_of(pd.DataFrame({"root": ["photos"], "path": ["1.jpg"], "p_pear": [0.9], "p_plum": [0.1]}))
        ['pear', 'plum']
    """
    names = [column.removeprefix("p_") for column in predictions.columns if column.startswith("p_")]
    if not names:
        raise ValueError("the table has no columns p_<class>. Use what predict returned, or a run's predictions.")
    return names


def _indices(predictions: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The classes, and of each photo the index of its true and of its predicted class."""
    names = classes_of(predictions)
    true, predicted = (pd.Index(names).get_indexer(predictions[column]) for column in ("target", "predicted"))
    if (unknown := (true < 0) | (predicted < 0)).any():
        row = predictions[unknown].iloc[0]
        raise ValueError(
            f"{row['path']} is {row['target']!r}, predicted as {row['predicted']!r}, but the table has columns "
            f"p_<class> only for {', '.join(names)}."
        )
    return names, true, predicted


def accuracy(predictions: pd.DataFrame) -> float:
    """The share of photos whose predicted class is the true one.

    Args:
        predictions: needs the columns ``target`` and ``predicted``.

    Returns:
        0..1; NaN if there is no photo.

    Example:
        >>> accuracy(pd.DataFrame({"target": list("aabb"), "predicted": list("abbb")}))
        0.75
    """
    return float((predictions["target"] == predictions["predicted"]).mean())


def confusion_matrix(predictions: pd.DataFrame, *, normalize: str | None = None) -> pd.DataFrame:
    """Count the photos of each true class by their predicted class.

    Args:
        predictions: from `predict`.
        normalize: None for counts; ``"true"`` divides each row by its sum, so that the diagonal is recall;
            ``"predicted"`` divides each column, so that the diagonal is precision. A row or column without photos is 0.

    Returns:
        Shape (K, K); rows are the true class, columns the predicted one, both in the model's order.

    Raises:
        ValueError: if `normalize` is something else, or a class has no column ``p_<class>``.

    Example:
        >>> confusion_matrix(pd.DataFrame({"target": list("aabb"), "predicted": list("abbb"), "p_a": 0.5, "p_b": 0.5}))
        predicted  a  b
        true
        a          1  1
        b          0  2
    """
    from sklearn import metrics

    if normalize not in (None, "true", "predicted"):
        raise ValueError(f"normalize is {normalize!r}, but must be None, 'true' (by row) or 'predicted' (by column).")
    names, true, predicted = _indices(predictions)
    by = "pred" if normalize == "predicted" else normalize
    counts = np.zeros((len(names), len(names)), int)  # scikit-learn refuses a table without photos
    if len(predictions):
        counts = metrics.confusion_matrix(true, predicted, labels=range(len(names)), normalize=by)
    return pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=pd.Index(names, name="predicted"))


def most_confused(predictions: pd.DataFrame) -> pd.DataFrame:
    """The pairs of classes that were confused, most photos first.

    Args:
        predictions: from `predict`.

    Returns:
        One row for each cell of the confusion matrix off the diagonal that is not 0: ``true``, ``predicted``,
        ``photos``.

    Example:
        >>> most_confused(pd.DataFrame({"target": list("aaab"), "predicted": list("bbaa")}))
          true predicted  photos
        0    a         b       2
        1    b         a       1
    """
    wrong = predictions[predictions["target"] != predictions["predicted"]].rename(columns={"target": "true"})
    pairs = wrong.groupby(["true", "predicted"]).size().reset_index(name="photos")
    return pairs.sort_values(["photos", "true", "predicted"], ascending=[False, True, True], ignore_index=True)


def top_losses(predictions: pd.DataFrame, photos: int = 12) -> pd.DataFrame:
    """The photos with the largest loss, largest first. Photos with a wrong label are often among them.

    Args:
        predictions: from `predict`.
        photos: how many.

    Returns:
        These rows of `predictions`; a loss that is not a number counts as the largest.

    Example:
        >>> top_losses(pd.DataFrame({"path": ["1.jpg", "2.jpg", "3.jpg"], "loss": [0.1, 2.5, 0.7]}), 2)["path"].tolist()
        ['2.jpg', '3.jpg']
    """
    return predictions.sort_values("loss", ascending=False, kind="stable", na_position="first").head(photos)


def similarity_order(predictions: pd.DataFrame) -> list[str]:
    """Order the classes so that similar ones are neighbours.

    Two classes are similar if the model gives probability of one to photos of the other. Average linkage, leaves in the
    order with the shortest distances between neighbours (Bar-Joseph et al., 2001, as in SciPy).

    Args:
        predictions: from `predict`.

    Returns:
        All classes; those without photos come last.

    Example:
        >>> predictions = pd.DataFrame({"target": list("abc"), "p_a": [0.6, 0, 0.4], "p_b": [0, 0.9, 0]})
        >>> similarity_order(predictions.assign(p_c=[0.4, 0.1, 0.6]))
        ['b', 'c', 'a']
    """
    from scipy.cluster import hierarchy

    seen, unseen, tree = _similarity(predictions)
    return seen + unseen if tree is None else [seen[leaf] for leaf in hierarchy.leaves_list(tree)] + unseen


def look_alikes(predictions: pd.DataFrame, groups: int) -> dict[str, str]:
    """Put the classes together that a model takes for each other most often (as `similarity_order` measures it).

    Args:
        predictions: from `predict`.
        groups: how many are left, at most, of the classes that have photos.

    Returns:
        The group's name of each class: the classes in it, joined by " + ".

    Raises:
        ValueError: if `groups` is below 1.

    Example:
        >>> predictions = pd.DataFrame({"target": list("abc"), "p_a": [0.6, 0, 0.4], "p_b": [0, 0.9, 0]})
        >>> look_alikes(predictions.assign(p_c=[0.4, 0.1, 0.6]), 2)
        {'a': 'a + c', 'b': 'b', 'c': 'a + c'}
    """
    from scipy.cluster import hierarchy

    if groups < 1:
        raise ValueError(f"groups is {groups}, but must be at least 1.")
    seen, unseen, tree = _similarity(predictions)
    alone = [0] * len(seen) if groups == 1 else range(len(seen))  # of one or two classes
    number = alone if tree is None else hierarchy.fcluster(tree, groups, "maxclust")
    group = dict(zip(seen, (int(n) for n in number), strict=True)) | {name: -k for k, name in enumerate(unseen, 1)}
    return {
        name: " + ".join(other for other in group if group[other] == group[name]) for name in classes_of(predictions)
    }


def _similarity(predictions: pd.DataFrame) -> tuple[list[str], list[str], np.ndarray | None]:
    """The classes that have photos, those that have none, and the tree of the former, if they are at least three."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    names = classes_of(predictions)
    mean = predictions.groupby("target")[[f"p_{name}" for name in names]].mean()
    seen = [name for name in names if name in mean.index]
    unseen = [name for name in names if name not in mean.index]
    if len(seen) < 3:
        return seen, unseen, None
    similarity = np.nan_to_num(mean.loc[seen, [f"p_{name}" for name in seen]].to_numpy(float))
    # Square roots, so that 10 % is nearer to 30 % than to 0 %.
    distance = 1 - np.sqrt((similarity + similarity.T) / 2)
    np.fill_diagonal(distance, 0)
    return seen, unseen, hierarchy.linkage(squareform(distance, checks=False), "average", optimal_ordering=True)


def classification_report(predictions: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall and F1 of each class.

    Args:
        predictions: from `predict`.

    Returns:
        One row a class, in the model's order: ``precision`` (the share of the photos predicted as this class that
        are of it), ``recall`` (the share of the photos of this class that are predicted as it), ``f1``, ``support``
        (photos of this class). The precision of a class that was never predicted is 0, and so is the recall of a
        class without photos.

    Raises:
        ValueError: if a class has no column ``p_<class>``.

    Example:
        >>> predictions = pd.DataFrame({"target": list("aabb"), "predicted": list("abbb"), "p_a": 0.5, "p_b": 0.5})
        >>> classification_report(predictions).round(2)
               precision  recall    f1  support
        class
        a           1.00     0.5  0.67        2
        b           0.67     1.0  0.80        2
    """
    from sklearn.metrics import precision_recall_fscore_support

    names, true, predicted = _indices(predictions)
    scores = np.zeros((4, len(names)))  # scikit-learn refuses a table without photos
    if len(predictions):
        scores = precision_recall_fscore_support(true, predicted, labels=range(len(names)), zero_division=0)
    columns = dict(zip(("precision", "recall", "f1", "support"), scores, strict=True))
    return pd.DataFrame(columns, index=pd.Index(names, name="class"))


def weighted_precision(predictions: pd.DataFrame, *, gate: float = 0.0) -> float:
    """The competition's score: the mean of the classes' precision, weighted by their photos.

    Args:
        predictions: from `predict`.
        gate: the precision of a class whose F1 is below it counts as 0; the competition's teams mention 0.7.

    Returns:
        0..1; without a gate what scikit-learn calls ``precision_score(average="weighted", zero_division=0)``.

    Example:
        >>> predictions = pd.DataFrame({"target": list("aabb"), "predicted": list("abbb"), "p_a": 0.5, "p_b": 0.5})
        >>> round(weighted_precision(predictions), 3), round(weighted_precision(predictions, gate=0.7), 3)
        (0.833, 0.333)
    """
    report = classification_report(predictions)
    counted = report["precision"].where(report["f1"] >= gate, 0.0)
    return float((counted * report["support"]).sum() / max(len(predictions), 1))


def never_predicted(predictions: pd.DataFrame) -> list[str]:
    """The classes that have photos, but that no photo was named as: their precision is not known, and counts as 0.

    Args:
        predictions: from `predict`.

    Returns:
        Names, in the model's order.

    Example:
        >>> never_predicted(pd.DataFrame({"target": list("aab"), "predicted": list("aaa"), "p_a": 0.5, "p_b": 0.5}))
        ['b']
    """
    there, named = set(predictions["target"]), set(predictions["predicted"])
    return [name for name in classes_of(predictions) if name in there and name not in named]


def lowest_f1(predictions: pd.DataFrame) -> float:
    """The F1 of the class that has the lowest, of those with photos. One team reports that an award asked for 0.7.

    Args:
        predictions: from `predict`.

    Returns:
        0..1; NaN if there is no photo.

    Example:
        >>> predictions = pd.DataFrame({"target": list("aabb"), "predicted": list("abbb"), "p_a": 0.5, "p_b": 0.5})
        >>> round(lowest_f1(predictions), 3)
        0.667
    """
    report = classification_report(predictions)
    return float(report.loc[report["support"] > 0, "f1"].min())


def reliability(predictions: pd.DataFrame, *, bins: int = 10) -> pd.DataFrame:
    """Is a model correct in 80 % of the photos where its confidence is 80 %?

    Args:
        predictions: from `predict`.
        bins: of equal width.

    Returns:
        One row a bin, ``above`` < confidence <= ``up_to``: ``photos``, their mean ``confidence`` and their
        ``accuracy``, both NaN where there is no photo.

    Example:
        >>> predictions = pd.DataFrame({"target": list("aab"), "predicted": "a", "probability": [0.9, 0.8, 0.7]})
        >>> reliability(predictions, bins=2)
           above  up_to  photos  confidence  accuracy
        0    0.0    0.5       0         NaN       NaN
        1    0.5    1.0       3         0.8  0.666667
    """
    edges = np.linspace(0, 1, bins + 1)
    # In the type that `predict` returns, or 0.8 would lie above the edge 0.8.
    confidence = predictions["probability"].astype("float32")
    place = pd.cut(confidence, edges.astype("float32"), labels=False, include_lowest=True)
    correct = (predictions["target"] == predictions["predicted"]).astype(float)
    each = pd.DataFrame({"confidence": predictions["probability"], "accuracy": correct}).groupby(place)
    table = each.mean().reindex(range(bins))
    photos = each.size().reindex(range(bins), fill_value=0)
    return pd.DataFrame({"above": edges[:-1], "up_to": edges[1:], "photos": photos}).join(table).rename_axis(None)


def expected_calibration_error(predictions: pd.DataFrame, *, bins: int = 10) -> float:
    """The mean difference of confidence and accuracy over the bins of `reliability`, weighted by photos.

    Source: Guo et al., ICML 2017, arXiv 1706.04599.

    Args:
        predictions: from `predict`.
        bins: of equal width.

    Returns:
        0..1; NaN if there is no photo.

    Example:
        >>> predictions = pd.DataFrame({"target": list("aab"), "predicted": "a", "probability": [0.9, 0.8, 0.7]})
        >>> round(expected_calibration_error(predictions, bins=1), 3)
        0.133
    """
    table = reliability(predictions, bins=bins).dropna()
    if table.empty:
        return math.nan
    return float(np.average((table["confidence"] - table["accuracy"]).abs(), weights=table["photos"]))


def bootstrap_interval(
    predictions: pd.DataFrame,
    metric: Callable[[pd.DataFrame], float] = accuracy,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval in which a score may lie, given that the test has only so many photos.

    The photos are drawn with replacement, and each draw is scored (Efron's percentile interval). How much another seed
    of the training would change the score is not included.

    Args:
        predictions: from `predict`.
        metric: a function of such a table.
        level: share of the draws that lie in the interval.
        resamples: number of draws.
        seed: of the draws.

    Returns:
        The low and the high end.

    Raises:
        ValueError: if there are no photos, or `level` is not between 0 and 1.

    Example:
        >>> bootstrap_interval(pd.DataFrame({"target": list("ab") * 20, "predicted": "a"}))
        (0.35, 0.65)
    """
    if predictions.empty or not 0 < level < 1:
        raise ValueError(f"an interval needs photos and a level between 0 and 1, not {len(predictions)} and {level}.")
    random = np.random.default_rng(seed)
    size = len(predictions)
    scores = [metric(predictions.iloc[random.integers(size, size=size)]) for _ in range(resamples)]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Test whether two models differ by more than chance (McNemar's test, exact).

    Only photos count that one model predicts correctly and the other does not. For equally good models, each of these
    would be as likely to be correct by the one as by the other.

    Args:
        one: predictions of one model.
        other: predictions of another model for the same photos, in any order.

    Returns:
        ``only_one`` and ``only_other`` (photos that only this model predicts correctly), and ``p_value``: the
        probability that equally good models differ at least that much.

    Raises:
        ValueError: if the tables are not of the same photos with the same true classes.

    Example:
        >>> one = pd.DataFrame({"path": list("123456"), "target": "a", "predicted": "a"})
        >>> mcnemar(one, one.assign(predicted=list("abbbbb")))
        {'only_one': 5, 'only_other': 0, 'p_value': 0.0625}
    """
    from scipy.stats import binomtest

    left, right = (table.set_index("path")[["target", "predicted"]] for table in (one, other))
    for table in (left, right):
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            raise ValueError(f"{twice} occurs twice. Compare predictions of one split, such as test.")
    if len(missing := left.index.symmetric_difference(right.index)):
        raise ValueError(f"{len(missing)} photos are in one table only, such as {missing[0]}. Predict the same photos.")
    right = right.loc[left.index]
    if (changed := left["target"] != right["target"]).any():
        raise ValueError(f"{changed.idxmax()} has another true class in the other table. Use the same labels.")
    correct, other_correct = (table["target"] == table["predicted"] for table in (left, right))
    only_one, only_other = int((correct & ~other_correct).sum()), int((other_correct & ~correct).sum())
    differ = only_one + only_other
    p_value = float(binomtest(only_one, differ).pvalue) if differ else 1.0
    return {"only_one": only_one, "only_other": only_other, "p_value": p_value}


def slices(predictions: pd.DataFrame, attributes: pd.DataFrame) -> pd.DataFrame:
    """The accuracy of groups of photos: by orientation, size, town, or whatever else is known of each.

    Look at many groups, and by chance alone some look bad. So each p-value is corrected for the number of looks (Holm).

    Args:
        predictions: from `predict`.
        attributes: one row a photo, in the same order; each column divides the photos into groups. Missing values are
            in no group.

    Returns:
        One row a group, the smallest ``p_value`` first: ``attribute``, ``value``, ``photos``, ``accuracy``, ``low`` and
        ``high`` (95 %, Wilson's interval), ``elsewhere`` (the accuracy of all other photos; NaN if there are none), and
        ``p_value``: how probable a difference at least that large is, if the group made none (Fisher's exact test).

    Raises:
        ValueError: if there is not one row of attributes for each photo.

    Example:
        >>> answers = pd.DataFrame({"target": "a", "predicted": list("aaaaaaabbb")})
        >>> attributes = pd.DataFrame({"light": ["bright"] * 7 + ["dark"] * 3})
        >>> slices(answers, attributes)[["value", "photos", "accuracy", "p_value"]].round(3)
            value  photos  accuracy  p_value
        0  bright       7       1.0    0.017
        1    dark       3       0.0    0.017
    """
    from scipy.stats import binomtest, fisher_exact

    if len(attributes) != len(predictions):
        raise ValueError(f"{len(predictions)} photos, but {len(attributes)} rows of attributes. Give one row a photo.")
    correct = (predictions["target"] == predictions["predicted"]).to_numpy()
    rows = []
    for attribute in attributes.columns:
        values = attributes[attribute].to_numpy()
        for value in sorted(set(attributes[attribute].dropna())):
            inside, outside = correct[values == value], correct[values != value]
            interval = binomtest(int(inside.sum()), len(inside)).proportion_ci(method="wilson")
            table = [[part.sum(), (~part).sum()] for part in (inside, outside)]
            rows.append(
                {
                    "attribute": attribute,
                    "value": value,
                    "photos": len(inside),
                    "accuracy": inside.mean(),
                    "low": interval.low,
                    "high": interval.high,
                    "elsewhere": outside.mean() if len(outside) else math.nan,
                    "p_value": fisher_exact(table).pvalue,
                }
            )
    columns = ["attribute", "value", "photos", "accuracy", "low", "high", "elsewhere", "p_value"]
    found = pd.DataFrame(rows, columns=columns).sort_values("p_value", kind="stable", ignore_index=True)
    looks = np.arange(len(found), 0, -1)
    found["p_value"] = (found["p_value"] * looks).cummax().clip(upper=1.0)
    return found
