"""What stops a training with a sentence, instead of letting it go wrong without an error."""

import functools
import re
import traceback
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Subset

from cropkit.data.datasets import CropDataset, EpochSampler

HINT = "Create the model again and try a tenth of the learning rate."
P = ParamSpec("P")
R = TypeVar("R")


def explained(
    function: Callable[Concatenate[nn.Module, DataLoader, P], R],
) -> Callable[Concatenate[nn.Module, DataLoader, P], R]:
    """Say what to do where memory runs out or a process that reads photos is killed."""

    @functools.wraps(function)
    def wrapper(model: nn.Module, loader: DataLoader, *args: P.args, **kwargs: P.kwargs) -> R:
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

    return wrapper


def class_names_of(loader: DataLoader) -> list[str] | None:
    """The class names of a loader's photos, also through a `Subset`; None for a data set of bare tensors."""
    return getattr(_dataset(loader), "class_names", None)


def _dataset(loader: DataLoader) -> Any:
    dataset: Any = loader.dataset
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def check_preprocessing(model: nn.Module, loader: DataLoader) -> None:
    """Refuse photos that were made ready for another model, since a wrong size or normalisation raises no error."""
    wanted, given = model.__dict__.get("preprocessing"), getattr(_dataset(loader), "preprocessing", None)
    if wanted is not None and given is not None and wanted != given:
        names = [name for name in {**wanted, **given} if given.get(name) != wanted.get(name)]
        differ = [f"{name}: {given.get(name)} given, {wanted.get(name)} expected" for name in names]
        raise ValueError(
            f"the photos were made ready for another model ({'; '.join(differ)}). Make the loaders with this one: "
            "make_loaders(catalog, model)."
        )


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


def check_targets(targets: Tensor, logits: Tensor, where: Callable[[], str] = str) -> None:
    """Refuse class indices that the model does not have; cross-entropy leaves out those of -100 without an error."""
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"class index {low if low < 0 else high} is out of range{where()}: the model tells {logits.shape[1]} "
            f"classes apart, 0 to {logits.shape[1] - 1}. Correct the labels, or give the model a head for all classes."
        )


def check_loss(loss: Tensor, optimizer: Optimizer, epoch: int, step: int, where: Callable[[], str]) -> None:
    """Stop where the loss is no longer a number; names the step, the learning rate and the photos."""
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"the loss became {loss.item()} in step {step} of epoch {epoch} at learning rate "
            f"{optimizer.param_groups[-1]['lr']:g}{where()}. {HINT}"
        )


def check_weights(model: nn.Module, epoch: int) -> None:
    """Stop where weights are no longer numbers; the last step of an epoch is followed by no loss that would show it."""
    broken = [name for name, p in model.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise FloatingPointError(f"{broken[0]} is no longer finite after epoch {epoch}. {HINT}")


def photos_of(loader: DataLoader, batch: int) -> str:
    """The photos of a batch of the epoch that is going on, where the loader can tell."""
    sampler, dataset = getattr(loader, "sampler", None), getattr(loader, "dataset", None)
    if not isinstance(sampler, EpochSampler) or not isinstance(dataset, CropDataset):
        return ""
    size = loader.batch_size or 1
    order = sampler.order(sampler.epoch - 1)  # the sampler has gone on to the next one
    paths = [dataset.paths[index] for index in order[batch * size : (batch + 1) * size]]
    return f", on {', '.join(paths[:4])}" + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
