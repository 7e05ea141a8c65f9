"""Recipes: with which optimiser, schedule and first step a model is trained."""

import os
from collections.abc import Mapping

import pandas as pd
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import OneCycleLR, StepLR
from torch.utils.data import DataLoader

from cropkit.models.surgery import check_head, freeze_batchnorm, get_classifier, unfreeze
from cropkit.training.checkpoints import Checkpoint
from cropkit.training.features import features_for_head, fit_head
from cropkit.training.guards import class_names_of
from cropkit.training.loop import fit
from cropkit.training.precision import resolve_precision
from cropkit.training.processes import from_first

RECIPES = ("lp_ft", "sgd_step")
SGD_RATE = 0.001
# The highest rate of lp_ft's backbone: in proportion to the steps of the training, up to a limit. Few steps at a high
# rate disturb the fitted head, and leave no time to win back what it knew.
RATE_A_STEP, HIGHEST_RATE = 5e-6, 5e-4


def fine_tune(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    *,
    epochs: int,
    recipe: str = "lp_ft",
    cache: str | os.PathLike[str] | None = None,
    learning_rate: float | None = None,
    mirror: bool = False,
    precision: str = "auto",
    feature_precision: str = "auto",
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Let every weight learn, by one of two recipes; `fit` is the loop of both.

    ``"lp_ft"`` first fits the head to the features of the frozen backbone, so that no random head disturbs the
    backbone (Kumar et al., ICLR 2022, arXiv 2202.10054). Then everything learns: AdamW, the head three times as fast as
    the backbone, both rates rising and falling once over all steps (one-cycle), label smoothing, BatchNorm's statistics
    as the pretraining left them. The fitted head is epoch 0 of the history, so the result is never below it on val.

    ``"sgd_step"`` is the classic: SGD with momentum 0.9, a tenth of the rate after every 7 epochs (see `fit_sgd_step`).
    The competition diary ran it for 25 epochs.

    Args:
        model: from `create_model`, its head made for the classes.
        loaders: from `make_loaders`.
        epochs: passes over the training photos, >= 1.
        recipe: ``"lp_ft"`` or ``"sgd_step"``.
        cache: passed on to `extract_features`.
        learning_rate: the highest one; unless given, 0.001 for sgd_step, and for lp_ft's backbone 5e-6 for each step
            of the training, up to 5e-4.
        mirror: answer, from now on, by photo and mirror image together, and fit lp_ft's head to both.
        precision: of the training steps, see `resolve_precision`; sgd_step always trains in float32.
        feature_precision: of the features that lp_ft's head is fitted to.
        checkpoint: as in `fit`.

    Returns:
        What `fit` returns.

    Raises:
        ValueError: if the recipe is unknown, and as `fit` does.

    Example:
        >>> history = fine_tune(model, loaders, epochs=1)
        >>> history["epoch"].tolist()
        [0, 1]
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; known are 'lp_ft' and 'sgd_step'.")
    class_names = class_names_of(loaders["train"])
    if class_names is None:
        raise ValueError("fine_tune needs photos with class names, as from make_loaders.")
    check_head(model, class_names)
    unfreeze(model)
    model.__dict__["mirror"] = bool(mirror)
    if recipe == "sgd_step":
        return fit_sgd_step(
            model, loaders, epochs=epochs, learning_rate=learning_rate or SGD_RATE, checkpoint=checkpoint
        )
    if checkpoint is None or not from_first(checkpoint.begun):
        features = features_for_head(model, loaders, cache=cache, precision=feature_precision, mirror=bool(mirror))
        fit_head(model, features)
    freeze_batchnorm(model)
    _, head = get_classifier(model)
    of_head = {id(p) for p in head.parameters()}
    backbone = [p for p in model.parameters() if id(p) not in of_head]
    steps = epochs * len(loaders["train"])
    rate = learning_rate or min(RATE_A_STEP * steps, HIGHEST_RATE)
    optimizer = AdamW([{"params": backbone}, {"params": list(head.parameters())}], lr=rate)
    return fit(
        model,
        loaders,
        optimizer,
        epochs=epochs,
        scheduler=OneCycleLR(optimizer, [rate, 3 * rate], total_steps=steps + 1),
        criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
        precision=resolve_precision(precision, model, training=True),
        checkpoint=checkpoint,
    )


def fit_sgd_step(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    *,
    epochs: int,
    learning_rate: float = SGD_RATE,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """`fit` what is trainable by SGD with momentum 0.9, the rate a tenth after every 7 epochs, in float32.

    Args:
        model: an image classifier, or a head alone where the loaders hold features.
        loaders: as for `fit`.
        epochs: passes over the training photos, >= 1.
        learning_rate: of the first 7 epochs.
        checkpoint: as in `fit`.

    Returns:
        What `fit` returns.

    Example:
        >>> history = fit_sgd_step(model, loaders, epochs=8)
        >>> history["learning_rate"][1:].round(4).tolist()
        [0.001, 0.001, 0.001, 0.001, 0.001, 0.001, 0.001, 0.0001]
    """
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=learning_rate, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=7, gamma=0.1)
    return fit(model, loaders, optimizer, scheduler=scheduler, epochs=epochs, checkpoint=checkpoint)
