"""A confusion matrix to click: each cell opens and shows its photos.

The page is one table with inline styles and one ``<details>`` a cell, since JupyterLab removes scripts, style sheets
and ids from a notebook that is not trusted. So it works offline, there, and in an exported page.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from cropkit.data.datasets import photo_threads
from cropkit.evaluation.metrics import (
    accuracy,
    bootstrap_interval,
    classes_of,
    look_alikes,
    mcnemar,
    similarity_order,
)
from cropkit.evaluation.pages import both, img, picture, text

# Pixels. A panel of photos opens below its row, or above it where there is no room below, so heights must be known.
THUMBNAIL, SMALL, NEAR, LARGE, ROW = 160, 80, 52, 400, 24
LETTER, STACKED = 7, 12  # a letter of a column's name: turned, or below another letter
PITCH = ROW + 1  # a row and its line
LONGEST = 20  # letters of a column's name, at most
PHOTO_WIDTH, PHOTO_HEIGHT, PHOTOS_A_ROW = THUMBNAIL + 16, THUMBNAIL + 50, 4
TALLEST = 560  # of a panel; what is more is scrolled
BETTER, WORSE = "0,114,178", "213,94,0"  # Okabe and Ito's blue and vermilion, distinct to colour-blind readers
SHOWN, EXPLAINED = 1200, 150  # photos on a page at most; and wrong answers that open larger, their likes below
QUALITY = 50  # of the pictures' JPEG
PAGE = 14_000_000  # bytes that pictures take, at most: what is left over by the photos is spent on what is beside them


@dataclass(frozen=True)
class Explorer:
    """A page of HTML that Jupyter shows and that needs no other file."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True)
class _Cell:
    """What one cell shows: a number, its colour, a sentence, and photos below headings."""

    number: str
    style: str
    title: str
    groups: list[tuple[str, pd.DataFrame]]


def explore(
    predictions: pd.DataFrame,
    after: pd.DataFrame | None = None,
    *,
    classes: Iterable[str] | None = None,
    order: str = "similarity",
    groups: int | None = None,
    per_cell: int = 12,
    nearest: pd.DataFrame | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Explorer:
    """Show the confusion matrix as a table whose cells open and show their photos, the largest loss first.

    With `after`, a second table for the same photos, a cell shows how its count changed, and opened, which photos came
    and went: now right, now wrong, or wrong in another way.

    Args:
        predictions: from `predict` or of a `Run`.
        after: of another model, for the same photos; None shows one model.
        classes: only photos of these classes, or predicted as one of them; None for all.
        order: ``"similarity"`` makes similar classes neighbours (see `similarity_order`), ``"name"`` keeps the
            model's order.
        groups: look-alikes are put together, so that so many rows and columns are left (see `look_alikes`).
        per_cell: photos shown of a cell, at most; the count is always of all.
        nearest: from `nearest_photos`; the training photos that are most like a photo stand below it.
        root: the folder that the paths are relative to; None for the one in the column ``root``.

    Returns:
        An `Explorer`; Jupyter shows it as the last value of a cell.

    Raises:
        ValueError: if there is nothing to show, a class or the order is unknown, a photo has no folder, or the second
            table is of other photos, classes or labels.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (64, 48), "green").save(f"{folder}/1.jpg")
        ...     predictions = pd.DataFrame({"root": folder, "path": ["1.jpg"], "target": "pear", "predicted": "plum"})
        ...     page = explore(predictions.assign(probability=0.9, loss=2.3, p_pear=0.1, p_plum=0.9))
        >>> page.html.count("<img"), "1 photo of pear predicted as plum" in page.html  # small, and larger on a click
        (2, True)
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
    if after is not None:
        if classes_of(after) != classes_of(predictions):
            raise ValueError("the two tables are of models with other classes, so their answers cannot be compared.")
        mcnemar(predictions, after)  # refuses other photos and labels
    names = similarity_order(predictions) if order == "similarity" else classes_of(predictions)
    group_of = {name: name for name in names} if groups is None else look_alikes(predictions, groups)
    chosen = [] if classes is None else [classes] if isinstance(classes, str) else list(classes)
    for name in chosen:
        if name not in names:
            near = get_close_matches(str(name), names, 1)
            raise ValueError(f"{name!r} is no class here.{f' Did you mean {near[0]!r}?' if near else ''}")
    rows = list(dict.fromkeys(group_of[name] for name in names))
    table = predictions.assign(row=predictions["target"].map(group_of), column=predictions["predicted"].map(group_of))
    if after is not None:
        then = after.set_index("path")[["predicted", "probability"]].add_suffix("_after")
        table = table.join(then, on="path").assign(column_after=lambda t: t["predicted_after"].map(group_of))
    if chosen:
        wanted = {group_of[name] for name in chosen}
        answers = [column for column in ("row", "column", "column_after") if column in table]
        table = table[table[answers].isin(wanted).any(axis=1)]
        rows = [name for name in rows if name in {*wanted, *table[answers].to_numpy().ravel()}]
    worst = table.sort_values("loss", ascending=False, kind="stable", na_position="first")
    cells = _counts(worst, per_cell) if after is None else _changes(worst, per_cell)
    said = table.assign(target=table["row"], predicted=table["column"])
    sentence = _sentence(said) if after is None else _comparison(said, said.assign(predicted=table["column_after"]))
    return Explorer(_page(sentence, rows, cells, _Pictures(cells, predictions, nearest)))


def _counts(worst: pd.DataFrame, per_cell: int) -> dict[tuple[str, str], _Cell]:
    """The cells of one model's matrix; `worst` is ordered by loss."""
    each = worst.groupby(["row", "column"], sort=False)
    sizes = each.size()
    per_cell = _fewer(sizes, per_cell)
    photos_of = worst["row"].value_counts()
    most = max([count for (row, column), count in sizes.items() if row != column], default=1)
    cells = {}
    for (row, column), photos in each:
        count, right = len(photos), row == column
        # Errors are few: each more must be seen, so their colour is by number, that of right answers by share.
        depth = 0.1 + 0.5 * (count / photos_of[row] if right else count / most)
        title = f"{count} {'photo' if count == 1 else 'photos'} of {row} predicted as {column}"
        some = "" if count <= per_cell else f"{per_cell} of them shown, the largest loss first"
        style = f"background-color:rgba({BETTER if right else WORSE},{depth:.2f})"
        cells[row, column] = _Cell(str(count), style, title, [(some, photos.head(per_cell))])
    return cells


def _fewer(sizes: pd.Series, per_cell: int) -> int:
    """How many photos each of some groups may show, so that the page does not become too large."""
    while per_cell > 1 and sizes.clip(upper=per_cell).sum() > SHOWN:
        per_cell -= 1
    return per_cell


def _changes(worst: pd.DataFrame, per_cell: int) -> dict[tuple[str, str], _Cell]:
    """The cells of the change from one model to another: what came into a cell, and what left it."""
    moved = worst[worst["column"] != worst["column_after"]]
    per_cell = _fewer(moved.groupby(["row", "column", "column_after"]).size().repeat(2), per_cell)  # shown twice
    came = dict(list(moved.groupby(["row", "column_after"], sort=False)))
    went = dict(list(moved.groupby(["row", "column"], sort=False)))
    cells = {}
    for row, column in came.keys() | went.keys():
        both = [photos.get((row, column), moved.head(0)) for photos in (came, went)]
        change = len(both[0]) - len(both[1])
        better = change * (1 if row == column else -1)
        groups = []
        for photos, verb in zip(both, ("came", "went"), strict=True):
            kinds = {
                "now right": photos["column_after"] == photos["row"],
                "now wrong": photos["column"] == photos["row"],
                "wrong in another way": (photos["column"] != photos["row"]) & (photos["column_after"] != photos["row"]),
            }
            for kind, which in kinds.items():
                if count := int(which.sum()):
                    some = "" if count <= per_cell else f", {per_cell} of them shown"
                    groups.append((f"{verb}, {kind}: {count}{some}", photos[which].head(per_cell)))
        judged = "better" if better > 0 else "worse" if better < 0 else "as many"
        title = f"{row} predicted as {column}: {len(both[0])} came, {len(both[1])} went, {judged}"
        # Not by colour alone: what got worse is underlined.
        style = f"background-color:rgba({BETTER if better > 0 else WORSE},{min(0.7, 0.1 + 0.1 * abs(change)):.2f})"
        style = f"{style};text-decoration:underline" if better < 0 else style if better else ""
        cells[row, column] = _Cell(f"{change:+d}" if change else "0", style, title, groups)
    return cells


def _sentence(table: pd.DataFrame) -> str:
    correct = (table["target"] == table["predicted"]).sum()
    return (
        f"{len(table):,} photos, {correct:,} correct. Rows: true class. Columns: predicted class. "
        "Open a cell to see its photos, the largest loss first."
    )


def _comparison(before: pd.DataFrame, after: pd.DataFrame) -> str:
    test = mcnemar(before, after)
    told = []
    for name, predictions in (("before", before), ("after", after)):
        low, high = bootstrap_interval(predictions)
        told.append(f"{name} {accuracy(predictions):.1%} correct ({low:.1%} to {high:.1%})")
    return (
        f"{len(before):,} photos: {', '.join(told)}; {test['only_other']} now right, {test['only_one']} now wrong "
        f"(McNemar's p = {test['p_value']:.3f}). A cell shows the change of its count; underlined: worse. "
        "Open it to see which photos came and went."
    )


class _Pictures:
    """The pictures of a page as data addresses: every photo small, and what explains it as far as there is room.

    Args:
        cells: whose photos are shown.
        predictions: of all photos; the surest right answer of a class is its reference.
        nearest: training photos below each photo, or None.
    """

    def __init__(
        self, cells: dict[tuple[str, str], _Cell], predictions: pd.DataFrame, nearest: pd.DataFrame | None
    ) -> None:
        right = predictions[predictions["target"] == predictions["predicted"]].sort_values("probability")
        surest = right.drop_duplicates("target", keep="last")
        self.reference = {row.target: Path(row.root, row.path) for row in surest.itertuples()}
        self.near: dict[str, list[tuple[Path, str]]] = {}
        for row in () if nearest is None else nearest.itertuples():
            self.near.setdefault(row.path, []).append((Path(row.root, row.nearest), row.label))
        shown = pd.concat([photos for cell in cells.values() for _, photos in cell.groups] or [predictions.head(0)])
        wrong = shown[_wrong(shown)]
        worst = wrong.drop_duplicates("path").nlargest(EXPLAINED, "loss")
        photos = [(Path(row.root, row.path), THUMBNAIL) for row in shown.itertuples()]
        others = [(file, SMALL) for file in self.reference.values() if len(wrong)]
        others += [(file, SMALL) for path in worst["path"] for file, _ in self.near.get(path, [])]
        others += [(Path(row.root, row.path), LARGE) for row in worst.itertuples()]
        wanted = list(dict.fromkeys(photos + others))
        with photo_threads() as threads:
            self.drawn = dict(
                zip(wanted, threads.map(lambda pair: picture(pair[0], pair[1], QUALITY), wanted), strict=True)
            )
        self.room = PAGE - sum(len(self.drawn[pair]) for pair in photos)

    def img(self, file: Path, side: int, alt: str, shown_at: int = 0) -> str:
        """A picture as an element; the reason where it cannot be read; nothing where there is no room for it."""
        address = self.drawn.get((file, side), "")
        if side != THUMBNAIL and address.startswith("data:"):
            if self.room < len(address):
                return ""
            self.room -= len(address)
        return img(address, shown_at or side, alt)


def _page(sentence: str, names: list[str], cells: dict[tuple[str, str], _Cell], pictures: _Pictures) -> str:
    """The table, its rows and columns in the order of `names`."""
    # Where the rows begin, below the sentence and the columns' names: between `top` and `low`.
    longest = min(max((len(both(name)) for name in names), default=0), LONGEST)
    top, low = 50 + LETTER * longest, 50 + STACKED * longest
    group, height = uuid4().hex, low + PITCH * len(names)
    lines = []
    for row, true in enumerate(names):
        line = [f'<th scope="row" style="{_NAME}" title="{text(true)}">{text(both(true))}</th>']
        for predicted in names:
            cell = cells.get((true, predicted))
            if cell is None:
                line.append(f'<td style="{_CELL}"></td>')
                continue
            tall = _height(cell, pictures)
            above, below = top + PITCH * row - tall, low + PITCH * (row + 1) + tall
            up = above >= 0 and 2 * row >= len(names)
            height = height if up else max(height, below)
            panel = _panel(cell, pictures, tall, -tall - ROW if up else 0)
            title = text(cell.title)
            summary = f'<summary style="{_SUMMARY}" title="{title}" aria-label="{title}">{cell.number}</summary>'
            details = f'<details name="{group}">{summary}{panel}</details>'
            line.append(f'<td style="{_CELL};{cell.style}">{details}</td>')
        lines.append(f'<tr style="background-color:transparent">{"".join(line)}</tr>')
    heads = "".join(
        f'<th scope="col" style="{_HEAD}" title="{text(name)}"><div style="{_TURNED}">{text(both(name))}</div></th>'
        for name in names
    )
    return (
        f'<div style="position:relative;min-height:{height}px;min-width:{PHOTO_WIDTH * PHOTOS_A_ROW + 60}px">'
        f'<div style="height:40px;line-height:20px;font-size:13px">{sentence}</div>'
        f'<table style="{_TABLE}"><thead><tr><td style="border:none"></td>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


_TABLE = "border-collapse:collapse;table-layout:auto;font-size:11px;margin:0;width:auto"
_FIT = "white-space:nowrap;overflow:hidden;text-overflow:ellipsis"
_NAME = f"height:{ROW}px;max-width:200px;padding:0px 6px 0px 0px;text-align:right;font-weight:400;border:none;{_FIT}"
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


def _height(cell: _Cell, pictures: _Pictures) -> int:
    """Of a cell's panel, in pixels."""
    rows = sum(math.ceil(len(photos) / PHOTOS_A_ROW) for _, photos in cell.groups)
    explained = SMALL + 24  # the classes' surest photos
    each = PHOTO_HEIGHT + (NEAR + 16 if pictures.near else 0)
    return min(TALLEST, 44 + 20 * len(cell.groups) + each * rows + explained)


def _wrong(photos: pd.DataFrame) -> pd.Series:
    """Which photos one of the models has wrong."""
    answers = [column for column in ("predicted", "predicted_after") if column in photos]
    return photos[answers].ne(photos["target"], axis=0).any(axis=1)


def _panel(cell: _Cell, pictures: _Pictures, tall: int, lift: int) -> str:
    """The photos of one cell, over the table; in colours of its own, since it covers the table in either theme."""
    wide = PHOTO_WIDTH * min(max(*(len(photos) for _, photos in cell.groups), 3), PHOTOS_A_ROW) + 16
    body = f'<div style="height:24px;font-size:13px;line-height:20px;{_FIT}"><b>{text(cell.title)}</b></div>'
    for heading, photos in cell.groups:
        body += f'<div style="font-size:13px;line-height:20px">{text(heading)}</div>' if heading else ""
        figures = "".join(_photo(row, pictures) for row in photos.itertuples())
        body += f'<div style="display:flex;flex-wrap:wrap">{figures}</div>'
    first = next(cell.groups[0][1].itertuples())
    answers = dict.fromkeys([first.target, first.predicted, getattr(first, "predicted_after", first.target)])
    references = "".join(
        f'<div style="display:inline-block;margin-right:12px">{surest}<div>{text(both(name))}, surest</div></div>'
        for name in answers
        if len(answers) > 1 and name in pictures.reference
        if (surest := pictures.img(pictures.reference[name], SMALL, f"{name}, the surest right answer"))
    )
    return (
        f'<div style="position:absolute;left:4px;z-index:9;width:{wide}px;height:{tall - 12}px;'
        f"margin-top:{lift}px;padding:6px 6px 4px 6px;overflow:auto;background-color:#f7f7f7;color:#1a1a1a;"
        'border:1px solid #767676;text-align:left;font-size:11px;line-height:15px;text-decoration:none">'
        f"{body}{references}</div>"
    )


def _photo(row: Any, pictures: _Pictures) -> str:
    """One photo of a panel: itself, what was said of it, its name, and what it resembles."""
    file = Path(row.root, row.path)
    wrong = row.target != row.predicted or getattr(row, "predicted_after", row.target) != row.target
    alt = f"{row.target}, predicted as {row.predicted}"
    shown = pictures.img(file, THUMBNAIL, alt)
    if wrong and (large := pictures.img(file, LARGE, f"{alt}, larger")):
        shown = f'<details><summary style="display:block;cursor:zoom-in">{shown}</summary>{large}</details>'
    told = f"{row.probability:.0%} sure, loss {row.loss:.2f}"
    if hasattr(row, "predicted_after"):
        told = (
            f"before: {text(row.predicted)}, {row.probability:.0%}<br>"
            f"after: {text(row.predicted_after)}, {row.probability_after:.0%}"
        )
    near = [
        f'<span title="{text(label)}">{small}</span>'
        for path, label in (pictures.near.get(row.path, []) if wrong else [])
        if (small := pictures.img(path, SMALL, f"a training photo of {label}", NEAR))
    ]
    labels = ", ".join(dict.fromkeys(label for _, label in pictures.near.get(row.path, [])))
    learned = f'<div style="{_FIT}">learned from: {text(labels)}</div>{"".join(near)}' if near else ""
    return (
        f'<div style="width:{PHOTO_WIDTH - 8}px;margin:0px 4px 6px 4px"><div style="min-height:{THUMBNAIL * 3 // 4}px">'
        f"{shown}</div><div>{told}</div>"
        f'<div title="{text(row.path)}" style="{_FIT}">{text(Path(row.path).name)}</div>{learned}</div>'
    )
