"""The catalog: a DataFrame with one row a photo of a folder."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path, PurePosixPath, PureWindowsPath

import pandas as pd
from PIL import Image

from cropkit.data.corrections import correct
from cropkit.data.photos import BadPhoto, decode_photo, read_photo
from cropkit.data.progress import progress
from cropkit.data.tables import read_table

SPLITS = ("train", "val", "test")
COLUMNS = [
    *("root", "path", "label", "split", "width", "height", "format", "bytes", "sha256", "phash", "dhash"),
    *("problem", "note"),
]
PHOTO_SUFFIXES = {*Image.registered_extensions(), ".heic", ".heif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ""}
NAMING = ("path", "Img", "filename")  # columns of a metadata table that name a photo
CHUNK = 256  # photos that are read ahead


def scan(
    root: str | os.PathLike[str],
    *,
    metadata: str | os.PathLike[str] | None = None,
    corrections: str | os.PathLike[str] | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """List every photo below a folder, decode it once, and say what is wrong with it.

    Three layouts are understood: ``<class>/<photo>``, ``train|val|test/<class>/<photo>``, and a folder with an
    ``index.csv`` of the columns ``path, label`` and, if there is one, ``split`` (``train``, ``val`` or ``test``).

    Args:
        root: the folder.
        metadata: a table of more facts, UTF-8 or cp950, with a column ``path``, ``Img`` or ``filename``. Joined by
            path where it holds paths of this folder, else by file name; its other columns are added as text, except
            those that the catalog has already.
        corrections: a file of corrected labels, see `correct`.
        workers: threads that decode; as many as the machine has cores unless given.

    Returns:
        One row a photo, ordered by path: ``root`` (the folder), ``path`` (relative to it, with ``/``), ``label``,
        ``split`` ("" where the layout has none), ``width`` and ``height`` (upright, pixels), ``format``, ``bytes``,
        ``sha256``, ``phash`` and ``dhash`` (64-bit perceptual hashes of the picture and of its edges, 16 hex digits),
        ``problem`` ("" for a good photo) and ``note`` (what is odd about a good one), then the metadata. How many rows
        of the metadata have no photo, and the reverse, is printed; `passed_over` lists the other files.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no photo, or a table is malformed (the row is named).

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> for crop in ("apple", "pear"):
        ...     (root / crop).mkdir()
        ...     Image.new("RGB", (80, 60)).save(root / crop / "1.jpg")
        >>> scan(root)[["path", "label", "width", "problem"]]
                  path  label  width problem
        0  apple/1.jpg  apple     80
        1   pear/1.jpg   pear     80
    """
    root = Path(root).expanduser()
    rows = _rows(root)[0]
    if not rows:
        raise ValueError(f"{root}: holds no photos. Expected {root}/<class>/<photo>, or an index.csv of path,label.")
    rows.sort(key=lambda row: row["path"])
    facts = progress(_inspect_all(root, rows, workers or os.cpu_count()), "scan", total=len(rows))
    catalog = pd.DataFrame(list(facts), columns=COLUMNS)
    catalog["root"] = str(root)
    unplaced = (catalog["label"] == "") & (catalog["problem"] == "")
    catalog.loc[unplaced, "problem"] = "lies in no class folder"
    catalog = catalog if metadata is None else join_metadata(catalog, metadata)
    return catalog if corrections is None else correct(catalog, corrections)


def passed_over(root: str | os.PathLike[str]) -> pd.DataFrame:
    """What `scan` does not look at below a folder.

    Args:
        root: the folder.

    Returns:
        One row a file or folder: ``path``, ``reason``.

    Raises:
        FileNotFoundError: if there is no such folder.

    Example:
        >>> _ = Path("photos/notes.txt").write_text("taken in May")
        >>> passed_over("photos")
                path              reason
        0  notes.txt  not a photo (.txt)
    """
    return pd.DataFrame(_rows(Path(root).expanduser())[1], columns=["path", "reason"])


def _rows(root: Path) -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    """Path, label and split of each file that is called like a photo; what is passed over, with its reason."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Name the folder that holds one folder a class.")
    files, skipped = list_files(root)
    if not (root / "index.csv").is_file():
        return _label_by_folder(root, files), skipped
    rows = _read_index(root / "index.csv")
    listed = {row["path"] for row in rows}
    return rows, skipped + [(path, "not in index.csv") for path in files if path not in listed]


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


def _read_index(index: Path) -> list[dict[str, str]]:
    """Path, label and split of each row."""
    table, encoding = read_table(index)
    if encoding != "utf-8":
        print(f"{index}: is not UTF-8, so it is read as {encoding}")
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
    return table[["path", "label", "split"]].to_dict("records")


def _read_metadata(file: Path) -> tuple[Path, pd.DataFrame, str]:
    """The table with its photos' paths as index, and its encoding."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such table of metadata.")
    table, encoding = read_table(file)
    naming = next((column for column in NAMING if column in table), None)
    if naming is None:
        raise ValueError(f"{file}: names no photos; one of its columns must be called {' or '.join(NAMING)}.")
    table.index = pd.Index(_plain_paths(file, table.pop(naming)))
    return file, table.drop(columns=[column for column in table if column in COLUMNS]), encoding


def join_metadata(catalog: pd.DataFrame, metadata: str | os.PathLike[str]) -> pd.DataFrame:
    """The catalog with the columns of a table of more facts, as `scan` joins them."""
    file, table, encoding = _read_metadata(Path(metadata).expanduser())
    names = catalog["path"]
    if not table.index.isin(names).any():  # not this folder's paths, so that only the file names can agree
        names = names.map(lambda path: PurePosixPath(path).name)
        table.index = table.index.map(lambda path: PurePosixPath(path).name)
        if not table.index.is_unique:
            raise ValueError(f"{file}: the file name {table.index[table.index.duplicated()][0]!r} occurs in two rows.")
    lost, bare = set(table.index) - set(names), catalog.loc[~names.isin(table.index), "path"]
    print(f"{file} ({encoding}): {len(lost)} rows without a photo{_some(sorted(lost))}")
    print(f"{file} ({encoding}): {len(bare)} photos without a row{_some(list(bare))}")
    return catalog.join(table.reindex(names).fillna("").set_index(catalog.index))


def _some(names: list[str]) -> str:
    return (": " if names else "") + ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _inspect(root: Path, name: str) -> dict[str, object]:
    """Everything the catalog holds about one file below a resolved root; the file is read once."""
    import imagehash

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
            *([f"rotated (EXIF orientation {orientation})"] if orientation != 1 else []),
        ]
    )


def good_photos(catalog: pd.DataFrame) -> pd.DataFrame:
    """The rows of a catalog without a problem, numbered anew.

    Args:
        catalog: from `scan`.

    Returns:
        A new catalog with the same columns.

    Example:
        >>> good_photos(pd.DataFrame({"path": ["1.jpg", "2.jpg"], "problem": ["is empty (0 bytes)", ""]}))
            path problem
        0  2.jpg
    """
    return catalog[catalog["problem"] == ""].reset_index(drop=True)


def class_names(catalog: pd.DataFrame) -> list[str]:
    """The sorted class names of the good photos; a class's index is its place in this list.

    Args:
        catalog: from `scan`.

    Returns:
        At least two names.

    Raises:
        ValueError: if there are fewer than two.

    Example:
        >>> class_names(pd.DataFrame({"label": ["pear", "apple", "pear"], "problem": ""}))
        ['apple', 'pear']
    """
    names = sorted(set(good_photos(catalog)["label"]))
    if len(names) < 2:
        raise ValueError(
            f"{folder_of(catalog)}: has {len(names)} class{'' if len(names) == 1 else 'es'} "
            f"({', '.join(names) or 'none'}), but a classifier tells at least two apart. Give each its own folder."
        )
    return names


def relabel(catalog: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """A catalog whose classes have other names; two classes that get one name are merged.

    Args:
        catalog: from `scan`.
        names: the new name by the old one; classes that it does not mention keep theirs.

    Returns:
        A copy with other labels.

    Raises:
        ValueError: if an old name is no class of the catalog, so that a typing error does not go unnoticed.

    Example:
        >>> relabel(catalog, {"pear": "apple"})["label"].unique().tolist()
        ['apple']
        >>> relabel(catalog, {"peer": "apple"})
        Traceback (most recent call last):
        ValueError: 'peer' is no class here, so it would rename nothing. Did you mean 'pear'?
    """
    known = sorted(set(catalog["label"]))
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1)
            advice = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."
            raise ValueError(f"{name!r} is no class here, so it would rename nothing. {advice}")
    return catalog.assign(label=catalog["label"].replace(dict(names)))


def folder_of(catalog: pd.DataFrame) -> str:
    """The folder that a catalog's paths are relative to, for a message."""
    return str(catalog["root"].iloc[0]) if "root" in catalog and len(catalog) else "the catalog"
