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


def add_correction(file: str | os.PathLike[str], photo: Mapping[str, Any], to: str) -> None:
    """Append one decision about a photo; it is on the disk when this returns.

    The last line of a photo rules, so a decision is taken back by another one: the label as filed.

    Args:
        file: ``corrections.csv``; made if it is missing.
        photo: a row of a catalog: ``path``, ``sha256``, ``label``.
        to: a class name, or ``"exclude"``.

    Raises:
        ValueError: if the file is no table of corrections.
        OSError: if it cannot be written.

    Example:
        >>> add_correction("corrections.csv", catalog.iloc[0], "pear")
        >>> read_corrections("corrections.csv")[["path", "from", "to"]]
                  path   from    to
        2  apple/0.jpg  apple  pear
    """
    file = Path(file).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    filed = photo["label"]
    if file.exists():
        before = decisions(file)
        before = before[before["path"] == photo["path"]]
        filed = before["from"].iloc[0] if len(before) else filed  # the catalog may be a corrected one
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with file.open("ab") as out:
        text = io.StringIO()
        rows = [[photo["path"], photo["sha256"], filed, to, now]]
        csv.writer(text, lineterminator="\n").writerows(rows if out.tell() else [COLUMNS, *rows])
        torn = out.tell() > 0 and not file.read_bytes().endswith(b"\n")  # the power went in the middle of a line
        out.write((b"\n" if torn else b"") + text.getvalue().encode("utf-8", "surrogateescape"))
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
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of corrections.")
    if not file.stat().st_size:
        return pd.DataFrame(columns=COLUMNS)
    table, _ = read_table(file)
    if missing := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"{file}: has no column {', '.join(missing)}; a file of corrections has {', '.join(COLUMNS)}.")
    whole = (table[COLUMNS] != "").all(axis=1)
    for line in table.index[~whole]:
        print(f"{file}, line {line}: is incomplete, so it does not count")
    lines = table.loc[whole, COLUMNS]
    return lines[~lines["path"].duplicated(keep="last")]


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
