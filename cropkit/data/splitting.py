"""Divide a catalog into train, val and test, so that no picture is in two of them."""

import itertools
import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from cropkit.data.catalog import SPLITS, class_names, folder_of, good_photos, scan
from cropkit.data.pictures import pictures_of

LEFT_OUT = ["path", "label", "split", "reason"]


def find_duplicates(catalog: pd.DataFrame) -> pd.DataFrame:
    """Good photos that show the same picture.

    Two photos belong together if their bytes are equal (SHA-256), or if their pixels agree, colours too, but for what
    saving again, resizing, cutting off a margin of 2 % or a little more light changes. Perceptual hashes only say which
    pairs are worth opening. A group is one photo with those that agree with it, not what agrees with those.

    Args:
        catalog: from `scan`; its photos must be where they were.

    Returns:
        One row for each photo that has a duplicate, ordered by group: ``group`` (0, 1, ...), ``path``, ``label``,
        ``split``, ``exact`` (True if another photo has the very same bytes).

    Raises:
        BadPhoto: if a photo is gone.

    Example:
        >>> find_duplicates(scan("photos"))[["group", "path", "exact"]]
           group            path  exact
        0      0     apple/0.jpg   True
        1      0  apple/copy.jpg   True
    """
    photos = good_photos(catalog)
    number, links = pictures_of(photos)
    neighbours = _neighbours(links)
    group: dict[int, int] = {}  # of each picture
    for leader in sorted(neighbours, key=lambda picture: (-len(neighbours[picture]), picture)):
        if leader not in group:
            group |= {picture: leader for picture in [leader, *neighbours[leader]] if picture not in group}
    groups = pd.Series(number).map(lambda picture: group.get(picture, picture))
    exact = photos["sha256"].duplicated(keep=False)
    repeated = photos.assign(group=groups, exact=exact)[groups.duplicated(keep=False)]
    first = repeated.groupby("group")["path"].transform("min")
    repeated = repeated.assign(group=pd.factorize(first, sort=True)[0]).sort_values(["group", "path"])
    return repeated[["group", "path", "label", "split", "exact"]].reset_index(drop=True)


def _neighbours(links: list[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for one, other in links:
        found.setdefault(one, []).append(other)
        found.setdefault(other, []).append(one)
    return found


def drop_leaks(catalog: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Take out what would leak into val or test, and pictures whose label is in doubt.

    Where two splits hold the same picture (see `find_duplicates`), the photo in test stays, else that in val. A
    picture that is filed under two classes is left out altogether.

    Args:
        catalog: from `scan` or `split`.

    Returns:
        The catalog without these photos, and what was left out, one row a photo: ``path``, ``label``, ``split``,
        ``reason``.

    Example:
        >>> leaking = scan("photos").assign(split="train")
        >>> leaking.loc[leaking["path"] == "apple/copy.jpg", "split"] = "test"
        >>> catalog, left_out = drop_leaks(leaking)
        >>> left_out["reason"].tolist()
        ['same picture as apple/copy.jpg, which is in test']
    """
    photos = good_photos(catalog)
    number, links = pictures_of(photos)
    neighbours = _neighbours(links)
    rank = photos["split"].map({"": 0, "train": 0, "val": 1, "test": 2})
    shown = photos.assign(rank=rank).groupby(number)
    repeated = {picture: rows for picture, rows in shown if len(rows) > 1 or picture in neighbours}
    reasons: dict[str, str] = {}
    for picture, rows in repeated.items():
        alike = pd.concat([rows, *(repeated[other] for other in neighbours.get(picture, ()))])
        for row in rows.itertuples():
            others = alike[alike["label"] != row.label]
            why = "which is called {label!r}"
            if others.empty:
                others, why = alike[alike["rank"] > row.rank], "which is in {split}"
            if len(others):
                other = others.sort_values("rank").iloc[-1]
                reasons[row.path] = f"same picture as {other['path']}, " + why.format(**other[["label", "split"]])
    gone = catalog["path"].isin(list(reasons))
    left_out = catalog[gone]
    left_out = left_out.assign(reason=left_out["path"].map(reasons))[LEFT_OUT].reset_index(drop=True)
    return catalog[~gone].reset_index(drop=True), left_out


def split(
    catalog: pd.DataFrame,
    *,
    fractions: Sequence[float] = (0.6, 0.2, 0.2),
    seed: int = 0,
    groups: str | None = None,
) -> pd.DataFrame:
    """Divide the good photos into train, val and test.

    Each class is divided by `fractions` as evenly as whole photos allow, train first, so that every class is in
    train. Photos that show the same picture (see `find_duplicates`) stay in one split, or a model would be tested on
    what it was trained on.

    Args:
        catalog: from `scan`; a ``split`` that it already has is replaced.
        fractions: shares of train, val and test, >= 0, sum 1.
        seed: another seed gives another division.
        groups: a column, such as a town; photos with the same value stay in one split, the largest group first. A class
            that grows in few places may then lack photos in a split. Rows where it is empty are divided singly.

    Returns:
        A copy with the column ``split`` filled in; it stays "" for photos with a problem.

    Raises:
        ValueError: if `fractions` are not three shares that add up to 1, train above 0; or there is no column `groups`.

    Example:
        >>> split(scan("photos"), fractions=(0.6, 0.2, 0.2))["split"].value_counts().to_dict()
        {'train': 13, 'val': 4, 'test': 4}
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or (shares < 0).any() or shares[0] == 0 or not np.isclose(shares.sum(), 1):
        raise ValueError(f"fractions {tuple(fractions)} must be three shares that add up to 1, the first above 0.")
    good = np.flatnonzero(catalog["problem"] == "")
    photos = catalog.iloc[good].reset_index(drop=True)
    number, links = pictures_of(photos)
    # A pair must never be divided, so here whatever is linked stays together.
    ends = np.array([*enumerate(number), *links, *_same(photos, groups)], dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(ends[0])), (ends[0], ends[1])), shape=(len(photos), len(photos)))
    linked = pd.Series(connected_components(graph, directed=False)[1])
    members = linked.groupby(linked).groups
    labels = photos["label"].tolist()
    wanted = {label: shares * count for label, count in photos["label"].value_counts().items()}
    given = {label: np.zeros(3) for label in wanted}
    chosen = [""] * len(photos)
    order = np.random.default_rng(seed).permutation(len(photos))
    if groups is not None:
        order = np.array(sorted(order, key=lambda row: -len(members[linked[row]])), dtype=int)
    for row in order:
        if chosen[row]:
            continue  # went with its group
        group = members[linked[row]]
        # A class's first photo goes to train, whatever the shares, and its group with it.
        first = groups is None and any(given[labels[member]][0] == 0 for member in group)
        asked = [labels[row]] if groups is None else [labels[member] for member in group]
        lacking = np.sum([wanted[label] - given[label] for label in asked], axis=0)
        place = 0 if first else int(np.argmax(lacking))
        for member in group:
            chosen[member] = SPLITS[place]
            given[labels[member]][place] += 1
    column = np.full(len(catalog), "", dtype=object)
    column[good] = chosen
    return catalog.assign(split=column)


def _same(photos: pd.DataFrame, column: str | None) -> list[tuple[int, int]]:
    """Pairs of rows that have the same value in a column, enough of them to link all of a group."""
    if column is None:
        return []
    if column not in photos:
        raise ValueError(f"the catalog has no column {column!r} to keep together. It has {', '.join(photos.columns)}.")
    values = photos[column][(photos[column] != "") & photos[column].notna()]
    return [pair for rows in values.groupby(values).groups.values() for pair in itertools.pairwise(rows)]


def prepare(
    root: str | os.PathLike[str],
    *,
    corrections: str | os.PathLike[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scan a folder and keep what a model can be trained and tested on.

    A split that the folder brings is kept. Where it has no val or no test photos, these are taken out of train;
    where it has no split at all, `split` makes one. Left out are files that are no photos, photos whose picture is in
    val or test as well, and pictures under two classes (`drop_leaks`). A summary is printed.

    Args:
        root: a folder as `scan` understands it.
        corrections: a file of corrected labels, see `correct`.
        metadata: a table of more facts about the photos, see `scan`.

    Returns:
        A catalog in which every class has training photos, and there are photos in train, val and test; and what was
        left out, one row a file: ``path``, ``label``, ``split``, ``reason``.

    Raises:
        FileNotFoundError, ValueError: if the folder cannot be used; the message says what to do.

    Example:
        >>> catalog, left_out = prepare("photos")
        left out: 0 files that are no photos, 0 photos ...
    """
    scanned = scan(root, corrections=corrections, metadata=metadata)
    bad = scanned[scanned["problem"] != ""].rename(columns={"problem": "reason"})[LEFT_OUT]
    clean, leaks = drop_leaks(good_photos(scanned))
    print(
        f"left out: {len(bad)} files that are no photos, {len(leaks)} photos whose picture is also in val or test, or "
        "under another class"
    )
    catalog = _with_all_splits(clean)
    check_split(catalog)
    missing = [part for part in ("val", "test") if part not in set(catalog["split"])]
    if missing:
        raise ValueError(f"{root}: too few photos for {' and '.join(missing)}. Give a class at least 5 photos.")
    return catalog, pd.concat([bad, leaks], ignore_index=True)


def _with_all_splits(catalog: pd.DataFrame) -> pd.DataFrame:
    """The catalog with photos in train, val and test, taking from train what is missing.

    A class of one training photo gives none away.
    """
    if not (catalog["split"] != "").all():
        return split(catalog)
    missing = [part for part in ("val", "test") if part not in set(catalog["split"])]
    if not missing:
        return catalog
    catalog = catalog.copy()
    train = catalog["split"] == "train"
    shares = [1 - 0.2 * len(missing)] + [0.2 if part in missing else 0.0 for part in ("val", "test")]
    catalog.loc[train, "split"] = split(catalog[train], fractions=shares)["split"]
    print(f"no {' and no '.join(missing)} photos: took them out of train")
    return catalog


def check_split(catalog: pd.DataFrame) -> None:
    """Refuse a catalog whose classes do not all have training photos.

    Args:
        catalog: from `split`, or from `scan` where the folder has a split.

    Raises:
        ValueError: naming the class, its photos, and what to do; or a split that is none of train, val and test.

    Example:
        >>> check_split(scan("photos"))
        Traceback (most recent call last):
        ValueError: photos: class 'apple' has no training photos (11 in no split). Move some to train, ...
    """
    unknown = sorted(set(catalog["split"]) - {"", *SPLITS}) if "split" in catalog else ["no column 'split'"]
    if unknown:
        raise ValueError(f"the catalog has splits other than train, val and test ({unknown[0]}): split(catalog).")
    for label in class_names(catalog):
        parts = catalog.loc[(catalog["label"] == label) & (catalog["problem"] == ""), "split"].value_counts()
        if "train" not in parts:
            have = ", ".join(f"{n} in {part or 'no split'}" for part, n in parts.items())
            raise ValueError(
                f"{folder_of(catalog)}: class {label!r} has no training photos ({have}). "
                "Move some to train, drop the class, or split again: split(catalog)."
            )
