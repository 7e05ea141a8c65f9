"""What a model answers for photos as they are: used by `evaluate`, `predict` and `extract_features`."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cropkit.data.datasets import at_resolution, in_order
from cropkit.data.progress import progress
from cropkit.models.surgery import evaluating, get_classifier
from cropkit.training.precision import dtype_of

# Photos a batch; the last one is filled up with blank photos. Kernels round differently for other sizes of batch, and a
# photo must have one answer, whatever else is computed with it. More do not make a CPU faster.
BATCH = 16
BATCH_ON_GPU = 32


def batch_size_for(device: torch.device) -> int:
    """Photos a batch on a device."""
    return BATCH_ON_GPU if device.type == "cuda" else BATCH


def mirrors(model: nn.Module) -> bool:
    """Whether a model answers by photo and mirror image together, as its head was fitted; False for any other."""
    return model.__dict__.get("mirror", False)


@torch.no_grad()
def answers(
    model: nn.Module,
    loader: DataLoader,
    precision: str,
    description: str,
    *,
    flips: Sequence[bool] = (False,),
    resolution: int | None = None,
    features: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a model over a loader's photos, as they are and in the order of the data set, in eval mode.

    Photos are made ready as the model expects them, whichever model the loader was made for. The head computes in
    float32, whatever the precision of the backbone, since it was fitted so.

    Args:
        model: an image classifier.
        loader: its data set is read, each process its share; its order and batch size do not matter.
        precision: ``"float32"`` or ``"bfloat16"``, of the backbone.
        description: of the progress bar.
        flips: which images of a photo are answered, True for the mirror image; the mean of their answers counts.
        resolution: pixels of the square that the network sees; None is the model's own.
        features: yield what the head receives instead of what it returns.

    Yields:
        Logits of shape (N, K), or features of shape (N, D), float32, and class indices of shape (N,), batch by batch,
        on the model's device.
    """
    device = next(model.parameters()).device
    size = batch_size_for(device)
    expected = model.__dict__.get("preprocessing")
    ready = in_order(loader, size, expected and at_resolution(expected, resolution))
    head = None
    if features or precision != "float32":
        with nullcontext() if features else suppress(ValueError):  # one that ends in another layer computes as a whole
            head = get_classifier(model)[1]
    received: list[Tensor] = []
    keep = head.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0])) if head is not None else None
    rounded = torch.autocast(device.type, dtype_of(precision)) if precision != "float32" else nullcontext()
    try:
        with evaluating(model):
            for photos, targets in progress(ready, description):
                count, found = len(photos), []
                photos = _filled_up(photos, size).to(device, non_blocking=True)
                for flip in flips:
                    with rounded:
                        answer = model(photos.flip(3) if flip else photos)
                    if head is not None:
                        vectors = received.pop().float()
                        answer = vectors if features else head.forward(vectors)
                    found.append(cast(Tensor, answer)[:count].float())
                yield sum(found[1:], found[0]) / len(found), targets.to(device)
    finally:
        if keep is not None:
            keep.remove()


def _filled_up(photos: Tensor, size: int) -> Tensor:
    blank = photos.new_zeros(size - len(photos), *photos.shape[1:])
    photos = torch.cat([photos, blank]) if len(blank) else photos
    # The order in memory that CPUs and GPUs convolve fastest.
    return photos.contiguous(memory_format=torch.channels_last) if photos.ndim == 4 else photos
