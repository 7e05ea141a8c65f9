"""The catalog: a DataFrame with one row a photo. Find photos, look for duplicates, split."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cropkit.photos import BadPhoto, decode_photo, read_photo
from cropkit.progress import progress

SPLITS = ("train", "val", "test")
COLUMNS = [
    *("path", "label", "width", "height", "format", "bytes", "sha256", "phash", "dhash", "problem", "note", "split"),
]
PHOTO_SUFFIXES = {*Image.registered_extensions(), ".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ""}
NAMING = ("path", "Img", "filename")  # columns of a metadata table that name a photo
NEAR = 12  # bits of 64 in which either perceptual hash of near-duplicates may differ
TABLES, SAMPLE = 96, 20
FLAT = "0" * 16  # the dhash of a picture without an edge
CHUNK = 256  # photos that are read ahead


def scan(
    root: str | os.PathLike[str], *, metadata: str | os.PathLike[str] | None = None, workers: int | None = None
) -> pd.DataFrame:
    """List every photo below a folder, decode it once, and say what is wrong with it.

    Three layouts are understood: ``<class>/<photo>``, ``train|val|test/<class>/<photo>``, and a folder with an
    ``index.csv`` of the columns ``path, label`` and, if there is one, ``split`` (``train``, ``val`` or ``test``).

    Args:
        root: the folder.
        metadata: a table of more facts, UTF-8 or cp950, with a column ``path``, ``Img`` or ``filename``. Joined by
            path where it holds paths of this folder, else by file name; its other columns are added as text, except
            those that the catalog has already.
        workers: threads that decode; as many as the machine has cores unless given.

    Returns:
        One row a photo, ordered by path: ``path`` (relative to the root, with ``/``), ``label``, ``width`` and
        ``height`` (upright, pixels), ``format``, ``bytes``, ``sha256``, ``phash`` and ``dhash`` (64-bit perceptual
        hashes of the picture and of its edges, 16 hex digits), ``problem`` ("" for a good photo), ``note`` (what is
        odd about a good one) and ``split`` ("" where the layout has none), then the metadata.
        ``attrs["root"]`` is the folder; ``attrs["skipped"]`` a list of (path, reason) of what was passed over;
        ``attrs["index"]`` holds the ``file`` and ``encoding`` of an index.csv; ``attrs["metadata"]`` those of the
        other table, with its ``rows_without_photo`` (paths or file names) and ``photos_without_row`` (paths).

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no photo, or a table is malformed (the row is named).
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Name the folder that holds one folder a class.")
    files, skipped = list_files(root)
    if (root / "index.csv").is_file():
        rows, encoding = _read_index(root / "index.csv")
        listed = {row["path"] for row in rows}
        skipped += [(path, "not in index.csv") for path in files if path not in listed]
    else:
        rows, encoding = _label_by_folder(root, files), ""
    if not rows:
        raise ValueError(f"{root}: holds no photos. Expected {root}/<class>/<photo>, or an index.csv of path,label.")
    rows.sort(key=lambda row: row["path"])
    table = None if metadata is None else _read_metadata(Path(metadata).expanduser())
    facts = progress(_inspect_all(root, rows, workers or os.cpu_count()), "scan", total=len(rows))
    catalog = pd.DataFrame(list(facts), columns=COLUMNS)
    unplaced = (catalog["label"] == "") & (catalog["problem"] == "")
    catalog.loc[unplaced, "problem"] = "lies in no class folder"
    catalog.attrs = {"root": str(root), "skipped": skipped}
    if encoding:
        catalog.attrs["index"] = {"file": str(root / "index.csv"), "encoding": encoding}
    return catalog if table is None else _join(catalog, table)


def _inspect_all(root: Path, rows: list[dict[str, str]], workers: int | None) -> Iterator[dict[str, object]]:
    """What the catalog holds about each row, in order."""
    root = root.resolve()
    pool = ThreadPoolExecutor(workers)  # Pillow decodes outside Python's lock
    try:
        for start in range(0, len(rows), CHUNK):  # few at a time, so that nothing piles up
            chunk = rows[start : start + CHUNK]
            for facts, row in zip(pool.map(lambda row: _inspect(root, row["path"]), chunk), chunk, strict=True):
                yield facts | row
    finally:
        pool.shutdown(cancel_futures=True)  # on Ctrl-C nothing goes on in the background


def list_files(root: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """Photos below `root` and what is passed over with its reason, as relative paths; links are not followed."""
    files: list[str] = []
    skipped: list[tuple[str, str]] = []

    def report(error: OSError) -> None:
        skipped.append((os.path.relpath(error.filename, root), f"folder cannot be read ({error.strerror})"))

    for folder, names, file_names in os.walk(root, onerror=report):
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
            elif Path(name).suffix.lower() not in PHOTO_SUFFIXES:
                skipped.append((path, f"not a photo ({Path(name).suffix})"))
            elif here != root or Path(name).suffix:  # LICENSE and the like at the top
                files.append(path)
    return files, skipped


def _label_by_folder(root: Path, files: list[str]) -> list[dict[str, str]]:
    """Label each path by its folder; where the first folders are train, val and test, they are the split."""
    parts = [path.split("/") for path in files]
    tops = {p[0] for p in parts if len(p) > 1}
    divided = not tops.isdisjoint(SPLITS) or "train" in {top.lower() for top in tops}
    if divided and not tops <= set(SPLITS):
        raise ValueError(
            f"{root}: holds {', '.join(sorted(tops))}. Beside train only val and test are understood, in lower case; "
            "rename or move the others."
        )
    return [
        {
            "path": path,
            "label": p[divided] if len(p) > divided + 1 else "",
            "split": p[0] if divided and len(p) > 1 else "",
        }
        for path, p in zip(files, parts, strict=True)
    ]


def _read_table(file: Path) -> tuple[pd.DataFrame, str]:
    """A CSV table, its rows by their line in the file, and its encoding.

    Everything stays text, since a class may be called "NA" or "007".
    """
    data = file.read_bytes()
    for encoding in ("utf-8-sig", "cp950"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        break
    else:
        raise ValueError(f"{file}: is neither UTF-8 nor cp950. Save it as UTF-8.")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[int, list[str]] = {}
    try:
        header = next((row for row in lines if row), [])
        for row in lines:
            if any(row[len(header) :]):  # a comma at the end is harmless
                raise csv.Error(f"{len(row)} fields, but the header has {len(header)}")
            if row:
                rows[lines.line_num] = [*row, *[""] * len(header)][: len(header)]
    except csv.Error as error:
        raise ValueError(f"{file}, line {lines.line_num}: is no row of a CSV table ({error}).") from error
    if not header or len(set(header)) < len(header):
        raise ValueError(f"{file}: its first line must name the columns, each once; it is {header}.")
    table = pd.DataFrame.from_dict(rows, orient="index", columns=header, dtype=str)
    return table, encoding.removesuffix("-sig")


def _plain_paths(file: Path, paths: pd.Series) -> pd.Series:
    """The paths without "./" and the like; refuses those that lead out of the folder or come twice."""
    for line, path in paths.items():
        for kind in (PurePosixPath(path), PureWindowsPath(path)):
            if kind.is_absolute() or kind.drive or ".." in kind.parts:
                raise ValueError(f"{file}, line {line}: path {path!r} leads out of the folder. Use a relative path.")
    paths = paths.map(lambda path: PurePosixPath(path).as_posix())
    twice = paths[paths.duplicated()]
    if len(twice):
        raise ValueError(f"{file}, line {twice.index[0]}: {twice.iloc[0]!r} is listed twice.")
    return paths


def _read_index(index: Path) -> tuple[list[dict[str, str]], str]:
    """Path, label and split of each row, and the table's encoding."""
    table, encoding = _read_table(index)
    missing = {"path", "label"} - set(table.columns)
    if missing:
        raise ValueError(f"{index}: has no column {sorted(missing)}; it has {list(table.columns)}.")
    table["split"] = table.get("split", pd.Series("", index=table.index))
    table["path"] = _plain_paths(index, table["path"])
    for row in table.itertuples():
        number = row.Index
        if row.split not in ("", *SPLITS):
            raise ValueError(f"{index}, line {number}: split {row.split!r} is none of {', '.join(SPLITS)}.")
        if row.split == "" and (table["split"] != "").any():
            raise ValueError(f"{index}, line {number}: {row.path!r} has no split, but others have one.")
        if not row.label:
            raise ValueError(f"{index}, line {number}: {row.path!r} has no label.")
    return table[["path", "label", "split"]].to_dict("records"), encoding


def _read_metadata(file: Path) -> tuple[Path, pd.DataFrame, str]:
    """The table with its photos' paths as index, and its encoding."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such table of metadata.")
    table, encoding = _read_table(file)
    naming = next((column for column in NAMING if column in table), None)
    if naming is None:
        raise ValueError(f"{file}: names no photos; one of its columns must be called {' or '.join(NAMING)}.")
    table.index = pd.Index(_plain_paths(file, table.pop(naming)))
    return file, table.drop(columns=[column for column in table if column in COLUMNS]), encoding


def _join(catalog: pd.DataFrame, metadata: tuple[Path, pd.DataFrame, str]) -> pd.DataFrame:
    file, table, encoding = metadata
    names = catalog["path"]
    if not table.index.isin(names).any():  # not this folder's paths, so that only the file names can agree
        names = names.map(lambda path: PurePosixPath(path).name)
        table.index = table.index.map(lambda path: PurePosixPath(path).name)
        if not table.index.is_unique:
            raise ValueError(f"{file}: the file name {table.index[table.index.duplicated()][0]!r} stands in two rows.")
    joined = catalog.join(table.reindex(names).fillna("").set_index(catalog.index))
    joined.attrs = catalog.attrs | {
        "metadata": {
            "file": str(file),
            "encoding": encoding,
            "rows_without_photo": sorted(set(table.index) - set(names)),
            "photos_without_row": list(catalog.loc[~names.isin(table.index), "path"]),
        }
    }
    return joined


def _inspect(root: Path, name: str) -> dict[str, object]:
    """Everything the catalog holds about one file below a resolved root; the file is read once."""
    facts: dict[str, object] = dict.fromkeys(COLUMNS, "") | {"width": 0, "height": 0, "bytes": 0}
    path = root / name
    try:
        data = read_photo(path)
        if not os.path.realpath(path).startswith(os.path.join(root, "")):
            return facts | {"problem": "symbolic link out of the folder, not followed"}
        facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        # A reduced decode costs a fraction of a full one, and breaks off where a full one would.
        photo = decode_photo(data, path, min_side=48)
    except BadPhoto as bad:
        return facts | {"problem": bad.reason}
    width, height = photo.info["full_size"]
    return facts | {
        "width": width,
        "height": height,
        "format": photo.info["format"],
        "phash": str(imagehash.phash(photo)),
        "dhash": str(imagehash.dhash(photo)),
        "note": _note(path, photo),
    }


def _note(path: Path, photo: Image.Image) -> str:
    """What is odd about a photo that can be used all the same."""
    kind, mode, orientation = (photo.info[key] for key in ("format", "mode", "orientation"))
    meant = Image.registered_extensions().get(path.suffix.lower(), kind)
    return "; ".join(
        [
            *([f"a {kind} named {path.suffix}"] if kind != meant and {kind, meant} != {"JPEG", "MPO"} else []),
            *([f"colour mode {mode}"] if mode != "RGB" else []),
            *([f"lies turned (EXIF orientation {orientation})"] if orientation != 1 else []),
        ]
    )


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

    Two photos belong together if their bytes are equal (SHA-256), or if both of their perceptual hashes differ in at
    most `NEAR` of 64 bits, as after saving again, resizing, or cutting off a margin of 2 %; so does whatever is linked
    through a third. Moments of one scene, taken from one place, belong together as well.

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
    hashes = photos["phash"] + photos.get("dhash", "")
    # All photos without a single edge have one hash (black ones, say): only their bytes can tell.
    seen = np.flatnonzero(photos.get("dhash", hashes) != FLAT)
    sha, of_sha = pd.factorize(photos["sha256"])[0], len(photos)
    look, distinct = pd.factorize(hashes.iloc[seen])
    if not len(photos):
        return np.empty(0, int)
    of_look = of_sha + sha.max(initial=-1) + 1
    nodes = np.arange(len(photos))
    # A graph of photos, of their bytes and of their looks: whatever is connected is one picture.
    links = [(nodes, of_sha + sha), (seen, of_look + look), tuple(of_look + near for near in _near_pairs(distinct))]
    rows, columns = (np.concatenate(ends) for ends in zip(*links, strict=True))
    size = of_look + len(distinct)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1])[: len(photos)]


def _near_pairs(hashes: pd.Index) -> tuple[np.ndarray, ...]:
    """Pairs of places of hashes (hex digits, all different) that are near each other.

    Sampling bits (Indyk and Motwani, STOC 1998): two near hashes agree in most bits, so in some of `TABLES` random
    choices of `SAMPLE` bits they agree wholly, and only those that do are compared. With 14 of 128 bits different, as
    after a typical cut, a pair is missed once in 20,000 times.
    """
    words = np.array([[int(h[k : k + 16], 16) for k in range(0, len(h), 16)] for h in hashes], dtype=np.uint64)
    bits = np.unpackbits(words.view(np.uint8), axis=1)
    allowed = NEAR if words.shape[1] > 1 else NEAR // 2  # one hash alone proves less
    rng = np.random.default_rng(0)
    pairs = [np.empty((2, 0), int)]
    for _ in range(TABLES):
        chosen = rng.choice(bits.shape[1], SAMPLE, replace=False)
        keys = bits[:, chosen] @ (1 << np.arange(SAMPLE))
        order = np.argsort(keys, kind="stable")
        keys, one, step = keys[order], np.arange(len(order)), 1
        while len(one):  # each with the next of the same key, then with the one after that, ...
            one = one[one + step < len(keys)]
            one = one[keys[one] == keys[one + step]]
            pair = np.stack([order[one], order[one + step]])
            differ = np.bitwise_count(words[pair[0]] ^ words[pair[1]])
            pairs.append(pair[:, (differ <= allowed).all(axis=1)])
            step += 1
        pairs = [np.unique(np.sort(np.concatenate(pairs, axis=1), axis=0), axis=1)]  # found before: once is enough
    return tuple(pairs[0])


def drop_leaks(catalog: pd.DataFrame) -> pd.DataFrame:
    """The catalog without what would make val or test dishonest, and without pictures whose label is in doubt.

    Where several parts hold the same picture (see `find_duplicates`), the photos in test stay, else those in val. A
    picture that is filed under two classes is left out altogether.
    """
    duplicates = find_duplicates(catalog)
    rank = duplicates["split"].map({"": 0, "train": 0, "val": 1, "test": 2})
    leaks = rank < rank.groupby(duplicates["group"]).transform("max")
    doubtful = duplicates.groupby("group")["label"].transform("nunique") > 1
    gone = set(duplicates.loc[leaks | doubtful, "path"])
    return catalog[~catalog["path"].isin(gone)].reset_index(drop=True)


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
    catalog = catalog.copy() if catalog.index.is_unique else catalog.reset_index(drop=True)
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
        group = members[groups[row]]
        # A class's first photo goes to train, whatever the shares, and its group with it.
        first = any(given[name][0] == 0 for name in catalog.loc[group, "label"])
        part = 0 if first else int(np.argmax(lacking))
        for member in group:
            catalog.at[member, "split"] = SPLITS[part]
            given[catalog.at[member, "label"]][part] += 1
    return catalog


def prepare(root: str | os.PathLike[str]) -> pd.DataFrame:
    """Scan a folder and leave what a model can honestly be trained and tested on.

    A split that the folder brings is kept. Where it has no val or no test part, that part is taken out of train;
    where it has no split at all, `split` makes one. Left out are files that are no photos, photos whose picture is in
    val or test as well, and pictures under two classes (`drop_leaks`). What was done is printed.

    Args:
        root: a folder as `scan` understands it.

    Returns:
        A catalog in which every class has training photos, and there are photos in train, val and test.

    Raises:
        FileNotFoundError, ValueError: if the folder cannot serve; the message says what to do.
    """
    scanned = scan(root)
    good = good_photos(scanned)
    clean = drop_leaks(good)
    print(
        f"left out: {len(scanned) - len(good)} files that are no photos, {len(good) - len(clean)} photos whose picture "
        "is also in val or test, or under another class"
    )
    catalog = _with_all_parts(clean)
    check_split(catalog)
    missing = [part for part in ("val", "test") if part not in set(catalog["split"])]
    if missing:
        raise ValueError(f"{root}: too few photos for {' and '.join(missing)}. Give a class at least 5 photos.")
    return catalog


def _with_all_parts(catalog: pd.DataFrame) -> pd.DataFrame:
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

    Raises:
        ValueError: naming the class, its photos, and what to do; or a part that is none of train, val and test.
    """
    unknown = sorted(set(catalog["split"]) - {"", *SPLITS}) if "split" in catalog else ["no column 'split'"]
    if unknown:
        raise ValueError(f"the catalog has parts other than train, val and test ({unknown[0]}): split(catalog).")
    for label in class_names(catalog):
        parts = catalog.loc[(catalog["label"] == label) & (catalog["problem"] == ""), "split"].value_counts()
        if "train" not in parts:
            have = ", ".join(f"{n} in {part or 'no part'}" for part, n in parts.items())
            raise ValueError(
                f"{catalog.attrs.get('root', 'the catalog')}: class {label!r} has no training photos ({have}). "
                "Move some to train, drop the class, or divide anew: split(catalog)."
            )
