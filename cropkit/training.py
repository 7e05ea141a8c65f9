"""The training loop, as the lesson shows it, and what is read off a trained model."""

import copy
import functools
import math
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Subset

from cropkit.catalog import list_files
from cropkit.checkpoints import Checkpoint, Position
from cropkit.datasets import CropDataset, EpochSampler, photo_threads, transforms_for
from cropkit.distributed import average_gradients, collected, copy_from_first, from_first, gathered, ranks, share, total
from cropkit.features import extract_features, fit_head
from cropkit.memory import keep_freed_memory
from cropkit.models import check_head, evaluating, freeze_batchnorm, get_classifier, preprocessing_of, unfreeze
from cropkit.photos import BadPhoto, open_photo
from cropkit.precision import PROBE, fastest_precision
from cropkit.progress import progress

LP_FT_RATE = 5e-4  # the highest rate of the backbone; the head learns three times as fast
DIARY_RATE = 0.001
HISTORY = ["epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]
HINT = "Make the model anew and try a tenth of the learning rate."
P = ParamSpec("P")
R = TypeVar("R")


def _explained(
    function: Callable[Concatenate[nn.Module, DataLoader, P], R],
) -> Callable[Concatenate[nn.Module, DataLoader, P], R]:
    """Say what to do where memory runs out or a process that reads photos is killed."""

    @functools.wraps(function)
    def explained(model: nn.Module, loader: DataLoader, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(model, loader, *args, **kwargs)
        except (MemoryError, RuntimeError, ConnectionError, EOFError) as error:
            size = getattr(loader, "batch_size", None) or 1
            torn = isinstance(error, ConnectionError | EOFError) and getattr(loader, "num_workers", 0) > 0
            if torn or re.search(r"DataLoader worker \(pid", str(error)):  # is killed, or exited unexpectedly
                raise RuntimeError(
                    f"a process that reads photos was killed, often because memory ran out ({error}). "
                    "Make the loaders with num_workers=0."
                ) from error
            if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
                traceback.clear_frames(error.__traceback__)  # they hold the batch
                raise MemoryError(
                    f"a batch of {size} photos does not fit into memory. Make the loaders with a smaller batch_size, "
                    f"such as {max(1, size // 2)}."
                ) from error
            raise

    return explained


def fit(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    optimizer: Optimizer,
    *,
    epochs: int,
    scheduler: LRScheduler | None = None,
    criterion: nn.Module | None = None,
    precision: torch.dtype = torch.float32,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train a model and leave the weights of its best epoch in it.

    Every epoch trains on ``loaders["train"]``, then evaluates on ``loaders["val"]``. The best epoch is the one of the
    highest validation accuracy, the first of equals; without a val loader it is the last one. What
    `freeze_backbone` froze stays as it is. Ctrl-C ends it early: the best epoch so far is in the model, and
    ``attrs["interrupted"]`` is True.

    Args:
        model: an image classifier; its device is where the training happens.
        loaders: ``"train"`` and, if there is one, ``"val"``, as from `make_loaders`.
        optimizer: over exactly the weights that are to learn.
        epochs: passes over the training photos, >= 1.
        scheduler: stepped once an epoch, after it; one-cycle and cyclic ones after every batch.
        criterion: the loss, a mean over a batch; cross-entropy unless given.
        precision: ``torch.bfloat16`` runs the forward pass of training in it (autocast); evaluation is float32 always.
        checkpoint: saves the training as it goes, and makes the same call go on where it was cut off.

    Returns:
        One row an epoch: ``epoch`` (from 1), ``learning_rate`` (of the last parameter group, the head's where there are
        several), ``train_loss``, ``train_accuracy``, ``val_loss``, ``val_accuracy`` (means over photos; NaN without
        val), ``seconds``.

    Raises:
        HeadMismatch: if the model's outputs are not the data's classes.
        ValueError: if the optimiser lacks trainable weights or holds some that are not the model's, or the scheduler
            drives another optimiser.
        FloatingPointError: if the loss is no longer a finite number; names the step and its photos.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; train for at least one.")
    if (class_names := _class_names(loaders["train"])) is not None:  # a data set of bare tensors has none
        check_head(model, class_names)
    check_optimizer(model, optimizer, scheduler)
    keep_freed_memory()
    copy_from_first(model)
    criterion = criterion or nn.CrossEntropyLoss()
    each_step = isinstance(scheduler, OneCycleLR | CyclicLR)
    position = Position() if checkpoint is None else checkpoint.attach(model, optimizer, scheduler, loaders["train"])
    best_weights, interrupted = None, False
    try:
        for epoch in range(position.epoch, epochs + 1):
            start = time.perf_counter()
            train_loss, train_accuracy = train_one_epoch(
                model,
                loaders["train"],
                optimizer,
                criterion,
                precision=precision,
                scheduler=scheduler if each_step else None,
                position=position,
                checkpoint=checkpoint,
                description=f"epoch {epoch}/{epochs}",
            )
            broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
            if broken:  # the last batch's step is not followed by a loss that would show it
                raise FloatingPointError(f"{broken[0]} is no longer finite after epoch {epoch}. {HINT}")
            val_loss, val_accuracy = float("nan"), float("nan")
            if "val" in loaders:
                val_loss, val_accuracy = evaluate(model, loaders["val"], criterion)
            if val_accuracy > position.best_accuracy or "val" not in loaders:
                position.best_accuracy = val_accuracy
                if checkpoint is not None:
                    checkpoint.save_best(model, {"epoch": epoch, "val_loss": val_loss, "val_accuracy": val_accuracy})
                else:  # a copy: state_dict() alone refers to the weights that the next epoch changes
                    best_weights = copy.deepcopy(model.state_dict())
            if scheduler is not None and not each_step:
                scheduler.step()
            position.finish_epoch(
                {
                    "epoch": epoch,
                    "learning_rate": position.learning_rate,
                    "train_loss": train_loss,
                    "train_accuracy": train_accuracy,
                    "val_loss": val_loss,
                    "val_accuracy": val_accuracy,
                    "seconds": time.perf_counter() - start,
                }
            )
            if checkpoint is not None:
                checkpoint.save()
    except KeyboardInterrupt:
        interrupted = True
    if checkpoint is not None:
        checkpoint.running = False
    if checkpoint is not None and position.rows:
        checkpoint.load_best(model)
    elif best_weights is not None:
        model.load_state_dict(best_weights)
    history = pd.DataFrame(position.rows, columns=HISTORY)
    history.attrs["interrupted"] = interrupted
    return history


@_explained
def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    criterion: nn.Module,
    *,
    precision: torch.dtype = torch.float32,
    scheduler: LRScheduler | None = None,
    position: Position | None = None,
    checkpoint: Checkpoint | None = None,
    description: str = "train",
) -> tuple[float, float]:
    """One pass over the training photos, a step of the optimiser for each batch.

    Args:
        model: an image classifier.
        loader: of the training photos.
        optimizer: over the weights that are to learn.
        criterion: the loss, a mean over a batch.
        precision: as in `fit`.
        scheduler: stepped after every batch.
        position: where to begin, and what is counted up; a new epoch unless given.
        checkpoint: told after every step.
        description: of the progress bar.

    Returns:
        Loss and accuracy, means over the photos, each as measured just before its batch's step.

    Raises:
        FloatingPointError: if the loss is no longer a finite number; names the step and its photos.
    """
    device = next(model.parameters()).device
    model.train()
    here = position or Position()
    if here.batches == 0:
        here.learning_rate = optimizer.param_groups[-1]["lr"]
    if position is not None and isinstance(sampler := getattr(loader, "sampler", None), EpochSampler):
        sampler.epoch, sampler.skip = here.epoch, here.batches * (loader.batch_size or 1)
    for photos, targets in progress(loader, description):
        photos, targets = photos.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            logits = model(photos)
        _check_targets(targets, logits, lambda: _photos_of(loader, here.batches))
        loss = criterion(logits.float(), targets)
        if not torch.isfinite(loss):
            rate = optimizer.param_groups[-1]["lr"]
            raise FloatingPointError(
                f"the loss became {loss.item()} in step {here.batches + 1} of epoch {here.epoch} at learning rate "
                f"{rate:g}{_photos_of(loader, here.batches)}. {HINT}"
            )
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model, len(targets))
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        correct = (logits.argmax(dim=1) == targets).sum().item()
        loss_sum, correct, count = total(loss.item() * len(targets), correct, len(targets))
        here.loss_sum += loss_sum
        here.correct += int(correct)
        here.count += int(count)
        here.batches += 1
        if checkpoint is not None:
            checkpoint.step_done()
    return here.loss_sum / here.count, here.correct / here.count


def _check_targets(targets: Tensor, logits: Tensor, where: Callable[[], str] = str) -> None:
    """Refuse class indices that the model does not have; cross-entropy leaves out those of -100 in silence."""
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"class index {low if low < 0 else high} is out of range{where()}: the model tells {logits.shape[1]} "
            f"classes apart, 0 to {logits.shape[1] - 1}. Correct the labels, or give the model a head for all classes."
        )


def _photos_of(loader: DataLoader, batch: int) -> str:
    """The photos of a batch of the epoch that is going on, where the loader can tell."""
    sampler, dataset = getattr(loader, "sampler", None), getattr(loader, "dataset", None)
    if not isinstance(sampler, EpochSampler) or not isinstance(dataset, CropDataset):
        return ""
    size = loader.batch_size or 1
    order = sampler.order(sampler.epoch - 1)  # the sampler has gone on to the next one
    paths = [dataset.paths[index] for index in order[batch * size : (batch + 1) * size]]
    return f", on {', '.join(paths[:4])}" + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")


def fine_tune(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    *,
    epochs: int,
    recipe: str = "lp_ft",
    cache: str | os.PathLike[str] | None = None,
    learning_rate: float | None = None,
    precision: torch.dtype | None = None,
    feature_precision: torch.dtype | None = None,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Let every weight learn, by one of two recipes; `fit` is the loop of both.

    ``"lp_ft"`` first fits the head to the features of the frozen backbone, so that no random head pushes the backbone
    about (Kumar et al., ICLR 2022, arXiv 2202.10054). Then everything learns: AdamW, the head three times as fast as
    the backbone, both rates rising and falling once over all steps (one-cycle), label smoothing, BatchNorm's statistics
    as the pretraining left them.

    ``"diary"`` is the competition diary's: SGD 0.001 with momentum 0.9, a tenth of the rate after every 7 epochs,
    float32, BatchNorm in train mode. It ran 25 epochs.

    Args:
        model: from `create_model`, its head made for the classes.
        loaders: from `make_loaders`.
        epochs: passes over the training photos, >= 1.
        recipe: ``"lp_ft"`` or ``"diary"``.
        cache: passed on to `extract_features`.
        learning_rate: the diary's first one, 0.001 unless given; lp_ft's highest of the backbone, 0.0005 unless given.
        precision: of lp_ft's training steps; the faster one on this machine unless given.
        feature_precision: of the features that lp_ft's head is fitted to, as in `extract_features`.
        checkpoint: as in `fit`.

    Returns:
        What `fit` returns. ``attrs`` holds ``recipe``, ``precision`` and the ``seconds_before`` the first epoch.

    Raises:
        ValueError: if the recipe is unknown, and as `fit` does.
    """
    if recipe not in ("lp_ft", "diary"):
        raise ValueError(f"recipe {recipe!r} is unknown; known are 'lp_ft' and 'diary'.")
    start = time.perf_counter()
    check_head(model, _class_names(loaders["train"]) or [])
    unfreeze(model)
    scheduler: LRScheduler
    if recipe == "diary":
        optimizer: Optimizer = SGD(model.parameters(), lr=learning_rate or DIARY_RATE, momentum=0.9)
        scheduler = StepLR(optimizer, step_size=7, gamma=0.1)
        history = fit(model, loaders, optimizer, scheduler=scheduler, epochs=epochs, checkpoint=checkpoint)
        history.attrs |= {"recipe": recipe, "precision": "float32", "seconds_before": 0.0}
        return history
    if checkpoint is None or not from_first(checkpoint.begun):
        parts = [part for part in loaders if part != "test"]
        fit_head(
            model,
            {p: extract_features(model, loaders[p], cache=cache, precision=feature_precision) for p in parts},
        )
    freeze_batchnorm(model)
    precision = precision or training_precision(model, loaders["train"])
    _, head = get_classifier(model)
    of_head = {id(p) for p in head.parameters()}
    backbone = [p for p in model.parameters() if id(p) not in of_head]
    rate = learning_rate or LP_FT_RATE
    optimizer = AdamW([{"params": backbone}, {"params": list(head.parameters())}], lr=rate)
    scheduler = OneCycleLR(optimizer, [rate, 3 * rate], total_steps=epochs * len(loaders["train"]) + 1)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    seconds_before = time.perf_counter() - start
    history = fit(
        model,
        loaders,
        optimizer,
        epochs=epochs,
        scheduler=scheduler,
        criterion=criterion,
        precision=precision,
        checkpoint=checkpoint,
    )
    name = str(precision).removeprefix("torch.")
    history.attrs |= {"recipe": recipe, "precision": name, "seconds_before": seconds_before}
    return history


def training_precision(model: nn.Module, loader: DataLoader) -> torch.dtype:
    """The faster precision for training steps on this loader's photos, see `fastest_precision`."""
    dataset = loader.dataset
    with torch.random.fork_rng(devices=[]):  # augmentation must not draw from the training's random numbers
        photos = torch.stack([dataset[index][0] for index in range(min(PROBE, len(dataset)))])  # type: ignore[arg-type]
    return from_first(lambda: fastest_precision(model, photos, training=True))


@_explained
@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, criterion: nn.Module | None = None) -> tuple[float, float]:
    """Loss and accuracy over a loader, means over its photos, so that the batch size does not matter.

    The model is in eval mode meanwhile, and afterwards in the modes in which it was.
    """
    keep_freed_memory()
    device = next(model.parameters()).device
    criterion = criterion or nn.CrossEntropyLoss()
    loss_sum, correct, count = 0.0, 0.0, 0.0
    with evaluating(model):
        for photos, targets in progress(loader if ranks() == 1 else _in_order(loader), "evaluate"):
            photos, targets = photos.to(device), targets.to(device)
            logits = model(photos)
            _check_targets(targets, logits)
            loss_sum += criterion(logits, targets).item() * len(targets)
            correct += (logits.argmax(dim=1) == targets).sum().item()
            count += len(targets)
    loss_sum, correct, count = total(loss_sum, correct, count)
    return loss_sum / count, correct / count


def _in_order(loader: DataLoader) -> DataLoader:
    """A loader of this process's share of the photos, each once; all of them where there is one process."""
    mine = Subset(loader.dataset, share(range(len(loader.dataset))))  # type: ignore[arg-type]
    workers = loader.num_workers
    return DataLoader(mine, loader.batch_size, num_workers=workers, generator=torch.Generator())


@_explained
@torch.no_grad()
def predict(model: nn.Module, loader: DataLoader) -> pd.DataFrame:
    """What the model says about every photo of a loader, in the order of the loader's data set.

    Args:
        model: an image classifier with one output a class.
        loader: from `make_loaders`; a training loader is read in order too.

    Returns:
        One row a photo: ``path``, ``target`` and ``predicted`` (class names), ``probability`` (of the predicted class),
        ``loss`` (cross-entropy, natural logarithm), and one column ``p_<class>`` a class with its probability;
        ``attrs["root"]`` is the folder that the paths are relative to.

    Raises:
        HeadMismatch: if the model's outputs are not the data's classes.
    """
    dataset = loader.dataset
    if not hasattr(dataset, "class_names"):
        raise ValueError(
            f"predict needs photos with class names, as from make_loaders, not a {type(dataset).__name__}."
        )
    names: list[str] = dataset.class_names
    check_head(model, names)
    keep_freed_memory()
    device = next(model.parameters()).device
    outputs = [torch.empty(0, len(names))]
    with evaluating(model):
        for photos, _ in progress(_in_order(loader), "predict"):
            outputs.append(model(photos.to(device)).float().cpu())
    log_probabilities = gathered(torch.cat(outputs), len(dataset.paths)).log_softmax(dim=1)  # type: ignore[attr-defined]
    targets = torch.tensor(dataset.targets)  # type: ignore[attr-defined]
    best = log_probabilities.max(dim=1)
    table = pd.DataFrame(
        {
            "path": dataset.paths,  # type: ignore[attr-defined]
            "target": [names[i] for i in targets.tolist()],
            "predicted": [names[i] for i in best.indices.tolist()],
            "probability": best.values.exp().numpy(),
            "loss": -log_probabilities.gather(1, targets[:, None])[:, 0].numpy(),
        }
    )
    columns = pd.DataFrame(log_probabilities.exp().numpy(), columns=[f"p_{name}" for name in names])
    table = pd.concat([table, columns], axis=1)
    table.attrs["root"] = str(dataset.root)  # type: ignore[attr-defined]
    return table


def classify(model: nn.Module, root: str | os.PathLike[str], *, batch_size: int = 32) -> pd.DataFrame:
    """Name every photo below a folder, labelled or not, however nested.

    Args:
        model: from `load_model`, or any other that knows its ``class_names``.
        root: the folder.
        batch_size: photos a batch; the next one is read while the model computes.

    Returns:
        One row a file that is called like a photo, ordered by path: ``path`` (relative, with ``/``), ``label`` ("" if
        it cannot be read), ``probability`` and ``problem`` (why it cannot be read, else "").

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no such file, or the model does not know its classes.
    """
    names = getattr(model, "class_names", None)
    if names is None:
        raise ValueError("the model does not know its classes. Load it by load_model, or set model.class_names.")
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder.")
    paths = sorted(list_files(root)[0])
    if not paths:
        raise ValueError(f"{root}: holds no photos.")
    paths = list(share(paths))
    transform, min_side = transforms_for(model), preprocessing_of(model)["resize_size"]
    device = next(model.parameters()).device

    def read(path: str) -> Tensor | BadPhoto:
        try:
            return transform(open_photo(root / path, min_side=min_side))
        except BadPhoto as error:
            return error

    rows = []
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with evaluating(model), torch.no_grad(), photo_threads() as pool:
        ahead = pool.map(read, batches[0] if batches else [])
        for batch, following in zip(progress(batches, "classify"), [*batches[1:], []], strict=False):
            photos, ahead = list(ahead), pool.map(read, following)
            good = [photo for photo in photos if isinstance(photo, Tensor)]
            told = iter(model(torch.stack(good).to(device)).float().softmax(dim=1).cpu() if good else ())
            for path, photo in zip(batch, photos, strict=True):
                if isinstance(photo, BadPhoto):
                    rows.append((path, "", math.nan, photo.reason))
                else:
                    probability, index = next(told).max(dim=0)
                    rows.append((path, names[int(index)], float(probability), ""))
    return pd.DataFrame(sorted(collected(rows)), columns=["path", "label", "probability", "problem"])


def _class_names(loader: DataLoader) -> list[str] | None:
    """The class names of a loader's photos, also through a `Subset`."""
    dataset = loader.dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "class_names", None)


def check_optimizer(model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None = None) -> None:
    """Refuse an optimiser that would not train the model's trainable weights, or a scheduler that does not drive it.

    Raises:
        ValueError: naming the layers, as when the head was replaced after the optimiser was made.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("fit steps a scheduler without a metric; take StepLR or CosineAnnealingLR, not a plateau.")
    if scheduler is not None and scheduler.optimizer is not optimizer:
        raise ValueError("the scheduler drives another optimiser. Make it after the optimiser: StepLR(optimizer, 7).")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    forgotten = [name for key, name in trainable.items() if key not in held]
    own = {id(p) for p in model.parameters()}
    if not trainable:
        raise ValueError("no weight of the model can learn: all are frozen. Call unfreeze(model) or reset_classifier.")
    if forgotten or held - own:
        raise ValueError(
            f"the optimiser lacks {len(forgotten)} trainable weights of the model ({', '.join(forgotten[:4])}) and "
            f"holds {len(held - own)} that are not the model's. Make it after the last change to the model: "
            "SGD([p for p in model.parameters() if p.requires_grad], lr=...)."
        )
