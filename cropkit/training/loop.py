"""The training loop, as the lesson shows it."""

import copy
import time
from collections.abc import Mapping

import pandas as pd
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR
from torch.utils.data import DataLoader

from cropkit.data.progress import progress
from cropkit.models.surgery import check_head, check_names
from cropkit.training import guards
from cropkit.training.checkpoints import Checkpoint, TrainState
from cropkit.training.inference import answers, mirrors
from cropkit.training.memory import keep_freed_memory
from cropkit.training.precision import dtype_of, precision_of
from cropkit.training.processes import copy_buffers_from_first, ranks, share_of_batch, together, total

HISTORY = ["epoch", "learning_rate", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"]


def fit(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    optimizer: Optimizer,
    *,
    epochs: int,
    scheduler: LRScheduler | None = None,
    criterion: nn.Module | None = None,
    precision: str = "float32",
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train a model and leave the weights of its best epoch in it.

    Every epoch trains on ``loaders["train"]``, then evaluates on ``loaders["val"]``. The best epoch is the one of the
    highest validation accuracy, of equals the one with the least validation loss. The model as it came is epoch 0 and
    may be the best, so a training never ends below its start. Without a val loader there is no epoch 0, and the last
    epoch is the best. What `freeze_backbone` froze stays as it is. Ctrl-C ends it early: the best epoch so far is in
    the model.

    Args:
        model: an image classifier; its device is where the training happens. It gets ``class_names`` and
            ``precision``.
        loaders: ``"train"`` and, if there is one, ``"val"``, as from `make_loaders`.
        optimizer: over exactly the weights that are to learn.
        epochs: passes over the training photos, >= 1.
        scheduler: stepped once an epoch, after it; one-cycle and cyclic ones after every batch.
        criterion: the loss of training, a mean over a batch; cross-entropy unless given.
        precision: ``"float32"``, or ``"bfloat16"`` for the forward passes (autocast).
        checkpoint: saves the training as it goes, and makes the same call go on where it was cut off.

    Returns:
        One row an epoch: ``epoch`` (from 0, without val from 1), ``learning_rate`` (of the last parameter group, the
        head's where there are several), ``train_loss`` (of the criterion), ``train_accuracy``, ``val_loss``
        (cross-entropy), ``val_accuracy`` (means over photos; NaN without val), ``seconds``. In epoch 0 what belongs to
        training is NaN. Fewer rows after Ctrl-C.

    Raises:
        HeadMismatch: if the model's outputs are not the data's classes.
        ValueError: if the optimiser lacks trainable weights or holds some that are not the model's, or the scheduler
            drives another optimiser.
        FloatingPointError: if the loss is no longer a finite number; names the step and its photos.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.eye(4), torch.tensor([0, 1, 0, 1]))
        >>> model = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> len(fit(model, {"train": DataLoader(data, 2)}, optimizer, epochs=3))
        3
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; train for at least one.")
    if (class_names := guards.class_names_of(loaders["train"])) is not None:
        check_head(model, class_names)
        model.__dict__["class_names"] = list(class_names)
    guards.check_preprocessing(model, loaders["train"])
    guards.check_optimizer(model, optimizer, scheduler)
    keep_freed_memory()
    model.__dict__["precision"] = precision
    each_step = isinstance(scheduler, OneCycleLR | CyclicLR)
    state = TrainState() if checkpoint is None else checkpoint.attach(model, optimizer, scheduler, loaders["train"])
    state.place(loaders["train"])
    network, best_weights = together(model), None

    def judge(epoch: int) -> tuple[float, float]:
        """Loss and accuracy on val after an epoch; the weights of the best one are kept."""
        nonlocal best_weights
        loss, accuracy = evaluate(model, loaders["val"]) if "val" in loaders else (float("nan"), float("nan"))
        if (accuracy, -loss) > (state.best_accuracy, -state.best_loss) or "val" not in loaders:
            state.best_accuracy, state.best_loss = accuracy, loss
            if checkpoint is not None:
                checkpoint.save_best(model, {"epoch": epoch, "val_loss": loss, "val_accuracy": accuracy})
            else:  # a copy: state_dict() alone refers to the weights that the next epoch changes
                best_weights = copy.deepcopy(model.state_dict())
        return loss, accuracy

    try:
        if "val" in loaders and not state.rows:
            start, untrained = time.perf_counter(), [float("nan")] * 3
            numbers = [0, *untrained, *judge(0), time.perf_counter() - start]
            state.rows.append(dict(zip(HISTORY, numbers, strict=True)))
            if checkpoint is not None:
                checkpoint.save()
        for epoch in range(state.epoch, epochs + 1):
            start = time.perf_counter()
            train_loss, train_accuracy = train_one_epoch(
                network,
                loaders["train"],
                optimizer,
                criterion or nn.CrossEntropyLoss(),
                precision=precision,
                scheduler=scheduler if each_step else None,
                state=state,
                checkpoint=checkpoint,
                description=f"epoch {epoch}/{epochs}",
            )
            guards.check_weights(model, epoch)
            val = judge(epoch)
            if scheduler is not None and not each_step:
                scheduler.step()
            numbers = [epoch, state.learning_rate, train_loss, train_accuracy, *val, time.perf_counter() - start]
            state.finish_epoch(dict(zip(HISTORY, numbers, strict=True)))
            if checkpoint is not None:
                checkpoint.save()
    except KeyboardInterrupt:  # what there is so far is returned
        if ranks() > 1:  # the others may wait elsewhere; the last saving is whole
            raise
    if checkpoint is not None:
        checkpoint.finish(model)
    elif best_weights is not None:
        model.load_state_dict(best_weights)
    return pd.DataFrame(state.rows, columns=HISTORY)


@guards.explained
def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    criterion: nn.Module,
    *,
    precision: str = "float32",
    scheduler: LRScheduler | None = None,
    state: TrainState | None = None,
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
        state: where to begin, and what is counted up; a new epoch unless given.
        checkpoint: called after every step.
        description: of the progress bar.

    Returns:
        Loss and accuracy, means over the photos, each as measured just before its batch's step.

    Raises:
        FloatingPointError: if the loss is no longer a finite number; names the step and its photos.

    Example:
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
        >>> loss, accuracy = train_one_epoch(model, loaders["train"], optimizer, nn.CrossEntropyLoss())
        >>> 0 <= accuracy <= 1
        True
    """
    state = state or TrainState()
    device = next(model.parameters()).device
    model.train()
    if state.batches == 0:
        state.learning_rate = optimizer.param_groups[-1]["lr"]

    def which() -> str:
        return guards.photos_of(loader, state.batches)

    for photos, targets in progress(loader, description):
        photos, targets = photos.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype_of(precision), enabled=precision != "float32"):
            logits = model(photos)
        guards.check_targets(targets, logits, which)
        loss = criterion(logits.float(), targets)
        guards.check_loss(loss, optimizer, state.epoch, state.batches + 1, which)
        optimizer.zero_grad()
        (loss * share_of_batch(len(targets))).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        correct = (logits.argmax(dim=1) == targets).sum().item()
        state.count_batch(*total(loss.item() * len(targets), correct, len(targets)))
        if checkpoint is not None:
            checkpoint.step_done()
    copy_buffers_from_first(model)
    return state.loss_sum / state.count, state.correct / state.count


@guards.explained
def evaluate(model: nn.Module, loader: DataLoader, criterion: nn.Module | None = None) -> tuple[float, float]:
    """Loss and accuracy over a loader's photos as they are; means over photos, so the batch size does not matter.

    The model is in eval mode meanwhile, and afterwards in the modes in which it was. It computes in the precision in
    which it was trained, and answers by photo and mirror image together where its head was fitted so.

    Args:
        model: an image classifier.
        loader: as from `make_loaders`; also a training loader is read in order and without augmentation.
        criterion: the loss, a mean over a batch; cross-entropy unless given.

    Returns:
        Loss and accuracy, the latter in 0..1.

    Raises:
        HeadMismatch: if the model knows its classes, and the data has others.
        ValueError: if the loader has no photos, or a class index is out of range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(10 * torch.eye(2))
        >>> evaluate(model, DataLoader(TensorDataset(torch.eye(2), torch.tensor([0, 1])), 1))[1]
        1.0
    """
    if not len(loader.dataset):  # type: ignore[arg-type]
        raise ValueError("the loader has no photos, so there is nothing to evaluate.")
    if (class_names := guards.class_names_of(loader)) is not None:
        check_names(model, class_names)
    keep_freed_memory()
    criterion = criterion or nn.CrossEntropyLoss()
    loss_sum, correct, count = 0.0, 0, 0
    flips = (False, True)[: 1 + mirrors(model)]
    for logits, targets in answers(model, loader, precision_of(model), "evaluate", flips=flips):
        guards.check_targets(targets, logits)
        loss_sum += criterion(logits, targets).item() * len(targets)
        correct += int((logits.argmax(dim=1) == targets).sum())
        count += len(targets)
    loss_sum, right, photos = total(loss_sum, correct, count)
    return loss_sum / photos, right / photos
