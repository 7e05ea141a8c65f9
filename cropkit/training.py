"""The training loop, as the lesson shows it, and what is read off a trained model."""

import copy
import os
import time
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, Subset

from cropkit.features import extract_features, fit_head
from cropkit.memory import keep_freed_memory
from cropkit.models import check_head, evaluating, freeze_batchnorm, get_classifier, unfreeze
from cropkit.precision import fastest_precision
from cropkit.progress import progress

LP_FT_RATE = 5e-4  # the highest rate of the backbone; the head learns three times as fast
PROBE = 32  # photos with which precisions are compared
HINT = "Make the model anew and try a tenth of the learning rate."


def fit(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    optimizer: Optimizer,
    *,
    epochs: int,
    scheduler: LRScheduler | None = None,
    criterion: nn.Module | None = None,
    precision: torch.dtype = torch.float32,
) -> pd.DataFrame:
    """Train a model and leave the weights of its best epoch in it.

    Every epoch trains on ``loaders["train"]``, then evaluates on ``loaders["val"]``. The best epoch is the one of the
    highest validation accuracy, the first of equals; without a val loader it is the last one. What
    `freeze_backbone` froze stays as it is.

    Args:
        model: an image classifier; its device is where the training happens.
        loaders: ``"train"`` and, if there is one, ``"val"``, as from `make_loaders`.
        optimizer: over exactly the weights that are to learn.
        epochs: passes over the training photos, >= 1.
        scheduler: stepped once an epoch, after it.
        criterion: the loss, a mean over a batch; cross-entropy unless given.
        precision: ``torch.bfloat16`` runs the forward pass of training in it (autocast); evaluation is float32 always.

    Returns:
        One row an epoch: ``epoch`` (from 1), ``learning_rate`` (of the last parameter group, the head's where there are
        several), ``train_loss``, ``train_accuracy``, ``val_loss``, ``val_accuracy`` (means over photos; NaN without
        val), ``seconds``.

    Raises:
        HeadMismatch: if the model's outputs are not the data's classes.
        ValueError: if the optimiser lacks trainable weights or holds some that are not the model's, or the scheduler
            drives another optimiser.
        FloatingPointError: if the loss is no longer a finite number.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; train for at least one.")
    if (class_names := _class_names(loaders["train"])) is not None:  # a data set of bare tensors has none
        check_head(model, class_names)
    check_optimizer(model, optimizer, scheduler)
    keep_freed_memory()
    criterion = criterion or nn.CrossEntropyLoss()
    rows, best_accuracy, best_weights = [], -1.0, None
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        learning_rate = optimizer.param_groups[-1]["lr"]
        train_loss, train_accuracy = train_one_epoch(
            model, loaders["train"], optimizer, criterion, precision=precision, description=f"epoch {epoch}/{epochs}"
        )
        val_loss, val_accuracy = float("nan"), float("nan")
        if "val" in loaders:
            val_loss, val_accuracy = evaluate(model, loaders["val"], criterion)
            if val_accuracy > best_accuracy:
                # A copy: state_dict() alone refers to the weights that the next epoch changes.
                best_accuracy, best_weights = val_accuracy, copy.deepcopy(model.state_dict())
        if scheduler is not None:
            scheduler.step()
        broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
        if broken:  # the last batch's step is not followed by a loss that would show it
            raise FloatingPointError(
                f"{broken[0]} is no longer finite after epoch {epoch} at {learning_rate:g}. {HINT}"
            )
        rows.append(
            {
                "epoch": epoch,
                "learning_rate": learning_rate,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "seconds": time.perf_counter() - start,
            }
        )
    if best_weights is not None:
        model.load_state_dict(best_weights)
    return pd.DataFrame(rows)


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    criterion: nn.Module,
    *,
    precision: torch.dtype = torch.float32,
    description: str = "train",
) -> tuple[float, float]:
    """One pass over the training photos, a step of the optimiser for each batch.

    Returns:
        Loss and accuracy, means over the photos, each as measured just before its batch's step.

    Raises:
        FloatingPointError: if the loss is no longer a finite number.
    """
    device = next(model.parameters()).device
    model.train()
    loss_sum, correct, count = 0.0, 0, 0
    for photos, targets in progress(loader, description):
        photos, targets = photos.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            logits = model(photos)
        loss = criterion(logits.float(), targets)
        if not torch.isfinite(loss):
            rate = optimizer.param_groups[-1]["lr"]
            raise FloatingPointError(
                f"the loss became {loss.item()} after {count} photos of this epoch at learning rate {rate:g}. {HINT}"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(targets)
        correct += int((logits.argmax(dim=1) == targets).sum())
        count += len(targets)
    return loss_sum / count, correct / count


def fine_tune(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    *,
    epochs: int,
    recipe: str = "lp_ft",
    cache: str | os.PathLike[str] | None = None,
    precision: torch.dtype | None = None,
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
        precision: of lp_ft's training steps; the faster one on this machine unless given.

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
        optimizer: Optimizer = SGD(model.parameters(), lr=0.001, momentum=0.9)
        scheduler = StepLR(optimizer, step_size=7, gamma=0.1)
        history = fit(model, loaders, optimizer, scheduler=scheduler, epochs=epochs)
        history.attrs |= {"recipe": recipe, "precision": "float32", "seconds_before": 0.0}
        return history
    fit_head(model, {part: extract_features(model, loaders[part], cache=cache) for part in loaders if part != "test"})
    freeze_batchnorm(model)
    if precision is None:
        dataset = loaders["train"].dataset
        with torch.random.fork_rng(devices=[]):  # augmentation must not draw from the training's random numbers
            photos = torch.stack([dataset[index][0] for index in range(min(PROBE, len(dataset)))])  # type: ignore[arg-type]
        precision = fastest_precision(model, photos, training=True)
    _, head = get_classifier(model)
    of_head = {id(p) for p in head.parameters()}
    backbone = [p for p in model.parameters() if id(p) not in of_head]
    optimizer = AdamW([{"params": backbone}, {"params": list(head.parameters())}], lr=LP_FT_RATE)
    scheduler = OneCycleLR(optimizer, [LP_FT_RATE, 3 * LP_FT_RATE], total_steps=epochs * len(loaders["train"]) + 1)
    optimizer.register_step_post_hook(lambda *_: scheduler.step())  # after every step; fit knows epochs only
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    seconds_before = time.perf_counter() - start
    history = fit(model, loaders, optimizer, epochs=epochs, criterion=criterion, precision=precision)
    name = str(precision).removeprefix("torch.")
    history.attrs |= {"recipe": recipe, "precision": name, "seconds_before": seconds_before}
    return history


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, criterion: nn.Module | None = None) -> tuple[float, float]:
    """Loss and accuracy over a loader, means over its photos, so that the batch size does not matter.

    The model is in eval mode meanwhile, and afterwards in the modes in which it was.
    """
    keep_freed_memory()
    device = next(model.parameters()).device
    criterion = criterion or nn.CrossEntropyLoss()
    loss_sum, correct, count = 0.0, 0, 0
    with evaluating(model):
        for photos, targets in progress(loader, "evaluate"):
            photos, targets = photos.to(device), targets.to(device)
            logits = model(photos)
            loss_sum += criterion(logits, targets).item() * len(targets)
            correct += int((logits.argmax(dim=1) == targets).sum())
            count += len(targets)
    return loss_sum / count, correct / count


@torch.no_grad()
def predict(model: nn.Module, loader: DataLoader) -> pd.DataFrame:
    """What the model says about every photo of a loader, in the order of the loader's data set.

    Args:
        model: an image classifier with one output a class.
        loader: from `make_loaders`; a training loader is read in order too.

    Returns:
        One row a photo: ``path``, ``target`` and ``predicted`` (class names), ``probability`` (of the predicted class),
        ``loss`` (cross-entropy, natural logarithm), and one column ``p_<class>`` a class with its probability.

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
    in_order = DataLoader(dataset, batch_size=loader.batch_size, num_workers=loader.num_workers)
    outputs: list[Tensor] = []
    with evaluating(model):
        for photos, _ in progress(in_order, "predict"):
            outputs.append(model(photos.to(device)).float().cpu())
    log_probabilities = torch.cat(outputs).log_softmax(dim=1)
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
    return pd.concat([table, columns], axis=1)


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
