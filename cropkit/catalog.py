"""The catalog: a DataFrame with one row a photo. Find photos, look for duplicates, split."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cropkit.photos import BadPhoto, decode_photo
from cropkit.progress import progress

SPLITS = ("train", "val", "test")
COLUMNS = ["path", "label", "width", "height", "format", "bytes", "sha256", "phash", "problem", "split"]
PHOTO_SUFFIXES = {*Image.registered_extensions(), ".heic", ".heif", ""}
NEAR = 2  # bits of 64 in which the perceptual hashes of near-duplicates may differ


def scan(root: str | os.PathLike[str], *, workers: int | None = None) -> pd.DataFrame:
    """List every photo below a folder, decode it once, and say what is wrong with it.

    Three layouts are understood: ``<class>/<photo>``, ``train|val|test/<class>/<photo>``, and a folder with an
    ``index.csv`` of the columns ``path, label`` and, if there is one, ``split`` (``train``, ``val`` or ``test``).

    Args:
        root: the folder.
        workers: threads that decode; as many as the machine has cores unless given.

    Returns:
        One row a photo, ordered by path: ``path`` (relative to the root, with ``/``), ``label``, ``width`` and
        ``height`` (upright, pixels), ``format``, ``bytes``, ``sha256``, ``phash`` (64-bit perceptual hash, 16 hex
        digits), ``problem`` ("" for a good photo) and ``split`` ("" where the layout has none).
        ``attrs["root"]`` is the folder, ``attrs["skipped"]`` a list of (path, reason) of what was passed over.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no photo, or ``index.csv`` is malformed (the row is named).
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Name the folder that holds one folder a class.")
    files, skipped = _list_files(root)
    if (root / "index.csv").is_file():
        rows = _read_index(root / "index.csv")
        listed = {row["path"] for row in rows}
        skipped += [(path, "not in index.csv") for path in files if path not in listed]
    else:
        rows = _label_by_folder(files)
    if not rows:
        raise ValueError(f"{root}: holds no photos. Expected {root}/<class>/<photo>, or an index.csv of path,label.")
    rows.sort(key=lambda row: row["path"])
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
        facts = list(progress(pool.map(lambda row: _inspect(root / row["path"]), rows), "scan", total=len(rows)))
    catalog = pd.DataFrame([{**fact, **row} for row, fact in zip(rows, facts, strict=True)])
    unplaced = catalog["label"] == ""
    catalog.loc[unplaced & (catalog["problem"] == ""), "problem"] = "lies in no class folder"
    catalog = catalog[COLUMNS]
    catalog.attrs = {"root": str(root), "skipped": skipped}
    return catalog


def _list_files(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Photos below `root` and what is passed over with its reason, as relative paths; links are not followed."""
    files: list[str] = []
    skipped: list[tuple[str, str]] = []
    for folder, names, file_names in os.walk(root):
        here = Path(folder)
        for name in sorted(names):
            path = (here / name).relative_to(root).as_posix()
            if name.startswith(".") or name == "__MACOSX":
                skipped.append((path, "hidden folder"))
            elif (here / name).is_symlink():
                skipped.append((path, "symbolic link, not followed"))
        names[:] = sorted(n for n in names if not n.startswith(".") and n != "__MACOSX")
        for name in sorted(file_names):
            path = (here / name).relative_to(root).as_posix()
            if name.startswith(".") or name == "Thumbs.db":
                skipped.append((path, "hidden file"))
            elif (here / name).is_symlink() and not (here / name).resolve().is_relative_to(root.resolve()):
                skipped.append((path, "symbolic link out of the folder, not followed"))
            elif Path(name).suffix.lower() not in PHOTO_SUFFIXES:
                skipped.append((path, f"not a photo ({Path(name).suffix})"))
            elif here != root or Path(name).suffix:  # LICENSE and the like at the top
                files.append(path)
    return files, skipped


def _label_by_folder(files: list[str]) -> list[dict[str, str]]:
    """Label each path by its folder; a first folder called train, val or test is the split if all are."""
    parts = [path.split("/") for path in files]
    tops = {p[0] for p in parts if len(p) > 1}
    depth = 1 if "train" in tops and tops <= set(SPLITS) else 0
    return [
        {
            "path": path,
            "label": p[depth] if len(p) > depth + 1 else "",
            "split": p[0] if depth and len(p) > 1 else "",
        }
        for path, p in zip(files, parts, strict=True)
    ]


def _read_index(index: Path) -> list[dict[str, str]]:
    # Everything stays text: a class may be called "NA" or "007".
    table = pd.read_csv(index, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    missing = {"path", "label"} - set(table.columns)
    if missing:
        raise ValueError(f"{index}: has no column {sorted(missing)}; it has {list(table.columns)}.")
    table["split"] = table.get("split", pd.Series("", index=table.index))
    for number, row in enumerate(table.itertuples(), start=2):  # line 1 is the header
        path, label, part = str(row.path), str(row.label), str(row.split)
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{index}, line {number}: path {path!r} leads out of the folder. Use a relative path.")
        if part not in ("", *SPLITS):
            raise ValueError(f"{index}, line {number}: split {part!r} is none of {', '.join(SPLITS)}.")
        if not label:
            raise ValueError(f"{index}, line {number}: {path!r} has no label.")
    twice = table[table["path"].duplicated()]
    if len(twice):
        raise ValueError(f"{index}, line {twice.index[0] + 2}: {twice['path'].iloc[0]!r} is listed twice.")
    return [{"path": str(r.path), "label": str(r.label), "split": str(r.split)} for r in table.itertuples()]


def _inspect(path: Path) -> dict[str, object]:
    """Everything the catalog holds about one file; the file is read once."""
    facts: dict[str, object] = {"width": 0, "height": 0, "format": "", "bytes": 0, "sha256": "", "phash": ""}
    try:
        data = path.read_bytes()
    except OSError as error:
        return {**facts, "problem": f"cannot be read ({error.strerror})"}
    facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        # A reduced decode costs a fraction of a full one and still meets every truncation.
        photo = decode_photo(data, path, min_side=64)
    except BadPhoto as bad:
        return {**facts, "problem": bad.reason}
    width, height = photo.info["full_size"]
    facts |= {"width": width, "height": height, "format": photo.info["format"]}
    return {**facts, "phash": str(imagehash.phash(photo)), "problem": ""}


def good_photos(catalog: pd.DataFrame) -> pd.DataFrame:
    """The rows without a problem."""
    return catalog[catalog["problem"] == ""].reset_index(drop=True)


def class_names(catalog: pd.DataFrame) -> list[str]:
    """The sorted class names of the good photos; a class's index is its place in this list.

    Raises:
        ValueError: if there are fewer than two.
    """
    names = sorted(set(good_photos(catalog)["label"]))
    if len(names) < 2:
        raise ValueError(
            f"{catalog.attrs.get('root', 'the catalog')}: has {len(names)} class{'' if len(names) == 1 else 'es'} "
            f"({', '.join(names) or 'none'}), but a classifier tells at least two apart. Give each its own folder."
        )
    return names


def find_duplicates(catalog: pd.DataFrame) -> pd.DataFrame:
    """Good photos that show the same picture.

    Two photos belong together if their bytes are equal (SHA-256), or if their perceptual hashes differ in at most
    `NEAR` of 64 bits, as after resizing or saving again; so does whatever is linked through a third.

    Returns:
        One row for each photo that has a duplicate, ordered by group: ``group`` (0, 1, ...), ``path``, ``label``,
        ``split``, ``exact`` (True if another photo has the very same bytes).
    """
    photos = good_photos(catalog)
    photos = photos.assign(group=_duplicate_groups(photos), exact=photos["sha256"].duplicated(keep=False))
    repeated = photos[photos["group"].duplicated(keep=False)].sort_values(["group", "path"])
    return repeated.assign(group=pd.factorize(repeated["group"])[0])[
        ["group", "path", "label", "split", "exact"]
    ].reset_index(drop=True)


def _duplicate_groups(photos: pd.DataFrame) -> np.ndarray:
    """A group number for each photo, shape (N,); photos that show the same picture share it."""
    sha = pd.factorize(photos["sha256"])[0]
    first_of = pd.Series(range(len(photos))).groupby(sha).transform("min").to_numpy()
    links = [np.stack([np.arange(len(photos)), first_of])]
    hashes = np.array([int(h, 16) for h in photos["phash"]], dtype=np.uint64)
    # Hashes that differ in at most NEAR bits agree wholly in one of NEAR + 1 bands, so only those are compared.
    edges = np.linspace(0, 64, NEAR + 2).astype(int)
    for low, high in itertools.pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        for members in pd.Series(range(len(photos))).groupby(band).indices.values():
            for place, one in enumerate(members[:-1]):
                others = members[place + 1 :]
                near = others[np.bitwise_count(hashes[others] ^ hashes[one]) <= NEAR]
                links.append(np.stack([np.full(len(near), one), near]))
    rows, columns = np.concatenate(links, axis=1)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(photos), len(photos)))
    return np.asarray(connected_components(graph, directed=False)[1])


def split(catalog: pd.DataFrame, *, fractions: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0) -> pd.DataFrame:
    """Divide the good photos into train, val and test.

    Each class is divided by `fractions` as evenly as whole photos allow, train first, so that every class is in
    train. Photos that show the same picture (see `find_duplicates`) stay in one part, or a model would be tested on
    what it was trained on.

    Args:
        catalog: from `scan`; a ``split`` that it already has is replaced.
        fractions: shares of train, val and test, >= 0, sum 1.
        seed: another seed gives another division.

    Returns:
        A copy with the column ``split`` filled in; it stays "" for photos with a problem.

    Raises:
        ValueError: if `fractions` are not three shares that add up to 1, train above 0.
    """
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or (shares < 0).any() or shares[0] == 0 or not np.isclose(shares.sum(), 1):
        raise ValueError(f"fractions {tuple(fractions)} must be three shares that add up to 1, the first above 0.")
    catalog = catalog.copy()
    catalog["split"] = ""
    rows = catalog.index[catalog["problem"] == ""]
    photos = catalog.loc[rows]
    groups = pd.Series(_duplicate_groups(photos.reset_index(drop=True)), index=rows)
    members = groups.groupby(groups).groups
    wanted = {label: shares * count for label, count in photos["label"].value_counts().items()}
    given = {label: np.zeros(3) for label in wanted}
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    for row in rows[shuffled]:
        if catalog.at[row, "split"]:
            continue  # went with its group
        label = catalog.at[row, "label"]
        lacking = wanted[label] - given[label]
        # A class's first photo goes to train, whatever the shares.
        part = int(np.argmax(lacking)) if given[label][0] else 0
        for member in members[groups[row]]:
            catalog.at[member, "split"] = SPLITS[part]
            given[catalog.at[member, "label"]][part] += 1
    return catalog


def check_split(catalog: pd.DataFrame) -> None:
    """Refuse a catalog whose classes do not all have training photos.

    Raises:
        ValueError: naming the class, its photos, and what to do.
    """
    for label in class_names(catalog):
        parts = catalog.loc[(catalog["label"] == label) & (catalog["problem"] == ""), "split"].value_counts()
        if "train" not in parts:
            have = ", ".join(f"{n} in {part or 'no part'}" for part, n in parts.items())
            raise ValueError(
                f"{catalog.attrs.get('root', 'the catalog')}: class {label!r} has no training photos ({have}). "
                "Move some to train, drop the class, or divide anew: split(catalog)."
            )
