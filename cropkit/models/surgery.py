"""Models and the surgery on them: make one, find its head, replace the head, freeze the rest."""

import difflib
import itertools
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cropkit.data.datasets import at_resolution, preprocessing_of
from cropkit.models.weights import LITE_FILES, WEIGHT_FILES, MissingWeights, StateDict, find_weights, read_state_dict

# The side, in pixels, of the blank photo that is tried on a model which does not say what it expects.
DEFAULT_CROP = 224
# Built without the auxiliary heads that only training from scratch uses; their weights are then left out too.
WITHOUT_AUXILIARY: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": True},
}


class HeadMismatch(ValueError):
    """A model whose number of outputs is not the number of classes."""


def create_model(
    arch: str,
    *,
    num_classes: int | None = None,
    weights: str | os.PathLike[str] | None = "imagenet",
    resolution: int | None = None,
) -> nn.Module:
    """Make an image classifier.

    Args:
        arch: ``"efficientnet_lite0"`` (its ImageNet weights need no network; nor do those of ``"efficientnet_lite1"``
            and ``"efficientnet_lite2"`` where ``cropkit[backbones]`` is installed), any torchvision classifier
            (``"alexnet"``, ``"resnet18"``, ``"mobilenet_v3_large"``, ...), or ``"timm/<name>"`` for one of timm's.
        num_classes: None keeps the head that comes with the weights; a number >= 2 replaces it by a new, random one.
        weights: ``"imagenet"``, None for random weights, or the path of a checkpoint of one's own
            (see `read_state_dict`), whose head may have any number of outputs.
        resolution: pixels of the square that the network sees; None is the weights' own. A frozen backbone often
            gains from a somewhat larger picture than in its pretraining (Touvron et al., NeurIPS 2019, arXiv
            1906.06423), for a cost that grows with its area.

    Returns:
        The model, input (N, 3, H, W) float, output (N, K) logits. ``model.arch`` is its name and
        ``model.preprocessing`` how a photo is made ready for it (see `transforms_for`).

    Raises:
        ValueError: if `arch` is unknown (the nearest names are offered), a checkpoint does not fit it, or the network
            takes no pictures of this resolution.
        MissingWeights: if the ImageNet weights can be found nowhere.

    Example:
        >>> model = create_model("mobilenet_v3_small", num_classes=33, weights=None)
        >>> model(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 33])
    """
    if weights == "imagenet" and arch.startswith("timm/"):
        model = _build_timm(arch, pretrained=True)
    else:
        model = _build(arch)
        if weights == "imagenet":
            _load_imagenet(model, arch)
        elif weights is not None:
            _load_own(model, weights, new_head=num_classes is not None)
    model.__dict__["preprocessing"] = at_resolution(preprocessing_of(model), resolution)
    if num_classes is not None:
        reset_classifier(model, num_classes)
    else:
        try_resolution(model, resolution)
    # The same numbers in the order that CPUs and GPUs convolve fastest.
    return model.to(memory_format=torch.channels_last)


def _build(arch: str) -> nn.Module:
    if arch in LITE_FILES:
        model = _build_timm(f"timm/tf_{arch}", pretrained=False)
        return _describe(model, arch, preprocessing_of(model))
    if arch.startswith("timm/"):
        return _build_timm(arch, pretrained=False)
    if arch not in WEIGHT_FILES:
        known = [*WEIGHT_FILES, *(f"timm/{name}" for name in timm.list_models())]
        near = difflib.get_close_matches(arch, known, n=4, cutoff=0.4)
        raise ValueError(f"unknown architecture {arch!r}. Nearest names: {', '.join(near) or 'none'}.")
    preset = torchvision.models.get_model_weights(arch).DEFAULT.transforms()
    sized = {"image_size": preset.crop_size[0]} if arch.startswith("vit_") else {}  # its position table has a size
    model = torchvision.models.get_model(arch, weights=None, **WITHOUT_AUXILIARY.get(arch, {}), **sized)
    return _describe(
        model,
        arch,
        {
            "resize_size": preset.resize_size[0],
            "crop_size": preset.crop_size[0],
            "interpolation": preset.interpolation.value,
            "mean": list(preset.mean),
            "std": list(preset.std),
        },
    )


def _describe(model: nn.Module, arch: str, preprocessing: dict[str, Any]) -> nn.Module:
    """Let a model carry its name and what its weights expect of a photo."""
    model.__dict__.update(arch=arch, preprocessing=preprocessing)
    return model


def _build_timm(arch: str, *, pretrained: bool) -> nn.Module:
    name = arch.removeprefix("timm/")
    if name.split(".")[0] not in timm.list_models():
        near = [f"timm/{n}" for n in difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)]
        raise ValueError(f"unknown architecture {arch!r}. Nearest names: {', '.join(near) or 'none'}.")
    try:
        model = timm.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:  # timm keeps its downloads, checks and cache to itself
        if not pretrained:
            raise
        raise MissingWeights(
            f"{arch}: timm could not load its weights ({error}). Run once where there is a network, "
            "or train another model: efficientnet_lite0 needs no download."
        ) from error
    config = timm.data.resolve_model_data_config(model)
    crop = config["input_size"][-1]
    return _describe(
        model,
        arch,
        {
            "resize_size": int(crop / config["crop_pct"]),
            "crop_size": crop,
            "interpolation": config["interpolation"],
            "mean": list(config["mean"]),
            "std": list(config["std"]),
        },
    )


def _load_imagenet(model: nn.Module, arch: str) -> None:
    path = find_weights(arch)
    state = read_state_dict(path)
    if arch in LITE_FILES:
        # The same tensors in the same order under other names: _conv_stem.weight is timm's conv_stem.weight.
        state = OrderedDict(zip(model.state_dict(), state.values(), strict=True))
    if arch.startswith("densenet"):  # published with names that PyTorch no longer allows
        state = OrderedDict((re.sub(r"(norm|relu|conv)\.(?=[12]\.)", r"\1", name), t) for name, t in state.items())
    _load(model, state, path)


def _load_own(model: nn.Module, path: str | os.PathLike[str], *, new_head: bool) -> None:
    state = read_state_dict(path)
    with nullcontext() if new_head else suppress(ValueError):  # with no head to replace, all of it must fit
        _fit_head(model, state, new_head=new_head)
    _load(model, state, path)


def _fit_head(model: nn.Module, state: StateDict, *, new_head: bool) -> None:
    """Bring the head of a model and that of a checkpoint to one size."""
    name, head = get_classifier(model)
    theirs = state.get(f"{name}.weight")
    if new_head:  # theirs is not wanted, whatever its size
        state.update((f"{name}.{key}", tensor) for key, tensor in head.state_dict().items())
    elif theirs is not None and theirs.ndim == 2 and theirs.shape[0] not in (1, len(head.weight)):
        reset_classifier(model, theirs.shape[0])


def _load(model: nn.Module, state: StateDict, path: str | os.PathLike[str]) -> None:
    """Load `state` whole, or raise a ValueError that lists what does not fit."""
    if model.__dict__.get("arch") in WITHOUT_AUXILIARY:
        for name in [name for name in state if name.lower().startswith("aux")]:
            del state[name]
    own = model.state_dict()
    misshapen = [
        f"{n} {tuple(state[n].shape)}, not {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    missing: list[str] = []
    unexpected: list[str] = []
    if not misshapen:
        # The model itself knows which older names it still takes.
        missing, unexpected = model.load_state_dict(state, strict=False)
        missing = [n for n in missing if not n.endswith("num_batches_tracked")]  # absent before PyTorch 0.4.1
    if missing or unexpected or misshapen:
        listed = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", misshapen),
            )
            if names
        )
        raise ValueError(
            f"{path}: does not fit {_name(model)} ({listed}). Name the architecture that it was trained as."
        )


def _name(model: nn.Module) -> str:
    return str(model.__dict__.get("arch", type(model).__name__))


def get_classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """Find the linear layer whose output is the model's output.

    One blank photo goes through the model, and the layer is known by what it returns, so the answer holds whatever
    the layer is called: ``classifier.6`` (AlexNet), ``fc`` (ResNet), ``classifier.3`` (MobileNetV3), ``heads.head``
    (torchvision's ViT). The model remembers the answer.

    Args:
        model: an image classifier, input (N, 3, H, W) float, output (N, K) logits.

    Returns:
        The layer's name, as in ``model.named_modules()``, and the layer.

    Raises:
        ValueError: if no linear layer gives the model's output (SqueezeNet ends in a convolution, a distilled DeiT
            averages two heads).

    Example:
        >>> name, head = get_classifier(create_model("resnet18", weights=None))
        >>> name, head.out_features
        ('fc', 1000)
    """
    if isinstance(model, nn.Linear):  # a head alone, on features
        return "", model
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = model.__dict__.get("known_head")  # found before, and no layer was added, removed or replaced since
    layers = [(name, type(module)) for name, module in model.named_modules()]
    if known is not None and known[1] == layers:
        return known[0], linear[known[0]]
    returned: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, args, output: returned.__setitem__(name, output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in linear.items()]
    try:
        logits = _try_forward(model)
    finally:
        for hook in hooks:
            hook.remove()
    heads = [n for n, out in returned.items() if out is logits or torch.equal(out, logits)]
    if len(heads) == 1:
        model.__dict__["known_head"] = (heads[0], layers)
        return heads[0], linear[heads[0]]
    arch = _name(model)
    like = [n for n, out in returned.items() if out.shape == logits.shape]
    if len(like) > 1:
        raise ValueError(
            f"{arch} makes its output from {len(like)} linear layers ({', '.join(like)}), not from one. "
            "Choose a model with a single head."
        )
    raise ValueError(f"{arch} does not end in a linear layer, so there is no head to replace. Choose another model.")


def _try_forward(model: nn.Module) -> Tensor:
    """The logits of one blank photo, shape (1, K); the model's modes are left as they were."""
    side = model.__dict__.get("preprocessing", {}).get("crop_size", DEFAULT_CROP)
    try:
        weight = next(model.parameters())
        photo = torch.zeros(1, 3, side, side, device=weight.device, dtype=weight.dtype)
        with evaluating(model), torch.no_grad():
            logits = model(photo)
        if logits.shape[0] == 1 and logits.ndim == 2:
            return logits
        reason = f"its output has the shape {tuple(logits.shape)}, not (1, K)"
    except (StopIteration, RuntimeError, AttributeError, TypeError, AssertionError) as error:
        reason = str(error) or "it has no weights"
    raise ValueError(f"{_name(model)} could not classify one blank photo of shape (1, 3, {side}, {side}): {reason}.")


def try_resolution(model: nn.Module, resolution: int | None) -> dict[str, Any]:
    """The preprocessing of a model's photos at another resolution, None for its own; one blank photo is tried.

    Raises:
        ValueError: if the model does not say what it expects of a photo, or takes no pictures of this resolution.
    """
    own = preprocessing_of(model)
    wanted = at_resolution(own, resolution)
    if resolution is not None:
        try:
            model.__dict__["preprocessing"] = wanted
            _try_forward(model)
        finally:
            model.__dict__["preprocessing"] = own
    return wanted


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def reset_classifier(model: nn.Module, num_classes: int) -> nn.Linear:
    """Replace the last linear layer by a new one with random weights.

    The layer is found by structure (see `get_classifier`), so the same call serves AlexNet's ``classifier[6]``,
    ResNet's ``fc`` and MobileNetV3's ``classifier[3]``. Everything before it is left as it is, in place. An optimiser
    made before still holds the old layer: make a new one.

    Args:
        model: an image classifier, input (N, 3, H, W) float, output (N, K) logits.
        num_classes: outputs of the new layer, >= 2.

    Returns:
        The new layer, its weights of shape (num_classes, in_features), on the old layer's device and dtype.

    Raises:
        ValueError: if `model` ends in no linear layer, or `num_classes` < 2.

    Example:
        >>> model = create_model("resnet18", weights=None)
        >>> reset_classifier(model, 33)
        Linear(in_features=512, out_features=33, bias=True)
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; a classifier tells at least two classes apart.")
    name, old = get_classifier(model)
    new = nn.Linear(
        old.in_features,
        num_classes,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    model.set_submodule(name, new)
    if hasattr(model, "num_classes"):  # timm's models and some of torchvision's carry the number
        model.__dict__["num_classes"] = num_classes
    for fact in ("class_names", "metrics", "precision", "mirror"):  # of the old head
        model.__dict__.pop(fact, None)
    outputs = _try_forward(model).shape[1]
    if outputs != num_classes:
        raise ValueError(f"{name} was replaced, yet the model still has {outputs} outputs, not {num_classes}.")
    return new


class _StayInEval:
    """Stands in for ``train`` on a frozen module; a deep copy of the module takes along a copy that knows it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, mode: bool = True) -> nn.Module:
        return self.module


def _keep_in_eval(module: nn.Module) -> None:
    module.__dict__.pop("train", None)
    module.eval()
    module.__dict__["train"] = _StayInEval(module)


def freeze_backbone(model: nn.Module) -> None:
    """Freeze everything but the head, in place: no gradients, and eval mode until `unfreeze`.

    Without gradients the optimiser leaves the weights alone, but BatchNorm's running statistics would still move and
    dropout still drop whenever ``model.train()`` is called, so that call no longer reaches a frozen module.
    `unfreeze` takes it back.

    Args:
        model: an image classifier that ends in a linear layer.

    Raises:
        ValueError: if it does not.

    Example:
        >>> model = create_model("resnet18", num_classes=33, weights=None)
        >>> freeze_backbone(model)
        >>> count_parameters(model, trainable_only=True)
        16929
    """
    head_name, head = get_classifier(model)
    model.requires_grad_(False)
    head.requires_grad_(True)
    for name, module in model.named_modules():
        if not f"{head_name}.".startswith(f"{name}." if name else ""):  # neither the head nor what contains it
            _keep_in_eval(module)


def freeze_batchnorm(model: nn.Module) -> None:
    """Keep BatchNorm's running statistics as the pretraining left them, in place; its weights still learn.

    With few photos a batch's own mean and variance are poor estimates, and a fine-tuned model is better off without
    them. `unfreeze` takes it back.

    Args:
        model: any module.

    Example:
        >>> model = create_model("resnet18", num_classes=33, weights=None)
        >>> freeze_batchnorm(model)
        >>> model.train().bn1.training, model.bn1.weight.requires_grad
        (False, True)
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            _keep_in_eval(module)


def unfreeze(model: nn.Module) -> None:
    """Let every weight learn, and let every module follow ``model.train()`` again, in place.

    Args:
        model: any module.

    Example:
        >>> model = create_model("resnet18", num_classes=33, weights=None)
        >>> freeze_backbone(model)
        >>> unfreeze(model)
        >>> count_parameters(model, trainable_only=True) == count_parameters(model)
        True
    """
    model.requires_grad_(True)
    for module in model.modules():
        module.__dict__.pop("train", None)


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """The number of single weights, or of those that have gradients.

    Args:
        model: any module.
        trainable_only: count only what learns.

    Returns:
        Single numbers, so a layer of shape (33, 512) counts 16,896.

    Example:
        >>> count_parameters(nn.Linear(512, 33))
        16929
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def check_head(model: nn.Module, class_names: Sequence[str]) -> None:
    """Refuse a model whose outputs are not the classes of the data.

    PyTorch itself does not object: 1000 outputs and labels 0..32 train without an error. Where the model knows its
    classes, the names are compared, not only their number.

    Args:
        model: an image classifier.
        class_names: of the data; a class's index is its place in this list.

    Raises:
        HeadMismatch: naming the layer, its outputs, the classes, and the call that corrects it.

    Example:
        >>> check_head(create_model("resnet18", weights=None), ["apple", "pear"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        cropkit.models...HeadMismatch: resnet18 ends in fc with 1000 outputs, but the data has 2 classes ...
    """
    try:
        outputs = len(get_classifier(model)[1].weight)  # what comes out, whatever a layer says of itself
    except ValueError:  # it ends in another layer
        outputs = _try_forward(model).shape[1]
    if outputs != len(class_names):
        name, _ = get_classifier(model)
        raise HeadMismatch(
            f"{_name(model)} ends in {name} with {outputs} outputs, but the data has {len(class_names)} classes "
            f"({class_names[0]} ... {class_names[-1]}). Replace it first: "
            f"reset_classifier(model, {len(class_names)})."
        )
    check_names(model, class_names)


def check_names(model: nn.Module, class_names: Sequence[str]) -> None:
    """Refuse data with other class names, or another order of them, than those that a model was trained on.

    Raises:
        HeadMismatch: naming the first difference; never for a model that does not know its classes.
    """
    known = model.__dict__.get("class_names")
    if known is None or list(known) == list(class_names):
        return
    pairs = itertools.zip_longest(known, class_names, fillvalue="nothing")
    place, (mine, theirs) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
    raise HeadMismatch(
        f"{_name(model)} was trained on other classes: output {place} means {mine!r} to the model and {theirs!r} to "
        "the data. Make the loaders with this model, make_loaders(catalog, model), or give it a new head: "
        f"reset_classifier(model, {len(class_names)})."
    )
