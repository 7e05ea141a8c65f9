"""In which number format does a model compute? Chosen by a fixed rule, not by timing."""

import os
from typing import Literal

import torch
from torch import nn

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(precision: str, model: nn.Module, *, training: bool) -> str:
    """What ``"auto"`` means for a model on this machine.

    Bfloat16 where the processor computes in it: a GPU that supports it, or a CPU with AVX512-BF16 or AMX. Float32
    elsewhere, and on a CPU also for training networks with depthwise convolutions, which are slower in bfloat16. The
    environment variable ``CROPKIT_PRECISION`` overrides the rule.

    Args:
        precision: ``"auto"``, ``"float32"`` or ``"bfloat16"``; the last two are returned as they are.
        model: its device and its layers decide.
        training: whether it is to be trained in it.

    Returns:
        ``"float32"`` or ``"bfloat16"``.

    Raises:
        ValueError: if the precision is none of these.

    Example:
        >>> resolve_precision("float32", nn.Linear(2, 2), training=True)
        'float32'
    """
    if precision == "auto":
        precision = os.environ.get("CROPKIT_PRECISION", "") or "auto"
    if precision in ("float32", "bfloat16"):
        return precision
    if precision != "auto":
        raise ValueError(f"precision is {precision!r}, but must be 'auto', 'float32' or 'bfloat16'.")
    device = next(model.parameters()).device
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = device.type == "cpu" and _cpu_computes_bfloat16() and not (training and _has_depthwise(model))
    return "bfloat16" if native else "float32"


def dtype_of(precision: str) -> torch.dtype:
    """The torch type of a resolved precision."""
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def precision_of(model: nn.Module) -> str:
    """The precision in which a model was trained, or its head was fitted; float32 for any other."""
    return model.__dict__.get("precision", "float32")


def _cpu_computes_bfloat16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _has_depthwise(model: nn.Module) -> bool:
    return any(m.groups == m.in_channels > 1 for m in model.modules() if isinstance(m, nn.Conv2d))
