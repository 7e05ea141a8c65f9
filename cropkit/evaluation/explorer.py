"""A confusion matrix to click: each cell opens and shows its photos.

The page is one table with inline styles and one ``<details>`` a cell, since JupyterLab removes scripts, style sheets
and ids from a notebook that is not trusted. So it works offline, there, and in an exported page.
"""

import base64
import html
import io
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from cropkit.data.datasets import photo_threads
from cropkit.data.photos import BadPhoto, contain, open_photo
from cropkit.evaluation.metrics import classes_of, confusion_matrix, similarity_order

# Pixels. A panel of photos opens below its row, or above it where there is no room below, so heights must be known.
THUMBNAIL, ROW = 96, 24
LETTER, STACKED = 7, 12  # a letter of a column's name: turned, or below another letter
PITCH = ROW + 1  # a row and its line
LONGEST = 20  # letters of a column's name, at most
PHOTO_WIDTH, PHOTO_HEIGHT, PHOTOS_A_ROW, HEADING = 128, THUMBNAIL + 44, 6, 44
CORRECT, WRONG = "0,114,178", "230,159,0"  # Okabe and Ito's blue and orange, distinct to colour-blind readers


@dataclass(frozen=True)
class Explorer:
    """A page of HTML that Jupyter shows and that needs no other file."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def explore(
    predictions: pd.DataFrame,
    *,
    classes: Iterable[str] | None = None,
    order: str = "similarity",
    per_cell: int = 12,
    live: bool = False,
    root: str | os.PathLike[str] | None = None,
) -> Any:
    """Show the confusion matrix as a table whose cells open and show their photos, the largest loss first.

    Args:
        predictions: from `predict` or of a `Run`.
        classes: only photos of these classes, or predicted as one of them; None for all.
        order: ``"similarity"`` makes similar classes neighbours (see `similarity_order`), ``"name"`` keeps the
            model's order.
        per_cell: photos shown of a cell, at most; the count is always of all.
        live: with controls (ipywidgets): classes, text that a path contains, counts or shares, least confidence.
        root: the folder that the paths are relative to; None for the one in the column ``root``.

    Returns:
        An `Explorer`, or with `live` a widget; Jupyter shows either as the last value of a cell.

    Raises:
        ValueError: if there is nothing to show, a class or the order is unknown, or a photo has no folder.
        ImportError: if `live` is True and ipywidgets is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48), "green").save(f"{folder}/1.jpg")
        ...     predictions = pd.DataFrame({"root": folder, "path": ["1.jpg"], "target": "pear", "predicted": "plum"})
        ...     page = explore(predictions.assign(probability=0.9, loss=2.3, p_pear=0.1, p_plum=0.9))
        >>> page.html.count("<img"), "1 photo of pear predicted as plum" in page.html
        (1, True)
    """
    if predictions.empty:
        raise ValueError("there are no predictions to show.")
    if root is not None:
        predictions = predictions.assign(root=os.fspath(root))
    if "root" not in predictions or predictions["root"].isna().any():
        raise ValueError("the predictions need a column root, the folder of each photo. Add it, or give root=<folder>.")
    if per_cell < 1:
        raise ValueError(f"per_cell is {per_cell}, but must be at least 1.")
    if order not in ("similarity", "name"):
        raise ValueError(f"order is {order!r}, but must be 'similarity' or 'name'.")
    names = similarity_order(predictions) if order == "similarity" else classes_of(predictions)
    chosen = [] if classes is None else [classes] if isinstance(classes, str) else list(classes)
    for name in chosen:
        if name not in names:
            near = get_close_matches(str(name), names, 1)
            raise ValueError(f"{name!r} is no class here.{f' Did you mean {near[0]!r}?' if near else ''}")
    thumbnail = lru_cache(maxsize=None)(_thumbnail)

    def page(some: pd.DataFrame, chosen: list[str], normalize: str | None = None) -> str:
        # Shares are of all photos of a class, so they are taken before classes are chosen.
        counts = confusion_matrix(some)
        shares = counts if normalize is None else confusion_matrix(some, normalize=normalize)
        rows = names
        if chosen:
            some = some[some["target"].isin(chosen) | some["predicted"].isin(chosen)]
            rows = [name for name in names if name in {*chosen, *some["target"], *some["predicted"]}]
        return _page(some, rows, counts, shares, per_cell, thumbnail)

    if not live:
        return Explorer(page(predictions, chosen))
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError("live=True needs ipywidgets: pip install ipywidgets") from error
    wide = {"description_width": "9em"}
    pick = widgets.SelectMultiple(options=sorted(names), value=chosen, description="classes", rows=5, style=wide)
    find = widgets.Text(description="path contains", continuous_update=False, style=wide)
    normalize = widgets.ToggleButtons(
        options=[("counts", None), ("% of row", "true"), ("% of column", "predicted")], description="show", style=wide
    )
    least = widgets.FloatSlider(
        min=0, max=1, step=0.05, description="confidence from", continuous_update=False, style=wide
    )
    shown = widgets.HTML()

    def show(_: object = None) -> None:
        keep = predictions["path"].str.contains(find.value, case=False, regex=False)
        shown.value = page(
            predictions[keep & (predictions["probability"] >= least.value)], list(pick.value), normalize.value
        )

    for control in (pick, find, normalize, least):
        control.observe(show, "value")
    show()
    return widgets.VBox([widgets.HBox([pick, widgets.VBox([find, normalize, least])]), shown])


def _page(
    predictions: pd.DataFrame,
    names: list[str],
    counts: pd.DataFrame,
    shares: pd.DataFrame,
    per_cell: int,
    thumbnail: Callable[[Path], str],
) -> str:
    """The table of these predictions, its rows and columns in the order of `names`; a cell shows its share."""
    worst = predictions.sort_values("loss", ascending=False, kind="stable", na_position="first")
    photos_of = counts.sum(axis=1)
    cells = {pair: photos.head(per_cell) for pair, photos in worst.groupby(["target", "predicted"], sort=False)}
    with photo_threads() as threads:
        files = [Path(row.root, row.path) for photos in cells.values() for row in photos.itertuples()]
        pictures = dict(zip(files, threads.map(thumbnail, files), strict=True))
    # Where the rows begin, below the sentence and the columns' names: between `top` and `low`.
    longest = min(max(map(len, names), default=0), LONGEST)
    top, low = 50 + LETTER * longest, 50 + STACKED * longest
    group, height = uuid4().hex, low + PITCH * len(names)
    lines = []
    for row, true in enumerate(names):
        line = [f'<th scope="row" style="{_NAME}" title="{_text(true)}">{_text(true)}</th>']
        for predicted in names:
            if (true, predicted) not in cells:
                line.append(f'<td style="{_CELL}"></td>')
                continue
            photos, count = cells[true, predicted], counts.at[true, predicted]
            tall = HEADING + PHOTO_HEIGHT * math.ceil(len(photos) / PHOTOS_A_ROW)
            above, below = top + PITCH * row - tall, low + PITCH * (row + 1) + tall
            up = above >= 0 and 2 * row >= len(names)
            height = height if up else max(height, below)
            number = str(count) if shares is counts else f"{100 * shares.at[true, predicted]:.0f}"
            colour = (
                f"rgba({CORRECT if true == predicted else WRONG},{0.14 + 0.5 * (count / photos_of[true]) ** 0.5:.2f})"
            )
            title = f"{count} {'photo' if count == 1 else 'photos'} of {_text(true)} predicted as {_text(predicted)}"
            panel = _panel(title, photos, count, pictures, tall, -tall - ROW if up else 0)
            summary = f'<summary style="{_SUMMARY}" title="{title}" aria-label="{title}">{number}</summary>'
            details = f'<details name="{group}">{summary}{panel}</details>'
            line.append(f'<td style="{_CELL};background-color:{colour}">{details}</td>')
        lines.append(f'<tr style="background-color:transparent">{"".join(line)}</tr>')
    heads = "".join(
        f'<th scope="col" style="{_HEAD}"><div style="{_TURNED}">{_text(name)}</div></th>' for name in names
    )
    correct = (predictions["target"] == predictions["predicted"]).sum()
    sentence = (
        f"{len(predictions):,} photos, {correct:,} correct. Rows: true class. Columns: predicted class. "
        "Open a cell to see its photos, the largest loss first."
    )
    return (
        f'<div style="position:relative;min-height:{height}px;min-width:{PHOTO_WIDTH * PHOTOS_A_ROW + 40}px">'
        f'<div style="height:40px;line-height:20px;font-size:13px">{sentence}</div>'
        f'<table style="{_TABLE}"><thead><tr><td style="border:none"></td>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


_TABLE = "border-collapse:collapse;table-layout:auto;font-size:11px;margin:0;width:auto"
_FIT = "white-space:nowrap;overflow:hidden;text-overflow:ellipsis"
_NAME = f"height:{ROW}px;max-width:160px;padding:0px 6px 0px 0px;text-align:right;font-weight:400;border:none;{_FIT}"
_HEAD = "padding:0px;border:none;vertical-align:bottom;text-align:center;font-weight:400"
# Letters below each other where writing-mode is removed.
_TURNED = (
    "writing-mode:vertical-rl;margin:0px auto;width:12px;line-height:12px;word-break:break-all;padding-bottom:4px;"
    f"max-height:{STACKED * LONGEST}px;overflow:hidden"
)
_CELL = (
    f"width:{ROW - 2}px;min-width:{ROW - 2}px;height:{ROW}px;padding:0px;text-align:center;"
    "border:1px solid rgba(128,128,128,0.25)"
)
_SUMMARY = f"display:block;height:{ROW - 2}px;line-height:{ROW - 2}px;cursor:pointer"


def _panel(title: str, photos: pd.DataFrame, count: int, pictures: dict[Path, str], tall: int, lift: int) -> str:
    """The photos of one cell, over the table; in colours of its own, since it covers the table in either theme."""
    some = "" if len(photos) == count else f", {len(photos)} of them shown"
    wide = PHOTO_WIDTH * min(max(len(photos), 4), PHOTOS_A_ROW)
    figures = []
    for row in photos.itertuples():
        picture = pictures[Path(row.root, row.path)]
        if picture.startswith("data:"):
            alt = f"{_text(row.target)}, predicted as {_text(row.predicted)}"
            picture = f'<img src="{picture}" alt="{alt}" style="max-width:{THUMBNAIL}px;margin:0px">'
        figures.append(
            f'<div style="width:{PHOTO_WIDTH - 8}px;height:{PHOTO_HEIGHT - 4}px;margin:0px 4px">'
            f'<div style="height:{THUMBNAIL + 2}px">{picture}</div>'
            f"<div>{row.probability:.0%} sure, loss {row.loss:.2f}</div>"
            f'<div title="{_text(row.path)}" style="{_FIT}">{_text(Path(row.path).name)}</div></div>'
        )
    return (
        f'<div style="position:absolute;left:4px;z-index:9;width:{wide}px;height:{tall - 12}px;'
        f"margin-top:{lift}px;padding:6px 6px 4px 6px;overflow:auto;background-color:#f7f7f7;color:#1a1a1a;"
        'border:1px solid #767676;text-align:left;font-size:11px;line-height:15px">'
        f'<div style="height:24px;font-size:13px;line-height:20px;{_FIT}"><b>{title}</b>{some}, the largest loss first'
        f'</div><div style="display:flex;flex-wrap:wrap">{"".join(figures)}</div></div>'
    )


def _thumbnail(path: Path) -> str:
    """A small JPEG as a data address, or the reason why there is none."""
    try:
        photo = contain(open_photo(path.expanduser(), min_side=THUMBNAIL), THUMBNAIL)
    except BadPhoto as error:
        return _text(error.reason)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=65)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _text(text: str) -> str:
    """Escaped for HTML; bytes of a file's name that are no text become question marks."""
    return html.escape(str(text).encode("utf-8", "replace").decode())
