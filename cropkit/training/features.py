"""Features: what a frozen backbone passes to the head, computed once for each photo and kept on disk."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from cropkit.data.copies import keep, photo_key
from cropkit.data.datasets import CropDataset, made_ready
from cropkit.data.files import DamagedCheckpoint, read_sealed, seal
from cropkit.models.surgery import check_head, get_classifier, try_resolution
from cropkit.training.guards import explained
from cropkit.training.inference import answers, batch_size_for
from cropkit.training.memory import keep_freed_memory
from cropkit.training.precision import resolve_precision
from cropkit.training.processes import gathered, rank, share, wait_for_all

SHARD = 4  # batches whose features are in one file: what is lost where a call is cut off
C_VALUES = (0.003, 0.01, 0.03, 0.1, 0.3)  # of the logistic head: the inverse of the strength of regularisation


class Features(TensorDataset):
    """Features of shape (N, D) and class indices of shape (N,), as a data set.

    Attributes:
        class_names: a class's index is its place in this list.
        precision: in which the backbone computed them.
        preprocessing: how the photos were made ready; None if that is not known.
        mirror: whether the second half are the features of the mirror images, in the same order.

    Example:
        >>> features = Features(torch.rand(2, 1280), torch.tensor([0, 1]), ["apple", "pear"], "float32")
        >>> vector, target = features[1]
        >>> vector.shape, features.class_names[target]
        (torch.Size([1280]), 'pear')
    """

    def __init__(
        self,
        vectors: Tensor,
        targets: Tensor,
        class_names: Sequence[str],
        precision: str,
        *,
        preprocessing: dict[str, Any] | None = None,
        mirror: bool = False,
    ) -> None:
        super().__init__(vectors, targets)
        self.class_names, self.precision = list(class_names), precision
        self.preprocessing, self.mirror = preprocessing, mirror

    def one_a_photo(self) -> "Features":
        """One row a photo, the mean of it and its mirror image: a linear head gives it the mean of their answers."""
        if not self.mirror:
            return self
        vectors, targets = self.tensors
        count = len(targets) // 2
        return Features(
            (vectors[:count] + vectors[count:]) / 2,
            targets[:count],
            self.class_names,
            self.precision,
            preprocessing=self.preprocessing,
        )

    def tell(self, model: nn.Module) -> None:
        """Let a model whose head learned from these features carry how they came about, so that it predicts alike."""
        facts: dict[str, Any] = {"class_names": self.class_names, "precision": self.precision}
        if not isinstance(model, nn.Linear):  # a head alone sees no photos
            facts |= {"mirror": self.mirror} | ({"preprocessing": self.preprocessing} if self.preprocessing else {})
        model.__dict__.update(facts)


@explained
def extract_features(
    model: nn.Module,
    loader: DataLoader,
    *,
    cache: str | os.PathLike[str] | None = None,
    precision: str = "auto",
    resolution: int | None = None,
    mirror: bool = False,
) -> Features:
    """Run the backbone once over a loader's photos, in the order of its data set and without augmentation.

    With a cache the features are kept, and a later call computes only what is new. They belong to the weights before
    the head, to the transform, and to each photo as its path, size and time of change name it; where one of them
    changes, its features are computed anew. A call that is cut off loses at most `SHARD` batches.

    Args:
        model: from `create_model`, with a linear head. Its device does the work.
        loader: from `make_loaders`; its data set is read, its order and batch size do not matter.
        cache: a folder for what is kept, shared by all models and processes; None keeps nothing.
        precision: see `resolve_precision`.
        resolution: pixels of the square that the network sees; None is the model's own.
        mirror: also of each photo's mirror image, which takes twice as long.

    Returns:
        Features of shape (N, D), float32, as the head receives them, and class indices of shape (N,). With `mirror`
        2 N rows: of the photos, then of their mirror images.

    Raises:
        ValueError: if the model has no linear head, does not say what it expects of a photo, or takes no pictures of
            this resolution; or if the loader's data set is not of photos.
        BadPhoto: if a photo cannot be read; it is named.

    Example:
        >>> features = extract_features(model, loaders["train"])
        >>> features.tensors[0].shape, features.class_names
        (torch.Size([13, 1024]), ['apple', 'pear'])
    """
    keep_freed_memory()
    _, head = get_classifier(model)
    preprocessing = try_resolution(model, resolution)
    if not isinstance(loader.dataset, CropDataset):
        raise ValueError(f"features are of photos, as from make_loaders, not of a {type(loader.dataset).__name__}.")
    dataset = cast(CropDataset, made_ready(loader.dataset, preprocessing))
    precision = resolve_precision(precision, model, training=False)
    folder = None if cache is None else Path(cache) / f"features-{_fingerprint(model, head, preprocessing)}-{precision}"
    flips = [(False, folder), (True, folder and folder.with_name(f"{folder.name}-mirror"))][: 1 + mirror]
    vectors = [_extract(model, dataset, loader.num_workers, where, precision, flip) for flip, where in flips]
    targets = torch.tensor(dataset.targets).repeat(len(flips))
    return Features(
        torch.cat(vectors), targets, dataset.class_names, precision, preprocessing=preprocessing, mirror=mirror
    )


def _extract(
    model: nn.Module, dataset: CropDataset, num_workers: int, folder: Path | None, precision: str, flip: bool
) -> Tensor:
    """Features of all photos of a data set, or of their mirror images, shape (N, D); what is kept is not computed."""
    vectors = torch.zeros(len(dataset), get_classifier(model)[1].in_features)
    # Taken before the photos are read: what is replaced meanwhile then has another key, and is computed anew.
    keys = (
        [] if folder is None else [photo_key(dataset.file(index), dataset.cut(index)) for index in range(len(dataset))]
    )
    with _locked(folder):
        wait_for_all()
        kept = {} if folder is None else _read_kept(folder, set(keys))
        todo = [index for index in range(len(dataset)) if not keys or keys[index] not in kept]
        for index, key in enumerate(keys):
            if key in kept:
                vectors[index] = kept[key]
        wait_for_all()  # all have read what there is, so all have the same list of what there is not
        mine = share(todo)
        missing = DataLoader(Subset(dataset, todo), num_workers=num_workers)
        done, shard_size = 0, SHARD * batch_size_for(next(model.parameters()).device)
        side = dataset.preprocessing["crop_size"]
        images = "extract features of mirror images" if flip else "extract features"
        for batch, _ in answers(model, missing, precision, images, flips=[flip], resolution=side, features=True):
            vectors[list(mine[done : done + len(batch)])] = batch.cpu()
            done += len(batch)
            if folder is not None and (done % shard_size == 0 or done == len(mine)):
                shard = list(mine[(done - 1) // shard_size * shard_size : done])
                _keep_shard(folder, [keys[index] for index in shard], vectors[shard])
        vectors[todo] = gathered(vectors[list(mine)], len(todo))
    return vectors


def features_for_head(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    *,
    cache: str | os.PathLike[str] | None = None,
    precision: str = "auto",
    mirror: bool = False,
) -> dict[str, Features]:
    """`extract_features` of train and, if there is one, val: what a head is fitted to and chosen by."""
    splits = [split for split in ("train", "val") if split in loaders]
    return {s: extract_features(model, loaders[s], cache=cache, precision=precision, mirror=mirror) for s in splits}


def _locked(folder: Path | None) -> FileLock | nullcontext:
    """One process at a time computes for a folder; none waits where the folder cannot be written."""
    if folder is None or rank():
        return nullcontext()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError:
        return nullcontext()
    return FileLock(folder / ".lock")


def _fingerprint(model: nn.Module, head: nn.Module, preprocessing: dict[str, Any]) -> str:
    """16 hex digits that stand for everything but the photo: the weights before the head, and the transform."""
    device = next(model.parameters()).device
    # Another processor, another size of batch or another torch rounds in another way.
    computed_by = f"{device.type} {batch_size_for(device)} {torch.__version__}"
    digest = hashlib.sha256(f"{type(model)} {preprocessing} {computed_by}".encode())
    for name, module in model.named_modules():
        if module is not head:  # the same weights may be used in another way
            digest.update(f"{name} {type(module)} {module.extra_repr()}".encode())
    of_head = {id(tensor) for tensor in head.state_dict(keep_vars=True).values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in of_head:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _keep_shard(folder: Path, keys: list[str], vectors: Tensor) -> None:
    name = hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    keep(folder / f"{name}.safetensors", seal({"features": vectors.contiguous()}, {"keys": keys}))


def _read_kept(folder: Path, wanted: set[str]) -> dict[str, Tensor]:
    """The features of the wanted photos that are kept; a damaged file counts as none."""
    found: dict[str, Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            tensors, about = read_sealed(shard)
        except (DamagedCheckpoint, OSError):
            continue
        found |= {k: row for k, row in zip(about["keys"], tensors["features"], strict=True) if k in wanted}
    return found


def fit_head(model: nn.Module, features: Mapping[str, Features]) -> pd.DataFrame:
    """Fit the model's head to features as a regularised logistic regression, in place.

    Of the values of C in `C_VALUES` the one with the best validation accuracy is taken, of equals the one with the
    least loss; without val features, the one in the middle.

    Args:
        model: an image classifier with a linear head for the features' classes. It gets the features' ``class_names``,
            ``precision``, ``preprocessing`` and ``mirror``, so that `predict` computes as the head was fitted.
        features: ``"train"`` and, if there is one, ``"val"``, as `extract_features` returns them. Where they hold
            mirror images, these are fitted too, and val counts the mean of both answers.

    Returns:
        One row a value: ``C`` (the inverse of the strength of regularisation), ``train_accuracy``, ``val_accuracy``
        and ``val_loss`` (NaN without val), ``chosen``.

    Raises:
        ValueError: if a class has no training photo.

    Example:
        >>> features = {split: extract_features(model, loaders[split]) for split in ("train", "val")}
        >>> fit_head(model, features)["C"].tolist()
        [0.003, 0.01, 0.03, 0.1, 0.3]
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from threadpoolctl import threadpool_limits

    _, head = get_classifier(model)
    train = features["train"]
    vectors, targets = (tensor.numpy() for tensor in train.tensors)
    known = set(range(len(head.weight)))
    if unknown := sorted(set(targets.tolist()) - known):
        raise ValueError(f"the features are of classes {unknown}, but the head has {len(known)} outputs.")
    if absent := sorted(known - set(targets.tolist())):
        raise ValueError(f"classes {absent} have no training photos, so the head cannot learn them. Split again.")
    check_head(model, train.class_names)
    train.tell(model)
    rows, heads = [], []
    # One thread for products of matrices: NumPy's wait in a loop for work and so hold up scikit-learn's own, which on
    # two cores takes many times as long (benchmarks/RESULTS.md).
    with threadpool_limits(1, user_api="blas"):
        # A closer solution than `tol` says takes three times as long, and tells no more about the val photos.
        fit = LogisticRegression(fit_intercept=head.bias is not None, max_iter=300, tol=1e-3, warm_start=True)
        for c in C_VALUES:  # each from where the one before ended, which is near
            fit.set_params(C=c).fit(vectors, targets)
            row = {"C": c, "train_accuracy": fit.score(vectors, targets), "val_accuracy": np.nan, "val_loss": np.nan}
            if "val" in features:
                val, val_targets = (tensor.numpy() for tensor in features["val"].one_a_photo().tensors)
                row["val_accuracy"] = fit.score(val, val_targets)
                row["val_loss"] = log_loss(val_targets, fit.predict_proba(val), labels=fit.classes_)
            rows.append(row)
            heads.append((fit.coef_.copy(), fit.intercept_.copy()))
    best = len(rows) // 2
    if "val" in features:
        best = max(range(len(rows)), key=lambda number: (rows[number]["val_accuracy"], -rows[number]["val_loss"]))
    weight, bias = heads[best]
    if len(weight) == 1:  # of two classes scikit-learn keeps the difference
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))
    return pd.DataFrame(rows).assign(chosen=[number == best for number in range(len(rows))])
