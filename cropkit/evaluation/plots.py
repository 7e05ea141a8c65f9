"""Every figure of the course; each function draws into `ax`, or into a new figure where it is None, and returns it.

Names of classes may be Chinese, Japanese or Korean. They are drawn in a font of the system that has them. Without such
a font, a crop of the competition gets its English name, and any other class its number.
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
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from cropkit.data.catalog import SPLITS
from cropkit.data.crops import CHINESE
from cropkit.data.datasets import transforms_for
from cropkit.data.photos import contain, open_photo
from cropkit.evaluation import metrics, saliency

# Okabe and Ito's colours, distinct to colour-blind readers.
TRAIN, VAL, TEST = "#0072B2", "#E69F00", "#009E73"
COLOURS = (TRAIN, VAL, TEST, "#CC79A7", "#D55E00", "#56B4E9", "#000000")
CJK = ("CJK", "JhengHei", "PingFang", "Heiti", "SourceHan", "NotoSansTC", "msjh", "wqy", "Fallback", "Arial Unicode")


@lru_cache(maxsize=1)
def _cjk_font() -> str | None:
    """The file of a font that has Chinese, Japanese and Korean letters; None if the system has none."""
    known = [path for path in font_manager.findSystemFonts() if any(word in Path(path).name for word in CJK)]
    for path in sorted(known, key=lambda path: ("Regular" not in path, path)):
        if all(map(font_manager.get_font(path).get_char_index, map(ord, "A竹"))):
            font_manager.fontManager.addfont(path)
            return path
    return None


def _legible(names: Sequence[object]) -> tuple[list[str], list[str]]:
    """Names as they can be drawn, and the font families to draw them in."""
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
    return [text.replace("$", r"\$") for text in texts], families  # text between two dollars would be a formula


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    """The given `ax`, or that of a new figure of this size in inches; without lines at the top and the right."""
    if ax is None:
        _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def class_counts(catalog: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Photos of each class as bars, stacked by split.

    Args:
        catalog: needs the columns ``label`` and ``split``.

    Example:
        >>> ax = class_counts(pd.DataFrame({"label": list("aab"), "split": ["train", "test", "train"]}))
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['a', 'b']
    """
    counts = catalog.groupby(["label", "split"]).size().unstack(fill_value=0)
    known = [split for split in SPLITS if split in counts]
    counts = counts[known + [split for split in counts if split not in known]]
    ax = _axes(ax, max(6.0, 0.3 * len(counts)), 3.2)
    colours = {"train": TRAIN, "val": VAL, "test": TEST}
    counts.plot.bar(
        stacked=True, legend=False, width=0.8, color=[colours.get(str(split), "#888888") for split in counts], ax=ax
    )
    ax.set(xlabel="", ylabel="photos")
    if known:
        ax.legend(title="", ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    names, families = _legible(counts.index)
    ax.set_xticks(range(len(names)), labels=names, rotation=90, family=families)
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
    """Photos in rows, each with a caption below it.

    Args:
        root: the folder that `paths` are relative to.
        paths: the photos.
        captions: one line for each.
        columns: photos a row.
        side: of each photo's square, in pixels.

    Raises:
        ValueError: if there are no photos, or not as many captions.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48), "green").save(f"{folder}/1.jpg")
        ...     ax = contact_sheet(folder, ["1.jpg"], ["pear"], side=150)
        >>> ax.images[0].get_array().shape
        (166, 150, 3)
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
    width = 1.35 * columns
    ax = _axes(ax, width, width * sheet.height / sheet.width)
    ax.imshow(np.asarray(sheet))
    ax.set_axis_off()
    return ax


def learning_curves(history: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Training and validation accuracy by epoch.

    Args:
        history: from `fit`; needs the columns ``epoch``, ``train_accuracy`` and ``val_accuracy``.

    Example:
        >>> ax = learning_curves(pd.DataFrame({"epoch": [1, 2], "train_accuracy": [0.4, 0.7], "val_accuracy": 0.5}))
        >>> [line.get_label() for line in ax.lines]
        ['training', 'validation']
    """
    ax = _axes(ax, 6, 3.2)
    ax.plot(history["epoch"], history["train_accuracy"], marker="o", ms=4, color=TRAIN, label="training")
    ax.plot(history["epoch"], history["val_accuracy"], marker="s", ms=4, color=VAL, label="validation")
    ax.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1.02))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False)
    return ax


def heatmap(matrix: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A confusion matrix as colours, with a number in each cell that is not 0.

    Args:
        matrix: from `metrics.confusion_matrix`; counts are shown as they are, shares as percentages.

    Example:
        >>> ax = heatmap(pd.DataFrame([[2, 1], [0, 3]], index=["pear", "plum"], columns=["pear", "plum"]))
        >>> [text.get_text() for text in ax.texts]
        ['2', '1', '', '3']
    """
    import seaborn as sns

    side = max(4.0, 0.27 * len(matrix) + 1.6)
    ax = _axes(ax, side + 0.6, side)
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
    """Precision, recall and F1 of each class, the lowest F1 at the top.

    Args:
        report: from `metrics.classification_report`.

    Example:
        >>> report = pd.DataFrame({"precision": [1, 0.5], "recall": [0.2, 1], "f1": [0.33, 0.67]}, ["pear", "plum"])
        >>> [label.get_text() for label in per_class(report).get_yticklabels()]
        ['plum', 'pear']
    """
    report = report.sort_values("f1", ascending=False, kind="stable")
    ax = _axes(ax, 6, 1.2 + 0.2 * len(report))
    places = range(len(report))
    ax.barh(places, report["f1"], color="#d9d9d9", label="F1")
    ax.plot(report["precision"], places, "o", ms=4, color=TRAIN, label="precision")
    ax.plot(report["recall"], places, "D", ms=4, color=VAL, label="recall")
    names, families = _legible(report.index)
    ax.set_yticks(places, labels=names, family=families, fontsize=8)
    ax.set(xlim=(0, 1.02), ylim=(-0.7, len(report) - 0.3))
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    return ax


def reliability(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Accuracy by confidence; where a bar ends below the diagonal, the model is overconfident.

    Args:
        table: from `metrics.reliability`.

    Example:
        >>> table = {"above": [0, 0.5], "up_to": [0.5, 1], "photos": [0, 40], "accuracy": [np.nan, 0.7]}
        >>> [text.get_text() for text in reliability(pd.DataFrame(table)).texts]
        ['40']
    """
    ax = _axes(ax, 4, 4)
    width = table["up_to"] - table["above"]
    ax.bar(table["above"], table["accuracy"], width, align="edge", color=TRAIN, edgecolor="white", label="accuracy")
    ax.plot([0, 1], [0, 1], "--", color="#555555", label="perfectly calibrated")
    for row in table[table["photos"] > 0].itertuples():
        ax.text((row.above + row.up_to) / 2, row.accuracy + 0.01, str(row.photos), ha="center", fontsize=7)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.06))
    ax.legend(frameon=False, loc="upper left")
    return ax


def comparison(runs: Sequence[Any], *, ax: Axes | None = None) -> Axes:
    """Validation accuracy of runs by epoch; at the right each run's test accuracy with its 95 % interval.

    Args:
        runs: from `experiments.read_runs` or `run_grid`, or others with ``config`` (a dataclass), ``history`` and
            ``predictions``. Runs that differ in their seed only share a colour. A run without epochs, such as feature
            extraction by the logistic head, has no line.

    Raises:
        ValueError: if there are no runs.

    Example:
        >>> from dataclasses import make_dataclass
        >>> config = make_dataclass("Config", ["method", "seed"])("fine_tuning", 0)
        >>> history = pd.DataFrame({"epoch": [1, 2], "val_accuracy": [0.5, 0.7]})
        >>> test = pd.DataFrame({"split": "test", "target": list("aabb"), "predicted": list("aaab")})
        >>> Run = make_dataclass("Run", ["config", "history", "predictions"])
        >>> [text.get_text() for text in comparison([Run(config, history, test)]).get_legend().get_texts()]
        ['fine_tuning']
    """
    if not runs:
        raise ValueError("there are no runs to compare.")
    ax = _axes(ax, 8, 4.2)
    last = max([1, *(int(run.history["epoch"].max()) for run in runs if "epoch" in run.history)])
    step = last * min(0.06, 0.6 / len(runs))
    looks: dict[str, dict[str, Any]] = {}
    for place, (run, label) in enumerate(zip(runs, _labels(runs), strict=True)):
        new = label not in looks
        turn, colour = divmod(len(looks), len(COLOURS))
        look = looks.setdefault(label, {"color": COLOURS[colour], "ls": ("-", "--", ":")[turn % 3]})
        if "epoch" in run.history:
            ax.plot(run.history["epoch"], run.history["val_accuracy"], marker=".", **look)
        test = run.predictions[run.predictions["split"] == "test"][["target", "predicted"]]
        if len(test):
            score, (low, high) = metrics.accuracy(test), metrics.bootstrap_interval(test)
            error = [[score - low], [high - score]]
            ax.errorbar(last + step * (place + 2), score, error, marker="s", ms=4, capsize=2, **look)
        ax.plot([], [], lw=3, label=label if new else "", **look)
    ax.axvline(last + step, color="#bbbbbb", lw=1)
    ax.text(last + 1.3 * step, 1.01, "test", fontsize=9, va="top")
    ax.set(xlabel="epoch", ylabel="accuracy (lines: val)", ylim=(0, 1.02))
    ax.set_xticks(range(0, last + 1, -(-last // 12)))
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    return ax


def _labels(runs: Sequence[Any]) -> list[str]:
    """For each run its method, and those settings but the seed in which the runs differ."""
    configs = [asdict(run.config) for run in runs]
    differ = [name for name in configs[0] if len({str(config[name]) for config in configs}) > 1]
    named = ["method"] + [name for name in differ if name not in ("method", "seed")]
    plain = ("method", "arch", "weights", "recipe")

    def label(config: dict[str, Any]) -> str:
        values = {name: config[name] for name in named if config[name] is not None}
        return ", ".join(f"{value}" if name in plain else f"{name}={value}" for name, value in values.items())

    return [label(config) for config in configs]


def grad_cam(
    model: nn.Module, photo: Image.Image | str | os.PathLike[str], *, target: int | None = None, ax: Axes | None = None
) -> Axes:
    """What the model gets of a photo, and over it which places contribute to a class.

    Args:
        model: a convolutional classifier.
        photo: upright RGB, or the path of a photo.
        target: index of the class, which becomes the title; None for the predicted class, without a title.

    Raises:
        ValueError: as `saliency.grad_cam`, which computes the map.

    Example:
        >>> from cropkit import create_model
        >>> model = create_model("resnet18", num_classes=2, weights=None)
        >>> [image.get_array().shape for image in grad_cam(model, Image.new("RGB", (320, 240), "green")).images]
        [(224, 224, 3), (224, 224)]
    """
    photo = photo.convert("RGB") if isinstance(photo, Image.Image) else open_photo(photo)
    heat = saliency.grad_cam(model, photo, target=target)
    expected: Any = model.preprocessing
    mean, std = (np.array(expected[name])[:, None, None] for name in ("mean", "std"))
    seen = transforms_for(model)(photo).numpy() * std + mean
    ax = _axes(ax, 3, 3)
    ax.imshow(seen.transpose(1, 2, 0).clip(0, 1))
    ax.imshow(heat, cmap="inferno", alpha=0.45, vmin=0, vmax=1)
    if target is not None and hasattr(model, "class_names"):
        (name,), families = _legible([model.class_names[target]])  # type: ignore[index]
        ax.set_title(name, family=families)
    ax.set_axis_off()
    return ax
