"""Corrections of labels, in a file of their own: photos on disk are never touched, and no line is ever rewritten."""

import csv
import io
import os
from collections.abc import Mapping
from datetime import datetime, timezone
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd

from cropkit.data.tables import read_table

COLUMNS = ["path", "sha256", "from", "to", "when"]
EXCLUDE = "exclude"  # instead of a class: the photo is left out
UNDO = "undo"  # instead of a class: as if nothing had been said of the photo


def add_correction(file: str | os.PathLike[str], photo: Mapping[str, Any], to: str) -> None:
    """Append one decision about a photo; it is on the disk when this returns.

    The last line of a photo rules. The label as filed says that it is right.

    Args:
        file: ``corrections.csv``; made if it is missing.
        photo: a row of a catalog: ``path``, ``sha256``, ``label``.
        to: a class name, ``"exclude"``, or ``"undo"``, which takes back what was said of the photo.

    Raises:
        ValueError: if the file is no table of corrections, or `to` is empty.
        OSError: if it cannot be written.

    Example:
        >>> add_correction("corrections.csv", catalog.iloc[0], "pear")
        >>> read_corrections("corrections.csv")[["path", "from", "to"]]
                  path   from    to
        2  apple/0.jpg  apple  pear
    """
    if not to:
        raise ValueError(f"{photo['path']}: say a class, {EXCLUDE!r} or {UNDO!r}, not nothing.")
    file = Path(file).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    lines, encoding, whole = _lines(file) if file.exists() else (pd.DataFrame(columns=COLUMNS), "utf-8", 0)
    before = lines[(lines["path"] == photo["path"]) & (lines["sha256"] == photo["sha256"])].tail(1)
    filed = photo["label"]
    if len(before) and filed == before["to"].item():  # the catalog is a corrected one
        filed = before["from"].item()
    text, now = io.StringIO(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    row = [photo["path"], photo["sha256"], filed, to, now]
    csv.writer(text, lineterminator="\n").writerows([row] if whole else [COLUMNS, row])
    with file.open("ab") as out:
        if out.tell() > whole:  # the power went in the middle of a line, which nobody was told is kept
            out.truncate(whole)
        out.write(text.getvalue().encode(encoding, "surrogateescape"))
        out.flush()
        os.fsync(out.fileno())


def read_corrections(file: str | os.PathLike[str]) -> pd.DataFrame:
    """The corrections that hold: of each photo the last line, unless it says what the photo was filed as.

    Args:
        file: written by `add_correction`, or by hand.

    Returns:
        ``path``, ``sha256``, ``from`` (the class that it was filed as), ``to`` (a class, or ``"exclude"``), ``when``
        (UTC), by their line in the file. A line that a power cut broke off does not count, and is named.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a column is missing.

    Example:
        >>> add_correction("corrections.csv", catalog.iloc[0], "exclude")
        >>> add_correction("corrections.csv", catalog.iloc[0], "apple")  # as it was filed
        >>> len(read_corrections("corrections.csv"))
        0
    """
    said = decisions(file)
    return said[said["to"] != said["from"]]


def decisions(file: str | os.PathLike[str]) -> pd.DataFrame:
    """What was said last of each photo, as `read_corrections` has it, labels that were found right among it."""
    lines, _, _ = _lines(Path(file).expanduser())
    last = lines[~lines["path"].duplicated(keep="last")]
    return last[last["to"] != UNDO]


def _lines(file: Path) -> tuple[pd.DataFrame, str, int]:
    """All whole lines of a file of corrections, its encoding, and how many bytes they take."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of corrections.")
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        print(f"{file}: its last line is incomplete, so it does not count")
    if not whole:
        return pd.DataFrame(columns=COLUMNS), "utf-8", 0
    table, encoding = read_table(file, data[:whole])
    if missing := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"{file}: has no column {', '.join(missing)}; a file of corrections has {', '.join(COLUMNS)}.")
    known = (table[COLUMNS] != "").all(axis=1)
    for line in table.index[~known]:
        print(f"{file}, line {line}: is incomplete, so it does not count")
    heads = table["path"].eq("path") & table["to"].eq("to")  # of two processes that began the file at once
    return table.loc[known & ~heads, COLUMNS], encoding, whole


def correct(catalog: pd.DataFrame, file: str | os.PathLike[str]) -> pd.DataFrame:
    """A catalog with corrected labels; what is to be left out gets a problem that says so.

    Args:
        catalog: from `scan`.
        file: of corrections.

    Returns:
        A copy; ``note`` says what a corrected photo was filed as. How many corrections are of photos that the catalog
        does not hold is printed.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a photo has changed since, is filed as another class now, or is to get a class that the catalog
            does not have; names it.

    Example:
        >>> add_correction("corrections.csv", catalog.iloc[0], "pear")
        >>> correct(catalog, "corrections.csv")[["path", "label", "note"]].head(1)
                  path label                note
        0  apple/0.jpg  pear  was filed as apple
    """
    corrections = read_corrections(file)
    known, catalog = set(catalog["label"]), catalog.copy()
    if reserved := known & {EXCLUDE, UNDO}:
        raise ValueError(
            f"a class is called {min(reserved)!r}, which means something else in {file}. Rename its folder."
        )
    row_of = {path: row for row, path in zip(catalog.index, catalog["path"], strict=True)}
    for line, one in corrections.iterrows():
        if (row := row_of.get(one["path"])) is None:
            continue
        where, label = f"{file}, line {line}: {one['path']}", catalog.at[row, "label"]
        if catalog.at[row, "sha256"] != one["sha256"]:
            raise ValueError(f"{where} is another photo now than the one that was judged. Look at it again.")
        if label not in (one["from"], one["to"]):
            raise ValueError(f"{where} was filed as {one['from']!r} then, and is {label!r} now. Look at it again.")
        if one["to"] == EXCLUDE:
            catalog.at[row, "problem"] = f"excluded by {Path(file).name}"
        elif one["to"] not in known:
            near = get_close_matches(one["to"], sorted(known), 1)
            raise ValueError(f"{where}: {one['to']!r} is no class here.{f' Did you mean {near[0]!r}?' if near else ''}")
        elif label != one["to"]:
            catalog.at[row, "label"] = one["to"]
            catalog.at[row, "note"] = "; ".join(filter(None, [catalog.at[row, "note"], f"was filed as {label}"]))
    elsewhere = (~corrections["path"].isin(row_of)).sum()
    if elsewhere:
        print(f"{file}: {elsewhere} corrections are of photos that are not here")
    return catalog
