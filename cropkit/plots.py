"""Every figure of the course; each function draws into an `Axes` and returns it.

Names of classes may be Chinese, Japanese or Korean. They are drawn in a font of the system that has them. Where there
is none, a crop of the competition gets its English name, and any other class its number.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from cropkit import interpret
from cropkit.catalog import SPLITS
from cropkit.datasets import transforms_for
from cropkit.experiments import Run
from cropkit.photos import contain, open_photo
from cropkit.samples import CHINESE

# Okabe and Ito's colours, which colour-blind readers can tell apart.
TRAIN, VAL, TEST = "#0072B2", "#E69F00", "#009E73"
COLOURS = (TRAIN, VAL, TEST, "#CC79A7", "#D55E00", "#56B4E9", "#000000")
CJK = ("CJK", "JhengHei", "PingFang", "Heiti", "SourceHan", "NotoSansTC", "msjh", "wqy", "Fallback", "Arial Unicode")


@lru_cache(maxsize=1)
def _cjk_font() -> str | None:
    """The file of a font that has Chinese, Japanese and Korean letters; None if the system has none."""
    known = [path for path in font_manager.findSystemFonts() if any(part in Path(path).name for part in CJK)]
    for path in sorted(known, key=lambda path: ("Regular" not in path, path)):
        if all(map(font_manager.get_font(path).get_char_index, map(ord, "A竹"))):
            font_manager.fontManager.addfont(path)
            return path
    return None


def _legible(names: Sequence[object]) -> tuple[list[str], list[str]]:
    """Names as they can be drawn, and the families of fonts for it."""
    families, texts = list(plt.rcParams["font.family"]), [str(name) for name in names]
    default = font_manager.get_font(font_manager.findfont(font_manager.FontProperties(family=families)))
    fonts = [default]
    if any(not default.get_char_index(ord(letter)) for letter in "".join(texts)) and (path := _cjk_font()):
        fonts.append(font_manager.get_font(path))
        families.append(font_manager.FontProperties(fname=path).get_name())

    def drawable(text: str) -> bool:
        return all(any(font.get_char_index(ord(letter)) for font in fonts) for letter in text)

    english = {chinese: name for name, chinese in CHINESE.items()}
    texts = [text if drawable(text) else english.get(text, f"class {k}") for k, text in enumerate(texts)]
    return [text.replace("$", r"\$") for text in texts], families  # or what stands between two would be a formula


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
    names, families = _legible(counts.index)
    ax.set_xticks(range(len(names)), labels=names, rotation=90, family=families)
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
    if not len(paths):
        raise ValueError("there are no photos to show.")
    columns = min(columns, len(paths))
    rows = -(-len(paths) // columns)
    letters = max(10, side // 15)
    high = side + letters + 6
    sheet = Image.new("RGB", (columns * side, rows * high), "white")
    draw = ImageDraw.Draw(sheet)
    cjk = None if "".join(captions).isascii() else _cjk_font()
    font = ImageFont.truetype(cjk, letters) if cjk else ImageFont.load_default(letters)
    if not cjk:
        for english, chinese in CHINESE.items():
            captions = [caption.replace(chinese, english) for caption in captions]
    for place, (path, caption) in enumerate(zip(paths, captions, strict=True)):
        x, y = place % columns * side, place // columns * high
        photo = contain(open_photo(Path(root) / path, min_side=side), side - 4)
        sheet.paste(photo, (x + (side - photo.width) // 2, y + (side - photo.height) // 2))
        draw.text((x + side / 2, y + side + letters / 2), caption, fill="black", anchor="mm", font=font)
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
    """A confusion matrix as colours, its numbers in the cells that are not 0; shares are shown as percentages."""
    if ax is None:
        side = max(4.0, 0.27 * len(matrix) + 1.6)
        _, ax = plt.subplots(figsize=(side + 0.6, side), layout="constrained")
    counted = all(kind.kind == "i" for kind in matrix.dtypes)
    shown = matrix.map(lambda n: (str(n) if counted else f"{100 * n:.0f}") if n else "")
    sns.heatmap(
        matrix, annot=shown, fmt="", annot_kws={"size": 7}, cmap="Blues", square=True, linewidths=0.3,
        xticklabels=False, yticklabels=False, cbar=False, ax=ax,
    )  # fmt: skip
    names, families = _legible(matrix.columns)
    places = np.arange(len(names)) + 0.5
    ax.set_xticks(places, labels=names, rotation=90, family=families, fontsize=8)
    ax.set_yticks(places, labels=names, rotation=0, family=families, fontsize=8)
    ax.set(xlabel="predicted", ylabel="true")
    return ax


def per_class(report: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Precision, recall and F1 of each class, the weakest on top.

    Args:
        report: from `interpret.classification_report`.
    """
    report = report.sort_values("f1", ascending=False, kind="stable")
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 1.2 + 0.2 * len(report)), layout="constrained")
    places = range(len(report))
    ax.barh(places, report["f1"], color="#d9d9d9", label="F1")
    ax.plot(report["precision"], places, "o", ms=4, color=TRAIN, label="precision")
    ax.plot(report["recall"], places, "D", ms=4, color=VAL, label="recall")
    names, families = _legible(report.index)
    ax.set_yticks(places, labels=names, family=families, fontsize=8)
    ax.set(xlim=(0, 1.02), ylim=(-0.7, len(report) - 0.3))
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def reliability(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy over confidence; a bar below the diagonal is a model too sure of itself.

    Args:
        table: from `interpret.reliability`.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(4, 4), layout="constrained")
    width = table["up_to"] - table["above"]
    ax.bar(table["above"], table["accuracy"], width, align="edge", color=TRAIN, edgecolor="white", label="accuracy")
    ax.plot([0, 1], [0, 1], "--", color="#555555", label="as sure as right")
    for row in table[table["photos"] > 0].itertuples():
        ax.text((row.above + row.up_to) / 2, row.accuracy + 0.01, str(row.photos), ha="center", fontsize=7)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.06))
    ax.legend(frameon=False, loc="upper left")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def comparison(runs: Sequence[Run], *, ax: Axes | None = None) -> Axes:
    """Validation accuracy of runs over the epochs; right of it what each reached in the test, with its 95 % interval.

    Args:
        runs: from `experiments.read_runs` or `run_grid`. Those that differ in their seed only share a colour. A run
            of feature extraction by the logistic head has no epochs, and so no line.
    """
    if not runs:
        raise ValueError("there are no runs to compare.")
    if ax is None:
        _, ax = plt.subplots(figsize=(8, 4.2), layout="constrained")
    last = max((len(run.history) for run in runs if "epoch" in run.history), default=1)
    step = last * min(0.06, 0.6 / len(runs))
    looks: dict[str, dict[str, Any]] = {}
    for place, run in enumerate(runs):
        kind = _kind(run, runs)
        label = "" if kind in looks else kind
        turn, colour = divmod(len(looks), len(COLOURS))
        look = looks.setdefault(kind, {"color": COLOURS[colour], "ls": ("-", "--", ":")[turn % 3]})
        if "epoch" in run.history:
            ax.plot(run.history["epoch"], run.history["val_accuracy"], marker=".", **look)
        test = run.predictions[run.predictions["split"] == "test"][["target", "predicted"]]
        if len(test):
            score, (low, high) = interpret.accuracy(test), interpret.bootstrap_interval(test)
            error = [[score - low], [high - score]]
            ax.errorbar(last + step * (place + 2), score, error, marker="s", ms=4, capsize=2, **look)
        ax.plot([], [], lw=3, label=label, **look)
    ax.axvline(last + step, color="#bbbbbb", lw=1)
    ax.text(last + 1.3 * step, 1.01, "test", fontsize=9, va="top")
    ax.set(xlabel="epoch", ylabel="accuracy (lines: val)", ylim=(0, 1.02))
    ax.set_xticks(range(1, last + 1, -(-last // 12)))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _kind(run: Run, runs: Sequence[Run]) -> str:
    """What tells a run from the others, its seed apart."""
    every = [asdict(one.config) for one in runs]
    named = ["method"] + [
        f for f in every[0] if f not in ("method", "seed") and len({str(one[f]) for one in every}) > 1
    ]
    values = {name: getattr(run.config, name) for name in named}
    plain = ("method", "arch", "weights", "recipe")
    return ", ".join(f"{v}" if k in plain else f"{k}={v}" for k, v in values.items() if v is not None)


def grad_cam(
    model: nn.Module, photo: Image.Image | str | os.PathLike[str], *, target: int | None = None, ax: Axes | None = None
) -> Axes:
    """What the model sees of a photo, and over it where it sees the class; the arguments of `interpret.grad_cam`."""
    photo = photo.convert("RGB") if isinstance(photo, Image.Image) else open_photo(photo)
    heat = interpret.grad_cam(model, photo, target=target)
    expected: Any = model.preprocessing
    mean, std = (np.array(expected[name])[:, None, None] for name in ("mean", "std"))
    seen = transforms_for(model)(photo).numpy() * std + mean
    if ax is None:
        _, ax = plt.subplots(figsize=(3, 3), layout="constrained")
    ax.imshow(seen.transpose(1, 2, 0).clip(0, 1))
    ax.imshow(heat, cmap="inferno", alpha=0.45, vmin=0, vmax=1)
    if target is not None and hasattr(model, "class_names"):
        (name,), families = _legible([model.class_names[target]])  # type: ignore[index]
        ax.set_title(name, family=families)
    ax.set_axis_off()
    return ax
