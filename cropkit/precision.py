"""Which number format is faster on this machine? Measured by a few steps, not decreed."""

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

PROBE = 32  # photos with which the two are compared
ROUNDS = 3
GAIN = 1.2  # less is not worth the rounding, and noise could have two runs of one config choose differently


def fastest_precision(model: nn.Module, photos: Tensor, *, training: bool) -> torch.dtype:
    """Bfloat16 where it runs a batch clearly sooner than float32, forward or as a training step.

    Tried on a copy of the model, so weights, buffers and modes stay as they are, and so does the random state. The two
    take turns and the best time of each counts, since other programs disturb single measurements. MPS is written for
    but untested; there, as wherever bfloat16 is not supported, it is float32.

    Args:
        model: an image classifier.
        photos: one batch, shape (N, 3, H, W).
        training: measure a training step instead of a forward pass.

    Returns:
        ``torch.float32`` or ``torch.bfloat16``.
    """
    device = next(model.parameters()).device
    if device.type == "mps" or (device.type == "cuda" and not torch.cuda.is_bf16_supported()):
        return torch.float32
    tried = copy.deepcopy(model)
    photos = photos.to(device)
    step = _training_step if training else _forward
    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for turn in range(ROUNDS):
            for dtype in seconds:
                with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                    took = _time(lambda: step(tried, photos), device)
                if turn:  # the first turn warms up
                    seconds[dtype] = min(seconds[dtype], took)
    worth = seconds[torch.bfloat16] * GAIN < seconds[torch.float32]
    return torch.bfloat16 if worth else torch.float32


def _forward(model: nn.Module, photos: Tensor) -> None:
    with torch.no_grad():
        model.eval()(photos)


def _training_step(model: nn.Module, photos: Tensor) -> None:
    model.train()(photos).float().square().mean().backward()


def _time(call: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
