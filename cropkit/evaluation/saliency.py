"""Grad-CAM: which places of a photo contribute to a class?"""

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cropkit.data.datasets import transforms_for
from cropkit.data.photos import open_photo
from cropkit.models.surgery import evaluating


def grad_cam(model: nn.Module, photo: Image.Image | str | os.PathLike[str], *, target: int | None = None) -> np.ndarray:
    """How much each place of a photo contributes to the score of a class.

    The last feature map, weighted by the gradient of the class's logit (Selvaraju et al., ICCV 2017, arXiv
    1610.02391). A hint, not a proof: the map of a 224-pixel photo has only 7 x 7 places.

    Args:
        model: a convolutional classifier; it is left unchanged.
        photo: upright RGB, or the path of a photo.
        target: index of the class; None for the predicted one.

    Returns:
        Shape (H, W) float32, 0..1, for the region of the photo that the model's transform keeps. All 0 if no place
        contributes.

    Raises:
        ValueError: if the model has no feature map, or no output `target`.

    Example:
        >>> from cropkit import create_model
        >>> model = create_model("resnet18", num_classes=2, weights=None)
        >>> grad_cam(model, Image.new("RGB", (320, 240), "green"), target=1).shape
        (224, 224)
    """
    photo = photo.convert("RGB") if isinstance(photo, Image.Image) else open_photo(photo)
    inputs = transforms_for(model)(photo)[None].to(next(model.parameters()).device)
    maps: list[Tensor] = []
    tokens = False

    def keep(module: nn.Module, _: object, output: object) -> None:
        nonlocal tokens
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] > 1 and output.shape[3] > 1:
            maps[:], tokens = [output], False
        elif isinstance(output, Tensor) and output.ndim == 3:
            tokens = True

    hooks = [module.register_forward_hook(keep) for module in model.modules()]
    try:
        with evaluating(model), torch.enable_grad():
            logits = model(inputs.requires_grad_())  # a gradient must flow, though all weights may be frozen
            index = int(logits[0].argmax()) if target is None else target
            if not maps or tokens:
                raise ValueError(
                    f"{getattr(model, 'arch', type(model).__name__)} has no feature map before its head, as "
                    "convolutional networks have. Use one of those, such as resnet18."
                )
            if not 0 <= index < logits.shape[1]:
                raise ValueError(f"target is {target}, but the model has {logits.shape[1]} outputs, from 0.")
            (gradient,) = torch.autograd.grad(logits[0, index], maps)
    finally:
        for hook in hooks:
            hook.remove()
    features = maps[0]
    if features.shape[1] == features.shape[2] != features.shape[3]:  # some of timm's models have the channels last
        features, gradient = features.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    heat = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True).relu().detach().float()
    heat = nn.functional.interpolate(heat, inputs.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    return (heat / heat.max().clamp(min=1e-12)).cpu().numpy()
