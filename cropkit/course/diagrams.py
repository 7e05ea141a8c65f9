"""Drawings that explain: the parts of a classifier, and the road from photos to a better model."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from torch import nn

from cropkit.evaluation.plots import COLOURS, TRAIN, VAL
from cropkit.models.surgery import count_parameters, get_classifier

STATIONS = ("photos", "scan", "catalog", "split", "loaders", "model", "predictions", "matrix", "cause")


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor=colour + "33", edgecolor=colour, lw=1.5))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "lw": 1.3, "color": "#444444"})
    ax.text((start[0] + end[0]) / 2, start[1] + 0.12, text, ha="center", va="bottom", fontsize=9)


def draw_model(model: nn.Module, *, ax: Axes | None = None) -> Axes:
    """A classifier as backbone and head, with the shapes of what passes between them, and the weights of each.

    Args:
        model: from `create_model`.
        ax: where to draw; a new figure unless given.

    Example:
        >>> ax = draw_model(model)
        >>> [text.get_text() for text in ax.texts if "head" in text.get_text()]
        ['head\\nclassifier.3\\n2,050 weights']
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(9, 2.2), layout="constrained")
    name, head = get_classifier(model)
    side = model.__dict__["preprocessing"]["crop_size"]
    in_head = count_parameters(head)
    rest = count_parameters(model) - in_head
    _box(ax, 0.0, 0.1, 1.5, 0.8, f"photo\n3 x {side} x {side}", "#666666")
    _box(ax, 2.3, -0.1, 2.6, 1.2, f"backbone\n{rest:,} weights", TRAIN)
    _box(ax, 6.4, 0.1, 2.1, 0.8, f"head\n{name}\n{in_head:,} weights", VAL)
    _box(ax, 9.9, 0.1, 1.6, 0.8, f"logits\n{head.out_features}", "#666666")
    _arrow(ax, (1.5, 0.5), (2.3, 0.5))
    _arrow(ax, (4.9, 0.5), (6.4, 0.5), f"features\n{head.in_features}")
    _arrow(ax, (8.5, 0.5), (9.9, 0.5), "one a class")
    ax.set(xlim=(-0.1, 11.6), ylim=(-0.25, 1.25))
    ax.axis("off")
    return ax


def draw_road(*, ax: Axes | None = None) -> Axes:
    """The course's road: from photos to the cause of an error, and back with a correction or another config.

    Args:
        ax: where to draw; a new figure unless given.

    Example:
        >>> [text.get_text() for text in draw_road().texts][:3]
        ['photos', 'scan', 'catalog']
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(11, 1.9), layout="constrained")
    for place, name in enumerate(STATIONS):
        _box(ax, 1.5 * place, 0.0, 1.15, 0.5, name, COLOURS[0] if place % 2 == 0 else COLOURS[2])
    for place in range(len(STATIONS) - 1):
        _arrow(ax, (1.5 * place + 1.15, 0.25), (1.5 * place + 1.5, 0.25))
    last = 1.5 * (len(STATIONS) - 1) + 0.6
    ax.plot([last, last, 2.1], [0, -0.5, -0.5], color="#444444", lw=1.3)
    ax.annotate("", (2.1, 0.0), (2.1, -0.52), arrowprops={"arrowstyle": "-|>", "lw": 1.3, "color": "#444444"})
    ax.text(
        last / 2 + 1,
        -0.56,
        "corrected labels, or another setting: the same calls again",
        ha="center",
        va="top",
        fontsize=9,
    )
    ax.set(xlim=(-0.1, last + 0.7), ylim=(-0.85, 0.6))
    ax.axis("off")
    return ax
