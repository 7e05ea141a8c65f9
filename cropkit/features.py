"""Features: what a frozen backbone hands to the head, computed once for each photo and kept on disk."""

import copy
import hashlib
import json
import os
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cropkit.cache import file_hash, file_key, replace_file
from cropkit.datasets import CropDataset, photo_threads, transforms_for
from cropkit.distributed import from_first, gathered, rank, share, wait_for_all
from cropkit.memory import keep_freed_memory
from cropkit.models import evaluating, get_classifier
from cropkit.precision import PROBE, fastest_precision
from cropkit.progress import progress

SHARD = 64  # photos that are computed together and lie in one file
TOLERANCE = 0.02  # of a photo's features, by which bfloat16 may differ from float32; deep networks exceed it
AHEAD = 2  # shards that are decoded while another one is computed
PRECISIONS = (torch.bfloat16, torch.float32)
STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3)  # of the logistic head's fit to train; the inverse of regularisation


def extract_features(
    model: nn.Module,
    loader: DataLoader,
    *,
    cache: str | os.PathLike[str] | None = None,
    precision: torch.dtype | None = None,
    verify: bool = False,
) -> TensorDataset:
    """Run the backbone once over a loader's photos, in the order of its data set and without augmentation.

    With a cache the features are kept, and a later call computes only what is new. They belong to the weights before
    the head, to the transform, and to each photo as its path, size and time of change name it; where one of them
    changes, its features are computed anew. A call that is cut off loses at most `SHARD` photos.

    Args:
        model: from `create_model`, with a linear head. Its device does the work.
        loader: from `make_loaders`; its data set is read, its order and batch size do not matter.
        cache: a folder for what is kept, shared by all models and processes; None keeps nothing.
        precision: ``torch.float32`` or ``torch.bfloat16``; unless given, the one that was used for what the cache
            holds, else bfloat16 where it is faster on this machine and right to `TOLERANCE`, else float32.
        verify: read every photo again and compare its bytes too, not only size and time.

    Returns:
        Features of shape (N, D), float32, as the head receives them, and class indices of shape (N,).

    Raises:
        ValueError: if the model has no linear head or does not say what it expects of a photo.
        BadPhoto: if a photo cannot be read; it is named.
    """
    keep_freed_memory()
    _, head = get_classifier(model)
    dataset = copy.copy(cast(CropDataset, loader.dataset))
    dataset.transform = transforms_for(model)
    features = np.empty((len(dataset), head.in_features), np.float32)
    folder = None if cache is None else Path(cache) / f"features-{_fingerprint(model, head, dataset)}"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with nullcontext() if folder is None or rank() else FileLock(folder / ".lock"):
        wait_for_all()
        todo, keys = list(range(len(dataset))), []
        if folder is not None:
            # Taken before the photos are read: what is replaced meanwhile then has another key, and is computed anew.
            keys = [file_key(dataset.root / path) for path in dataset.paths]
            used = [dtype for dtype in PRECISIONS if _shards(folder, dtype)]
            precision = precision or next(iter(used), None)
            if precision is not None:
                todo = _read_shards(folder, precision, dataset, keys, features, verify=verify)
        if todo and precision is None:
            precision = feature_precision(model, loader)
        wait_for_all()  # all have read what there is, so all have the same list of what there is not
        mine = share(todo)
        shards = progress(_photos_ahead(dataset, mine), "extract features", total=-(-len(mine) // SHARD))
        for indices, photos in shards:
            assert precision is not None
            vectors = _before_head(model, head, photos, precision)
            features[indices] = vectors
            if folder is not None:
                hashes = [file_hash(dataset.root / dataset.paths[index]) for index in indices]
                _write_shard(folder, precision, [keys[index] for index in indices], hashes, vectors)
        features[todo] = gathered(torch.from_numpy(features[mine]), len(todo)).numpy()
    return TensorDataset(torch.from_numpy(features), torch.tensor(dataset.targets))


def _fingerprint(model: nn.Module, head: nn.Module, dataset: CropDataset) -> str:
    """16 hex digits that stand for everything but the photo: the weights before the head, and the transform."""
    digest = hashlib.sha256(f"{type(model)} {dataset.transform} {dataset.min_side} {dataset.cache is None}".encode())
    for name, module in model.named_modules():
        if module is not head:  # the same weights may be used in another way
            digest.update(f"{name} {type(module)} {module.extra_repr()}".encode())
    of_head = {id(tensor) for tensor in head.state_dict(keep_vars=True).values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in of_head:
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def feature_precision(model: nn.Module, loader: DataLoader) -> torch.dtype:
    """The faster precision for features of a loader's photos; bfloat16 only if it hands the head nearly the same."""
    return from_first(lambda: _feature_precision(model, loader))


def _feature_precision(model: nn.Module, loader: DataLoader) -> torch.dtype:
    _, head = get_classifier(model)
    dataset = copy.copy(cast(CropDataset, loader.dataset))
    dataset.transform = transforms_for(model)
    photos = torch.stack([dataset[index][0] for index in range(min(PROBE, len(dataset)))])
    if fastest_precision(model, photos, training=False) is torch.float32:
        return torch.float32
    exact, rough = (_before_head(model, head, photos, dtype) for dtype in (torch.float32, torch.bfloat16))
    errors = np.linalg.norm(exact - rough, axis=1) / np.linalg.norm(exact, axis=1)
    return torch.bfloat16 if errors.max() <= TOLERANCE else torch.float32


def _photos_ahead(dataset: CropDataset, todo: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
    """Shards of photos, decoded by threads while the caller computes with an earlier one."""
    pool = photo_threads()
    waiting: deque[tuple[list[int], list]] = deque()
    try:
        for start in range(0, len(todo), SHARD):
            indices = list(todo[start : start + SHARD])
            waiting.append((indices, [pool.submit(dataset.__getitem__, index) for index in indices]))
            if len(waiting) > AHEAD:
                yield _stack(*waiting.popleft())
        while waiting:
            yield _stack(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _stack(indices: list[int], photos: list) -> tuple[list[int], Tensor]:
    return indices, torch.stack([photo.result()[0] for photo in photos])


@torch.no_grad()
def _before_head(model: nn.Module, head: nn.Module, photos: Tensor, precision: torch.dtype) -> np.ndarray:
    """What the head receives for a batch, shape (N, D)."""
    device = next(model.parameters()).device
    photos = photos.to(device, memory_format=torch.channels_last)
    received: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: received.append(inputs[0]))
    try:
        with evaluating(model), torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            model(photos)
    finally:
        hook.remove()
    return received[0].float().cpu().numpy()


def _shards(folder: Path, precision: torch.dtype) -> list[Path]:
    return sorted(folder.glob(f"{str(precision).removeprefix('torch.')}-*.safetensors"))


def _write_shard(folder: Path, precision: torch.dtype, keys: list[str], hashes: list[str], vectors: np.ndarray) -> None:
    about = {"keys": json.dumps(keys), "hashes": json.dumps(hashes), "crc": str(zlib.crc32(vectors.tobytes()))}
    number = len(_shards(folder, precision))
    name = f"{str(precision).removeprefix('torch.')}-{rank()}"  # its own, as others write at the same time
    while (path := folder / f"{name}-{number:06d}.safetensors").exists():
        number += 1
    replace_file(path, lambda temporary: temporary.write_bytes(save({"features": torch.from_numpy(vectors)}, about)))


def _read_shards(
    folder: Path,
    precision: torch.dtype,
    dataset: CropDataset,
    keys: list[str],
    features: np.ndarray,
    *,
    verify: bool,
) -> list[int]:
    """Fill in the features that are kept; returns the indices of the photos that have none."""
    wanted: dict[str, list[int]] = {}  # a photo may be in the data set more than once
    for index, key in enumerate(keys):
        wanted.setdefault(key, []).append(index)
    missing = set(range(len(keys)))
    for shard in _shards(folder, precision):
        try:
            with safe_open(shard, "np") as opened:  # mapped into memory, not read whole
                vectors, about = opened.get_tensor("features"), opened.metadata()
            kept, hashes = json.loads(about["keys"]), json.loads(about["hashes"])
            if zlib.crc32(vectors.tobytes()) != int(about["crc"]) or len(kept) != len(vectors):
                raise ValueError("its sum is wrong")
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            shard.unlink(missing_ok=True)  # damaged: its photos are computed anew
            continue
        for key, sha, vector in zip(kept, hashes, vectors, strict=True):
            for index in wanted.get(key, ()):
                if not verify or file_hash(dataset.root / dataset.paths[index]) == sha:
                    features[index] = vector
                    missing.discard(index)
    return sorted(missing)


def fit_head(model: nn.Module, features: Mapping[str, TensorDataset]) -> pd.DataFrame:
    """Fit the model's head to features as a regularised logistic regression, in place.

    Of the strengths in `STRENGTHS` the one with the best validation accuracy is taken, of equals the one with the least
    loss; without a val part, the one in the middle.

    Args:
        model: an image classifier with a linear head for the features' classes.
        features: ``"train"`` and, if there is one, ``"val"``, as `extract_features` returns them.

    Returns:
        One row a strength: ``strength`` (the inverse of regularisation), ``train_accuracy``, ``val_accuracy`` and
        ``val_loss`` (NaN without val), ``chosen``.

    Raises:
        ValueError: if a class has no training photo.
    """
    _, head = get_classifier(model)
    vectors, targets = (tensor.numpy() for tensor in features["train"].tensors)
    known = set(range(len(head.weight)))
    if unknown := sorted(set(targets.tolist()) - known):
        raise ValueError(f"the features are of classes {unknown}, but the head has {len(known)} outputs.")
    absent = sorted(known - set(targets.tolist()))
    if absent:
        raise ValueError(f"classes {absent} have no training photos, so the head cannot learn them. Divide anew.")
    fits = []
    # A closer solution than `tol` says takes three times as long, and tells no more about the val photos.
    fit = LogisticRegression(fit_intercept=head.bias is not None, max_iter=300, tol=1e-3, warm_start=True)
    # One thread for products of matrices: NumPy's wait in a loop for work and so hold up scikit-learn's own, which on
    # two cores takes many times as long (benchmarks/RESULTS.md).
    with threadpool_limits(1, user_api="blas"):
        for strength in STRENGTHS:  # each from where the one before ended, which is near
            fits.append(copy.deepcopy(fit.set_params(C=strength).fit(vectors, targets)))
    scores, losses, best = [np.nan] * len(fits), [np.nan] * len(fits), len(fits) // 2
    if "val" in features:
        val, answers = (tensor.numpy() for tensor in features["val"].tensors)
        scores = [fit.score(val, answers) for fit in fits]
        losses = [log_loss(answers, fit.predict_proba(val), labels=fit.classes_) for fit in fits]
        best = max(range(len(fits)), key=lambda number: (scores[number], -losses[number]))
    weight, bias = fits[best].coef_, fits[best].intercept_
    if len(weight) == 1:  # of two classes scikit-learn keeps the difference
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        if head.bias is not None:
            head.bias.copy_(torch.from_numpy(bias))
    return pd.DataFrame(
        {
            "strength": STRENGTHS,
            "train_accuracy": [fit.score(vectors, targets) for fit in fits],
            "val_accuracy": scores,
            "val_loss": losses,
            "chosen": [number == best for number in range(len(fits))],
        }
    )
