"""What a model says about photos, labelled or not, as one table."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cropkit.data.catalog import list_files
from cropkit.data.datasets import CropDataset, preprocessing_of
from cropkit.models.surgery import check_head
from cropkit.training.guards import explained
from cropkit.training.inference import answers
from cropkit.training.memory import keep_freed_memory
from cropkit.training.precision import precision_of
from cropkit.training.processes import collected, gathered


def predict(model: nn.Module, photos: DataLoader | str | os.PathLike[str]) -> pd.DataFrame:
    """What a model says about every photo of a loader, or below a folder.

    The model computes in the precision in which it was trained. A photo has one answer, whatever else is predicted
    with it.

    Args:
        model: an image classifier with one output a class; for a folder one that knows its ``class_names``, as from
            `load_model`.
        photos: a loader from `make_loaders`, which is read in order and without augmentation; or a folder of photos
            without labels, nested as they may be.

    Returns:
        One row a photo, in the order of the loader's data set or of the paths: ``path``, ``predicted`` (class name),
        ``probability`` (of it), one column ``p_<class>`` a class with its probability, and ``root`` (the folder that
        the path is relative to). Of a loader also ``target`` (class name) and ``loss`` (cross-entropy, natural
        logarithm); of a folder also ``problem`` (why a file cannot be read, else ""; then nothing is predicted).

    Raises:
        HeadMismatch: if the model's outputs are not the data's classes.
        FileNotFoundError: if there is no such folder.
        ValueError: if a folder holds no photo, or the model does not know its classes.

    Example:
        >>> predictions = predict(model, loaders["val"])
        >>> list(predictions.columns)
        ['path', 'target', 'predicted', 'probability', 'loss', 'p_apple', 'p_pear', 'root']
        >>> len(predict(model, "photos"))
        21
    """
    if not isinstance(photos, DataLoader):
        return _predict_folder(model, Path(photos).expanduser())
    dataset: Any = photos.dataset
    if not hasattr(dataset, "class_names"):
        raise ValueError(
            f"predict needs photos with class names, as from make_loaders, not a {type(dataset).__name__}."
        )
    names: list[str] = dataset.class_names
    log_probabilities = _log_probabilities(model, photos, names)
    targets = torch.tensor(dataset.targets)
    table = _table(dataset, names, log_probabilities)
    table.insert(1, "target", [names[i] for i in dataset.targets])
    table.insert(4, "loss", -log_probabilities.gather(1, targets[:, None])[:, 0].numpy())
    return table


def _predict_folder(model: nn.Module, root: Path) -> pd.DataFrame:
    names = getattr(model, "class_names", None)
    if names is None:
        raise ValueError("the model does not know its classes. Load it by load_model, or set model.class_names.")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder.")
    paths = sorted(list_files(root)[0])
    if not paths:
        raise ValueError(f"{root}: holds no photos.")
    catalog = pd.DataFrame({"path": paths, "root": str(root)})
    dataset = CropDataset(catalog, list(names), preprocessing_of(model))
    table = _table(dataset, list(names), _log_probabilities(model, DataLoader(dataset), list(names)))
    problems = collected(dataset.problems)
    problem = table["path"].map(lambda path: problems.get(path, ""))
    table.insert(3, "problem", problem)
    table.loc[problem != "", "predicted"] = ""
    table.loc[problem != "", ["probability", *(f"p_{name}" for name in names)]] = float("nan")
    return table


@explained
def _log_probabilities(model: nn.Module, loader: DataLoader, names: list[str]) -> Tensor:
    """Of all photos of a loader, shape (N, K), in all processes."""
    check_head(model, names)
    keep_freed_memory()
    logits = [logits.cpu() for logits, _ in answers(model, loader, precision_of(model), "predict")]
    mine = torch.cat([torch.empty(0, len(names)), *logits])
    return gathered(mine, len(loader.dataset)).log_softmax(dim=1)  # type: ignore[arg-type]


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
