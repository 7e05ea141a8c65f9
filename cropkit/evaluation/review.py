"""Judge labels one by one: each decision is a line of ``corrections.csv`` before the next photo appears."""

import os
from pathlib import Path
from typing import Any

import pandas as pd

from cropkit.data.corrections import EXCLUDE, UNDO, add_correction, decisions
from cropkit.evaluation.pages import both, img, picture, text

SIDE, SMALL, QUALITY = 480, 150, 85  # pixels of the photo and of those below it, and of their JPEG


def review(table: pd.DataFrame, corrections: str | os.PathLike[str], *, nearest: pd.DataFrame | None = None) -> Any:
    """Show photos one by one, and keep what you say of their labels.

    A photo about which the file says something is not shown again, so the same call goes on where it was left, after
    a reload of the page or another start of the kernel too.

    Args:
        table: from `find_label_errors`, or other rows with ``path``, ``root``, ``label`` and ``sha256``; shown in its
            order. Where it has a column ``suggested``, that class is offered first.
        corrections: the file, see `add_correction`.
        nearest: from `nearest_photos`; shown below the photo.

    Returns:
        A widget. Its buttons say that the label is right, that it is another one, that the photo is to be left out, and
        take the last decision back. By keyboard: a class and Enter, or one of the letters r, x, u and Enter.

    Raises:
        ValueError: if a column is missing, or the file is no table of corrections.
        OSError: if the file cannot be written.
        ImportError: if ipywidgets is not installed.

    Example:
        >>> table = catalog.head(2).assign(suggested="pear")
        >>> panel = review(table, "reviewed.csv")
        >>> panel.children[0].value.startswith("<b>0 of 2 judged")
        True
    """
    try:
        import ipywidgets as widgets
    except ImportError as error:
        raise ImportError("review needs ipywidgets: pip install ipywidgets") from error
    if missing := [column for column in ("path", "root", "label", "sha256") if column not in table]:
        raise ValueError(
            f"the table has no column {', '.join(missing)}. Take rows of find_label_errors or of a catalog."
        )
    file = Path(corrections).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab"):  # finds now whether it can be written
        pass
    names = sorted({*table["label"], *table.get("suggested", [])})
    rows = table.to_dict("records")
    said = decisions(file).set_index("path")[["sha256", "from", "to"]].to_dict("index")
    waiting = [row for row in rows if not _judged(row, said.get(row["path"]))]
    done: list[dict[str, Any]] = []  # in this sitting

    def large(root: str, path: str, side: int) -> str:
        return img(picture(Path(root, path), side, QUALITY), side, path)

    def named(name: str) -> str:
        return text(both(name))

    head, photo, likes, told = widgets.HTML(), widgets.HTML(), widgets.HTML(), widgets.HTML()
    answer = widgets.Combobox(
        options=names, placeholder="a class, or r (right), x (exclude), u (undo), then Enter",
        continuous_update=False, layout={"width": "26em"},
    )  # fmt: skip
    right = widgets.Button(description="right")
    other = widgets.Button(description="it is ...", button_style="primary", layout={"width": "auto"})
    exclude = widgets.Button(description="exclude")
    undo = widgets.Button(description="undo")

    def show() -> None:
        head.value = f"<b>{len(rows) - len(waiting)} of {len(rows)} judged</b>, in {text(file)}"
        undo.disabled = not done
        right.disabled = other.disabled = exclude.disabled = answer.disabled = not waiting
        if not waiting:
            photo.value = likes.value = ""
            return
        row = waiting[0]
        suggested = row.get("suggested", "")
        other.description = f"it is {suggested}" if suggested else "it is ..."
        other.disabled = not suggested
        photo.value = (
            f"{large(row['root'], row['path'], SIDE)}<div>filed as <b>{named(row['label'])}</b>"
            f"{f', looks like <b>{named(suggested)}</b>' if suggested else ''} ({text(row['path'])})</div>"
        )
        likes.value = ""
        if nearest is not None and len(near := nearest[nearest["path"] == row["path"]]):
            figures = [
                f'<div style="display:inline-block;margin-right:8px">{large(one.root, one.nearest, SMALL)}'
                f"<div>{named(one.label)}</div></div>"
                for one in near.itertuples()
            ]
            likes.value = f"<div>most like it:</div>{''.join(figures)}"

    def keep(row: dict[str, Any], to: str) -> bool:
        try:
            add_correction(file, row, to)
        except (OSError, ValueError) as error:
            told.value = f"<b>not kept: {text(error)}</b>"
            return False
        told.value = f"{text(row['path'])}: {text(to)}"
        return True

    def decide(to: str) -> None:
        row = waiting[0]
        if keep(row, to):  # on disk before the next photo appears
            done.append(waiting.pop(0))
            show()

    def take_back() -> None:
        if done:
            row = done[-1]
            if keep(row, UNDO):
                waiting.insert(0, done.pop())
                show()

    def say(change: dict[str, Any]) -> None:
        said, answer.value = change["new"].strip(), ""
        if not said or (not waiting and said != "u"):
            return
        if said in names:
            decide(said)
        elif said == "r":
            decide(waiting[0]["label"])
        elif said == "x":
            decide(EXCLUDE)
        elif said == "u":
            take_back()
        else:
            told.value = f"{text(said)!r} is no class here: {text(', '.join(names))}"

    answer.observe(say, "value")
    right.on_click(lambda _: decide(waiting[0]["label"]))
    other.on_click(lambda _: decide(waiting[0]["suggested"]))
    exclude.on_click(lambda _: decide(EXCLUDE))
    undo.on_click(lambda _: take_back())
    show()
    return widgets.VBox([head, photo, widgets.HBox([right, other, exclude, undo]), answer, told, likes])


def _judged(row: dict[str, Any], said: dict[str, str] | None) -> bool:
    """Whether what was said is of this photo, and of the label that it has now."""
    return said is not None and said["sha256"] == row["sha256"] and row["label"] in (said["from"], said["to"])
