"""Every figure of the course; each function draws into an `Axes` and returns it."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from cropkit.catalog import SPLITS
from cropkit.photos import contain, open_photo

# Okabe and Ito's colours, which colour-blind readers can tell apart.
TRAIN, VAL, TEST = "#0072B2", "#E69F00", "#009E73"


def class_counts(catalog: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Photos of each class as bars, stacked by split where the catalog has one."""
    counts = catalog.groupby(["label", "split"]).size().unstack(fill_value=0)
    known = [part for part in SPLITS if part in counts]
    counts = counts[known + [part for part in counts if part not in known]]
    if ax is None:
        _, ax = plt.subplots(figsize=(max(6.0, 0.3 * len(counts)), 3.2), layout="constrained")
    colours = {"train": TRAIN, "val": VAL, "test": TEST}
    counts.plot.bar(
        stacked=True, legend=False, width=0.8, color=[colours.get(str(part), "#888888") for part in counts], ax=ax
    )
    ax.set(xlabel="", ylabel="photos")
    if known:
        ax.legend(title="", ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    ax.tick_params(axis="x", rotation=90)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def contact_sheet(
    root: str | Path,
    paths: Sequence[str],
    captions: Sequence[str],
    *,
    columns: int = 8,
    side: int = 150,
    ax: Axes | None = None,
) -> Axes:
    """Photos side by side, each with a caption below it.

    Args:
        root: the folder that `paths` are relative to.
        paths: the photos.
        captions: a line for each.
        columns: photos a row.
        side: of each photo's square, in pixels.
    """
    columns = min(columns, len(paths))
    rows = -(-len(paths) // columns)
    sheet = Image.new("RGB", (columns * side, rows * (side + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (path, caption) in enumerate(zip(paths, captions, strict=True)):
        x, y = place % columns * side, place // columns * (side + 16)
        photo = contain(open_photo(Path(root) / path, min_side=side), side - 4)
        sheet.paste(photo, (x + (side - photo.width) // 2, y + (side - photo.height) // 2))
        draw.text((x + side / 2, y + side + 6), caption, fill="black", anchor="mm")
    if ax is None:
        width = 1.35 * columns
        _, ax = plt.subplots(figsize=(width, width * sheet.height / sheet.width), layout="constrained")
    ax.imshow(np.asarray(sheet))
    ax.set_axis_off()
    return ax


def learning_curves(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Training and validation accuracy over the epochs."""
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
    ax.plot(history["epoch"], history["train_accuracy"], marker="o", ms=4, color=TRAIN, label="training")
    ax.plot(history["epoch"], history["val_accuracy"], marker="s", ms=4, color=VAL, label="validation")
    ax.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def heatmap(matrix: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A confusion matrix as colours, its numbers in the cells that are not 0."""
    if ax is None:
        side = max(4.0, 0.27 * len(matrix) + 1.6)
        _, ax = plt.subplots(figsize=(side + 0.6, side), layout="constrained")
    shown = matrix.map(lambda n: str(n) if n else "")
    sns.heatmap(
        matrix, annot=shown, fmt="", annot_kws={"size": 7}, cmap="Blues", square=True, linewidths=0.3,
        xticklabels=True, yticklabels=True, cbar=False, ax=ax,
    )  # fmt: skip
    ax.set(xlabel="predicted", ylabel="true")
    ax.tick_params(axis="both", labelsize=8)
    return ax
