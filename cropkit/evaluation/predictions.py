"""What a model says about photos, labelled or not, as one table."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cropkit.data.catalog import join_metadata, list_files
from cropkit.data.datasets import CropDataset, preprocessing_of
from cropkit.evaluation.metrics import classes_of
from cropkit.models.surgery import check_head, get_classifier, try_resolution
from cropkit.training.features import extract_features
from cropkit.training.guards import explained
from cropkit.training.inference import answers, mirrors
from cropkit.training.memory import keep_freed_memory
from cropkit.training.precision import precision_of
from cropkit.training.processes import collected, gathered


def predict(
    model: nn.Module,
    photos: DataLoader | str | os.PathLike[str],
    *,
    resolution: int | None = None,
    mirror: bool | None = None,
    cache: str | os.PathLike[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """What a model says about every photo of a loader, or below a folder.

    The model computes as it was trained: its precision, its resolution, and photo and mirror image together where its
    head was fitted so. A photo has one answer, whatever else is predicted with it.

    Args:
        model: an image classifier with one output a class; for a folder one that knows its ``class_names``, as from
            `load_model`.
        photos: a loader from `make_loaders`, which is read in order and without augmentation; or a folder of photos
            without labels, nested as they may be.
        resolution: pixels of the square that the network sees; None is the model's own.
        mirror: whether the answer is the mean of those for the photo and its mirror image; None is the model's own.
        cache: where `extract_features` keeps features. Photos whose features are there are not opened again: worth it
            where only a head has learned, and of no use where the whole model has.
        metadata: of a folder, a table of more facts about its photos, see `scan`; a model that looks round the
            crosshair needs it.

    Returns:
        One row a photo, in the order of the loader's data set or of the paths: ``path``, ``predicted`` (class name),
        ``probability`` (of it), one column ``p_<class>`` a class with its probability, and ``root`` (the folder that
        the path is relative to). Of a loader also ``target`` (class name) and ``loss`` (cross-entropy, natural
        logarithm); of a folder also ``problem`` (why a file cannot be read, else ""; then nothing is predicted).

    Raises:
        HeadMismatch: if the model's outputs are not the data's classes.
        FileNotFoundError: if there is no such folder.
        ValueError: if a folder holds no photo, the model does not know its classes, or the network takes no pictures of
            this resolution.

    Example:
        >>> predictions = predict(model, loaders["val"])
        >>> list(predictions.columns)
        ['path', 'target', 'predicted', 'probability', 'loss', 'p_apple', 'p_pear', 'root']
        >>> len(predict(model, "photos"))
        21
    """
    if not isinstance(photos, DataLoader):
        return _predict_folder(model, Path(photos).expanduser(), resolution, mirror, cache, metadata)
    dataset: Any = photos.dataset
    if not hasattr(dataset, "class_names"):
        raise ValueError(
            f"predict needs photos with class names, as from make_loaders, not a {type(dataset).__name__}."
        )
    names: list[str] = dataset.class_names
    log_probabilities = _log_probabilities(model, photos, names, resolution, mirror, cache)
    targets = torch.tensor(dataset.targets)
    table = _table(dataset, names, log_probabilities)
    table.insert(1, "target", [names[i] for i in dataset.targets])
    table.insert(4, "loss", -log_probabilities.gather(1, targets[:, None])[:, 0].numpy())
    return table


def _predict_folder(
    model: nn.Module,
    root: Path,
    resolution: int | None,
    mirror: bool | None,
    cache: str | os.PathLike[str] | None,
    metadata: str | os.PathLike[str] | None,
) -> pd.DataFrame:
    names = getattr(model, "class_names", None)
    if names is None:
        raise ValueError("the model does not know its classes. Load it by load_model, or set model.class_names.")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder.")
    paths = sorted(list_files(root)[0])
    if not paths:
        raise ValueError(f"{root}: holds no photos.")
    catalog = pd.DataFrame({"path": paths, "root": str(root)})
    catalog = catalog if metadata is None else join_metadata(catalog, metadata)
    dataset = CropDataset(catalog, list(names), preprocessing_of(model))
    log_probabilities = _log_probabilities(model, DataLoader(dataset), list(names), resolution, mirror, cache)
    table = _table(dataset, list(names), log_probabilities)
    problems = collected(dataset.problems)
    problem = table["path"].map(lambda path: problems.get(path, ""))
    table.insert(3, "problem", problem)
    table.loc[problem != "", "predicted"] = ""
    table.loc[problem != "", ["probability", *(f"p_{name}" for name in names)]] = float("nan")
    return table


@explained
def _log_probabilities(
    model: nn.Module,
    loader: DataLoader,
    names: list[str],
    resolution: int | None,
    mirror: bool | None,
    cache: str | os.PathLike[str] | None,
) -> Tensor:
    """Of all photos of a loader, shape (N, K), in all processes."""
    check_head(model, names)
    if resolution is not None:
        try_resolution(model, resolution)
    keep_freed_memory()
    both = mirrors(model) if mirror is None else mirror
    if cache is None:
        flips = (False, True)[: 1 + both]
        found = answers(model, loader, precision_of(model), "predict", flips=flips, resolution=resolution)
    else:
        how: Any = {"resolution": resolution, "mirror": both, "precision": precision_of(model)}
        features = extract_features(model, loader, cache=cache, **how).one_a_photo()
        found = answers(get_classifier(model)[1], DataLoader(features), "float32", "predict")
    mine = torch.cat([torch.empty(0, len(names)), *(logits.cpu() for logits, _ in found)])
    return gathered(mine, len(loader.dataset)).log_softmax(dim=1)  # type: ignore[arg-type]


def average(*predictions: pd.DataFrame) -> pd.DataFrame:
    """Let several models answer together: the mean of their probabilities for each photo.

    Models that differ, as in backbone or resolution, err on different photos, so their mean errs less often.

    Args:
        *predictions: each from `predict`, of the same photos and classes, in any order.

    Returns:
        As from `predict`, in the order of the first table; ``loss`` is that of the mean probability.

    Raises:
        ValueError: if there are no tables, or they are of other photos, other classes or other labels.

    Example:
        >>> one, other = predict(model, loaders["val"]), predict(model, loaders["val"], mirror=True)
        >>> list(average(one, other).columns) == list(one.columns)
        True
    """
    if not predictions:
        raise ValueError("there are no predictions to average.")
    first = predictions[0]
    names, probabilities = classes_of(first), []
    same = [column for column in ("path", "target", "problem") if column in first]
    for number, table in enumerate(predictions, start=1):
        if classes_of(table) != names:
            raise ValueError(f"table {number} has other classes than the first: {', '.join(classes_of(table))}.")
        if not table["path"].is_unique or set(table["path"]) != set(first["path"]):
            odd = (
                sorted(set(table["path"]) ^ set(first["path"]))
                or table.loc[table["path"].duplicated(), "path"].tolist()
            )
            raise ValueError(
                f"table {number} is of other photos than the first, such as {odd[0]}. Predict the same ones."
            )
        table = table.set_index("path").loc[first["path"]].reset_index()
        if not table.reindex(columns=same).equals(first[same].reset_index(drop=True)):
            raise ValueError(f"table {number} has other labels than the first for the same photos.")
        probabilities.append(table[[f"p_{name}" for name in names]].to_numpy())
    return answered_by(first, np.mean(probabilities, axis=0))


def answered_by(first: pd.DataFrame, mean: np.ndarray) -> pd.DataFrame:
    """A table of predictions with other probabilities, shape (N, K), and what follows from them."""
    names = classes_of(first)
    answer = first.copy()
    answer[[f"p_{name}" for name in names]] = mean
    readable = ~np.isnan(mean).any(axis=1)
    answer.loc[readable, "predicted"] = [names[k] for k in mean[readable].argmax(axis=1)]
    answer["probability"] = mean.max(axis=1)
    if "target" in first:
        of_target = mean[np.arange(len(mean)), [names.index(target) for target in first["target"]]]
        answer["loss"] = -np.log(np.maximum(of_target, np.finfo(np.float32).tiny))  # 0 would be rounded from a tiny one
    return answer


def _table(dataset: Any, names: list[str], log_probabilities: Tensor) -> pd.DataFrame:
    best = log_probabilities.max(dim=1)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "path": dataset.paths,
                    "predicted": [names[i] for i in best.indices.tolist()],
                    "probability": best.values.exp().numpy(),
                }
            ),
            pd.DataFrame(log_probabilities.exp().numpy(), columns=[f"p_{name}" for name in names]),
            pd.DataFrame({"root": dataset.roots}),
        ],
        axis=1,
    )
