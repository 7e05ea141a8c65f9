"""What a table of predictions says; every function but `grad_cam` takes the table that `predict` returns."""

import math
import os
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform
from scipy.stats import binomtest
from torch import Tensor, nn

from cropkit.datasets import transforms_for
from cropkit.models import evaluating
from cropkit.photos import open_photo


def confusion_matrix(predictions: pd.DataFrame, *, normalize: str | None = None) -> pd.DataFrame:
    """Count the photos of each class by what they were taken for.

    Args:
        predictions: from `predict`.
        normalize: None for counts; ``"true"`` divides each row by its sum, so that the diagonal is recall;
            ``"predicted"`` divides each column, so that the diagonal is precision. A row or column without photos is 0.

    Returns:
        Shape (K, K); rows are the true class, columns the predicted one, both in the model's order.
    """
    if normalize not in (None, "true", "predicted"):
        raise ValueError(f"normalize is {normalize!r}, but must be None, 'true' (by row) or 'predicted' (by column).")
    names = classes_of(predictions)
    true, said = (pd.Index(names).get_indexer(predictions[column]) for column in ("target", "predicted"))
    if (unknown := (true < 0) | (said < 0)).any():
        row = predictions[unknown].iloc[0]
        raise ValueError(
            f"{row['path']} is {row['target']!r}, taken for {row['predicted']!r}, but the table has columns p_<class> "
            f"only for {', '.join(names)}."
        )
    counts = np.bincount(true * len(names) + said, minlength=len(names) ** 2).reshape(len(names), len(names))
    if normalize:
        sums = counts.sum(axis=1 if normalize == "true" else 0, keepdims=True)
        counts = counts / np.maximum(sums, 1)
    return pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=pd.Index(names, name="predicted"))


def most_confused(predictions: pd.DataFrame) -> pd.DataFrame:
    """The pairs of classes that were mixed up, most often first.

    Returns:
        One row for each cell off the diagonal that is not 0: ``true``, ``predicted``, ``photos``.
    """
    wrong = predictions[predictions["target"] != predictions["predicted"]]
    pairs = wrong.groupby(["target", "predicted"]).size().rename("photos").reset_index()
    pairs = pairs.rename(columns={"target": "true"})
    return pairs.sort_values(["photos", "true", "predicted"], ascending=[False, True, True]).reset_index(drop=True)


def top_losses(predictions: pd.DataFrame, photos: int = 12) -> pd.DataFrame:
    """The photos that surprised the model most, the largest loss first: wrong labels are often among them."""
    return predictions.sort_values("loss", ascending=False, kind="stable", na_position="first").head(photos)


def similarity_order(predictions: pd.DataFrame) -> list[str]:
    """The classes so that those which the model finds alike stand side by side.

    Two classes are alike if the photos of one give probability to the other. Average linkage, its leaves in the order
    that puts neighbours closest (Bar-Joseph et al., 2001, as in SciPy). A class without photos comes last.
    """
    names = classes_of(predictions)
    columns = [f"p_{name}" for name in names]
    mean = predictions.groupby("target")[columns].mean()
    seen = [name for name in names if name in mean.index]
    unseen = [name for name in names if name not in seen]
    if len(seen) < 3:
        return seen + unseen
    alike = np.nan_to_num(mean.loc[seen, [f"p_{name}" for name in seen]].to_numpy(float))
    # Roots, since a pair at 10 % is nearer to one at 30 % than to one at 0 %.
    distance = 1 - np.sqrt((alike + alike.T) / 2)
    np.fill_diagonal(distance, 0)
    tree = hierarchy.linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [seen[leaf] for leaf in hierarchy.leaves_list(tree)] + unseen


def accuracy(predictions: pd.DataFrame) -> float:
    """The share of photos that were classified right, 0..1; NaN if there is none."""
    return float((predictions["target"] == predictions["predicted"]).mean())


def classification_report(predictions: pd.DataFrame) -> pd.DataFrame:
    """How good is each class?

    Returns:
        One row a class, in the model's order: ``precision`` (of the photos called so, the share that are), ``recall``
        (of the photos that are, the share called so), ``f1``, ``support`` (photos that are). The precision of a class
        that was never predicted is 0, and so is the recall of a class without photos: neither has earned anything.
    """
    matrix = confusion_matrix(predictions)
    right, support, said = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    return pd.DataFrame(
        {
            "precision": right / np.maximum(said, 1),
            "recall": right / np.maximum(support, 1),
            "f1": 2 * right / np.maximum(said + support, 1),
            "support": support,
        }
    ).rename_axis("class")


def weighted_precision(predictions: pd.DataFrame, *, gate: float = 0.0) -> float:
    """The competition's score: the classes' precision, weighted by their share of the photos, 0..1.

    Args:
        predictions: from `predict`.
        gate: classes whose F1 is below it count as 0; the competition's teams spoke of 0.7.
    """
    report = classification_report(predictions)
    counted = report["precision"].where(report["f1"] >= gate, 0.0)
    return float((counted * report["support"]).sum() / max(len(predictions), 1))


def reliability(predictions: pd.DataFrame, *, bins: int = 10) -> pd.DataFrame:
    """Is a model that says 80 % right in 80 % of the cases?

    Returns:
        One row for each of `bins` equal steps of confidence, ``above`` < confidence <= ``up_to``: ``photos``, their
        mean ``confidence`` and their ``accuracy``, both NaN where there is no photo.
    """
    edges = np.linspace(0, 1, bins + 1)
    # In the type that `predict` gives, or 0.8 would lie above 0.8.
    sure = predictions["probability"].to_numpy("float32")
    place = np.clip(np.searchsorted(edges.astype("float32"), sure, side="left") - 1, 0, bins - 1)
    right = predictions["target"] == predictions["predicted"]
    each = pd.DataFrame({"confidence": predictions["probability"], "accuracy": right.astype(float)}).groupby(place)
    table = each.mean().assign(photos=each.size()).reindex(range(bins))
    table["photos"] = table["photos"].fillna(0).astype(int)
    table.insert(0, "above", edges[:-1])
    table.insert(1, "up_to", edges[1:])
    return table[["above", "up_to", "photos", "confidence", "accuracy"]]


def expected_calibration_error(predictions: pd.DataFrame, *, bins: int = 10) -> float:
    """The mean distance of confidence and accuracy over the bins of `reliability`, weighted by photos, 0..1.

    Source: Guo et al., ICML 2017, arXiv 1706.04599.
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
    """How far a score may be off because the test has only so many photos.

    The photos are drawn anew, with replacement, and the score is taken of each draw (Efron's percentile interval).
    What another training from another seed would change is not in it.

    Args:
        predictions: from `predict`.
        metric: a function of such a table.
        level: share of the draws that lie between the two ends.
        resamples: draws.
        seed: of the draws.

    Returns:
        The low and the high end.
    """
    if predictions.empty or not 0 < level < 1:
        raise ValueError(f"an interval needs photos and a level between 0 and 1, not {len(predictions)} and {level}.")
    random = np.random.default_rng(seed)
    size = len(predictions)
    scores = [metric(predictions.iloc[random.integers(size, size=size)]) for _ in range(resamples)]
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Are two models different, or is it chance? Only the photos count that one of them has right and the other wrong.

    If the models were equally good, each of those would fall to either side like a coin (McNemar's test, exact).

    Args:
        one: predictions of one model.
        other: predictions of another one for the same photos, in any order.

    Returns:
        ``only_one`` and ``only_other`` (photos that only this one has right), and ``p_value``: how often equally good
        models would differ that much.

    Raises:
        ValueError: if the tables are not of the same photos with the same true classes.
    """
    left, right = (table.set_index("path")[["target", "predicted"]] for table in (one, other))
    for table in (left, right):
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            raise ValueError(f"{twice} is there twice. Compare predictions of one part, such as test.")
    if len(apart := left.index.symmetric_difference(right.index)):
        raise ValueError(f"{len(apart)} photos are in one table only, such as {apart[0]}. Predict the same photos.")
    right = right.loc[left.index]
    if (other_class := left["target"] != right["target"]).any():
        raise ValueError(f"{other_class.idxmax()} has another true class in the other table. Use the same labels.")
    has_one, has_other = (table["target"] == table["predicted"] for table in (left, right))
    only_one, only_other = int((has_one & ~has_other).sum()), int((has_other & ~has_one).sum())
    differ = only_one + only_other
    p_value = float(binomtest(only_one, differ).pvalue) if differ else 1.0
    return {"only_one": only_one, "only_other": only_other, "p_value": p_value}


def grad_cam(model: nn.Module, photo: Image.Image | str | os.PathLike[str], *, target: int | None = None) -> np.ndarray:
    """Where in a photo does the model see a class?

    The last feature map, weighted by the gradient of the class's logit (Selvaraju et al., ICCV 2017, arXiv
    1610.02391). A hint, not a proof: the map of a 224-pixel photo has 7 x 7 places.

    Args:
        model: a convolutional classifier; it is left as it was.
        photo: upright RGB, or the path of a photo.
        target: index of the class; None for the one that is predicted.

    Returns:
        Shape (H, W) float32, 0..1, for the part of the photo that the model's transform keeps. All 0 if nothing
        speaks for the class.

    Raises:
        ValueError: if the model has no feature map to look at, or not that many classes.
    """
    photo = photo.convert("RGB") if isinstance(photo, Image.Image) else open_photo(photo)
    weight = next(model.parameters())
    inputs = transforms_for(model)(photo)[None].to(weight.device)
    maps: list[Tensor] = []
    tokens = False

    def keep(module: nn.Module, _: object, output: object) -> None:
        nonlocal tokens
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1 and output.shape[3] > 1:
            maps[:], tokens = [output], False
        elif isinstance(output, Tensor) and output.ndim == 3:
            tokens = True

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        with evaluating(model), torch.enable_grad():
            logits = model(inputs.requires_grad_())  # a gradient must flow, though all weights may be frozen
            index = int(logits[0].argmax()) if target is None else target
            if not maps or tokens:
                raise ValueError(
                    f"{getattr(model, 'arch', type(model).__name__)} has no feature map before its head, as "
                    "convolutional networks have. Use one of those, such as resnet18."
                )
            if not 0 <= index < logits.shape[1]:
                raise ValueError(f"target is {target}, but the model has {logits.shape[1]} outputs, from 0.")
            (gradient,) = torch.autograd.grad(logits[0, index], maps)
    finally:
        for hook in hooks:
            hook.remove()
    features = maps[0]
    if features.shape[1] == features.shape[2] != features.shape[3]:  # some of timm's have the channels last
        features, gradient = features.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True).relu().detach().float()
    heat = nn.functional.interpolate(heat, inputs.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    return (heat / heat.max().clamp(min=1e-12)).cpu().numpy()


def classes_of(predictions: pd.DataFrame) -> list[str]:
    """The classes in the model's order, which the probabilities' columns are in.

    Raises:
        ValueError: if there are no such columns.
    """
    names = [column.removeprefix("p_") for column in predictions.columns if column.startswith("p_")]
    if not names:
        raise ValueError("the table has no columns p_<class>. Use what predict returned, or a run's predictions.")
    return names
