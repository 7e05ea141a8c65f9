"""Photos whose label is in doubt, and photos that resemble each other: both by features of a frozen backbone."""

import os
from collections.abc import Iterable

import numpy as np
import pandas as pd
from torch import nn
from torch.utils.data import DataLoader

from cropkit.data.catalog import class_names, good_photos
from cropkit.data.datasets import CropDataset, preprocessing_of
from cropkit.data.splitting import find_duplicates
from cropkit.models.surgery import create_model
from cropkit.training.features import extract_features

BACKBONE = "efficientnet_lite0"
C = 0.03  # of the logistic heads, the inverse of the strength of regularisation: in the middle of those that are tried
# The mean of three divisions into folds counts. What the first round doubts by more than a factor e, the heads of the
# second one do not learn from. Chosen on grocery36 with flipped labels; benchmarks/label_errors.py flips others.
DIVISIONS, ROUNDS, DOUBTED = 3, 2, 1.0


def find_label_errors(
    catalog: pd.DataFrame,
    *,
    model: nn.Module | None = None,
    cache: str | os.PathLike[str] | None = None,
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank all photos by how little the others' labels make one believe theirs, the most doubtful first.

    Every photo is judged by heads that have not seen it: the photos are divided into folds, and a logistic head on
    frozen features is fitted to all but one fold, which it then judges; the mean of three divisions counts. All is done
    twice, the second time without learning from the photos whose label the first heads doubt. Photos that show the same
    picture are in one fold.

    Args:
        catalog: from `scan`; its split does not matter, all good photos are judged.
        model: its backbone gives the features; EfficientNet-Lite0 unless given.
        cache: as for `extract_features`.
        folds: >= 2; a class needs at least two pictures.
        seed: of the division.

    Returns:
        One row a photo: ``path``, ``label``, ``suggested`` (the most probable other class), ``score`` (the logarithm of
        how many times more probable that class is: above 0 the label is the less probable one), ``split``, ``sha256``,
        ``root``. `review` shows them one by one.

    Raises:
        ValueError: if `folds` is below 2, or a class has fewer than two pictures.

    Example:
        >>> suspects = find_label_errors(catalog, model=model)
        >>> list(suspects.columns)
        ['path', 'label', 'suggested', 'score', 'split', 'sha256', 'root']
    """
    photos = good_photos(catalog)
    names = class_names(photos)
    if folds < 2:
        raise ValueError(f"folds is {folds}, but must be at least 2.")
    twins = find_duplicates(photos).set_index("path")["group"]
    groups = photos["path"].map(twins).fillna(pd.Series(-1 - np.arange(len(photos)))).to_numpy()
    few = pd.Series(groups).groupby(photos["label"]).nunique()
    if few.min() < 2:
        raise ValueError(f"class {few.idxmin()!r} has a single picture, so no other can speak for it. Leave it out.")
    vectors, targets = _features(photos, names, model, cache)
    trusted = np.ones(len(photos), bool)
    for _ in range(ROUNDS):
        each = [_out_of_fold(vectors, targets, groups, trusted, folds, seed + k) for k in range(DIVISIONS)]
        others, rows = np.mean(each, axis=0), np.arange(len(photos))
        own = others[rows, targets].copy()
        others[rows, targets] = -np.inf
        score = others.max(axis=1) - own
        trusted = score < DOUBTED
    table = photos[["path", "label", "split", "sha256", "root"]].copy()
    table.insert(2, "suggested", [names[k] for k in others.argmax(axis=1)])
    table.insert(3, "score", score)
    return table.sort_values("score", ascending=False, kind="stable", ignore_index=True)


def _features(
    photos: pd.DataFrame, names: list[str], model: nn.Module | None, cache: str | os.PathLike[str] | None
) -> tuple[np.ndarray, np.ndarray]:
    model = create_model(BACKBONE) if model is None else model
    dataset = CropDataset(photos, names, preprocessing_of(model))
    vectors, targets = extract_features(model, DataLoader(dataset), cache=cache).tensors
    return vectors.numpy(), targets.numpy()


def _out_of_fold(
    vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray, trusted: np.ndarray, folds: int, seed: int
) -> np.ndarray:
    """Logarithms of probabilities, shape (N, K), a row by a head that learned from trusted photos of other folds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from threadpoolctl import threadpool_limits

    found = np.zeros((len(targets), targets.max() + 1))
    division = StratifiedGroupKFold(min(folds, np.bincount(targets).min()), shuffle=True, random_state=seed)
    with threadpool_limits(1, user_api="blas"):
        for others, mine in division.split(vectors, targets, groups):
            # A class of which nobody is believed must still be known to the head.
            known = np.isin(targets[others], targets[others][trusted[others]])
            learned = others[trusted[others] | ~known]
            head = LogisticRegression(C=C, max_iter=300, tol=1e-3).fit(vectors[learned], targets[learned])
            found[np.ix_(mine, head.classes_)] = head.predict_proba(vectors[mine])
    return np.log(np.clip(found, 1e-12, 1))


def nearest_photos(
    catalog: pd.DataFrame,
    paths: Iterable[str],
    *,
    model: nn.Module | None = None,
    cache: str | os.PathLike[str] | None = None,
    photos: int = 3,
) -> pd.DataFrame:
    """For some photos, those that are most like them in the eyes of a frozen backbone.

    Args:
        catalog: from `scan`. Where it has training photos, only these are looked at: a model learned from them.
        paths: of photos in the catalog.
        model: as for `find_label_errors`.
        cache: as for `extract_features`.
        photos: how many a photo.

    Returns:
        That many rows a photo, the nearest first: ``path``, ``nearest`` (the other one's path), ``label`` (the other
        one's), ``similarity`` (cosine of the features), ``root``. `explore` and `review` show them.

    Raises:
        ValueError: if a path is not in the catalog.

    Example:
        >>> nearest_photos(catalog, ["apple/0.jpg"], model=model, photos=2)["path"].tolist()
        ['apple/0.jpg', 'apple/0.jpg']
    """
    good = good_photos(catalog)
    place = {path: row for row, path in enumerate(good["path"])}
    paths = list(paths)
    if unknown := [path for path in paths if path not in place]:
        raise ValueError(f"{unknown[0]} is no good photo of the catalog.")
    vectors, _ = _features(good, class_names(good), model, cache)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    train = (good["split"] == "train").to_numpy()
    among = np.flatnonzero(train if train.any() else np.ones(len(good), bool))
    rows = []
    for path in paths:
        likeness = vectors[among] @ vectors[place[path]]
        likeness[among == place[path]] = -np.inf
        for number in np.argsort(-likeness, kind="stable")[: min(photos, np.isfinite(likeness).sum())]:
            other = good.iloc[among[number]]
            rows.append((path, other["path"], other["label"], float(likeness[number]), other["root"]))
    return pd.DataFrame(rows, columns=["path", "nearest", "label", "similarity", "root"])
