"""Real photos that are fetched once, and where photos are kept."""

import csv
import hashlib
import os
import re
import shutil
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import platformdirs
from filelock import FileLock

from cropkit.data.progress import progress


def data_home() -> Path:
    """Where photos are kept: ``data/`` of a checkout, else the user's own folder for data."""
    course = checkout()
    return course / "data" if course else platformdirs.user_data_path("cropkit")


def checkout() -> Path | None:
    """The folder of the course that this package was imported from; None where it is installed as a wheel."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file() else None


class Source(NamedTuple):
    """Where a collection of photos comes from.

    Attributes:
        url: a ZIP archive of one pinned commit; everything in it lies in one folder.
        manifest: a table of ``path, label, split, source_path, sha256``: which files are taken, and what they hold.
    """

    url: str
    manifest: Path


SOURCES = {
    "grocery36": Source(
        "https://github.com/marcusklasson/GroceryStoreDataset/archive/fc80ba90f803d79d0383df52c5a4ac5de99ff6fc.zip",
        Path(__file__).with_name("grocery36.csv"),
    )
}


def fetch(name: str, root: str | os.PathLike[str] | None = None) -> Path:
    """Download a collection of real photos once, and check every file of it.

    ``"grocery36"`` is 2,652 photos of 36 crops on shop shelves (Klasson, Zhang and Kjellström, WACV 2019; MIT licence).

    Args:
        name: ``"grocery36"``.
        root: the folder to make; ``<name>`` in `data_home` unless given. Where it exists, nothing is downloaded.

    Returns:
        The folder: the photos, an ``index.csv`` for `scan`, and the photos' ``LICENSE``.

    Raises:
        ValueError: if `name` is unknown, or the archive does not hold what the manifest lists (the file is named).
        OSError: if the archive cannot be downloaded; says where to put it by hand.
    """
    if name not in SOURCES:
        raise ValueError(f"{name!r} is unknown; known are {', '.join(SOURCES)}.")
    source = SOURCES[name]
    root = Path(root or data_home() / name).expanduser().resolve()
    archive = root.with_name(f"{root.name}.zip")
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{root}.lock"):
        if (root / "index.csv").is_file():
            return root
        if root.exists():
            raise FileExistsError(f"{root}: holds something else than {name}. Name a new folder.")
        brought = archive.exists()  # by hand, where there is no network
        # Unpacked beside its place and renamed whole, so that an interrupted call is never taken for a finished one.
        work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            if not brought:
                _download(source.url, archive)
            _unpack(archive, source.manifest, work)
            work.chmod(0o755)
            work.rename(root)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if not brought:
                archive.unlink(missing_ok=True)
    return root


def _download(url: str, archive: Path) -> None:
    import pooch

    try:
        # No hash of the archive: the host may pack a commit anew. Its files are checked one by one.
        pooch.retrieve(url, known_hash=None, fname=archive.name, path=archive.parent, progressbar=sys.stdout.isatty())
    except (OSError, ValueError) as error:
        raise OSError(
            f"{url} could not be downloaded ({error}). Try again where there is a network, or fetch it there and put "
            f"it at {archive}."
        ) from error


def _unpack(archive: Path, manifest: Path, root: Path) -> None:
    """Write the listed files of an archive, each checked, with an index and the licence."""
    try:
        with zipfile.ZipFile(archive) as packed:
            names = packed.namelist()
            for name in names:
                if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or ":" in name:
                    raise ValueError(f"{archive}: entry {name!r} leads out of the folder. Nothing was unpacked.")
            top = names[0].split("/")[0] if names else ""
            with manifest.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            for row in progress(rows, "unpack"):
                data = packed.read(f"{top}/{row['source_path']}")
                if hashlib.sha256(data).hexdigest() != row["sha256"]:
                    raise ValueError(
                        f"{archive}: {row['source_path']} is not the file that {manifest.name} lists (SHA-256 "
                        "differs). Download it again."
                    )
                (root / row["path"]).parent.mkdir(parents=True, exist_ok=True)
                (root / row["path"]).write_bytes(data)
            (root / "LICENSE").write_bytes(packed.read(f"{top}/LICENSE"))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise ValueError(f"{archive}: is no whole ZIP archive ({error}). Download it again.") from error
    except KeyError as error:
        raise ValueError(f"{archive}: lacks a file that {manifest.name} lists ({error.args[0]}).") from error
    columns = ("path", "label", "split")
    with (root / "index.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([columns, *([row[column] for column in columns] for row in rows)])
