"""What the notebooks share: which photos, which model, how much of it, and where results go.

Three environment variables decide, and they are read here and nowhere else:

- ``CROPKIT_DATA``: a folder of one's own photos instead of the drawn sample, or ``grocery36``, which is fetched once;
- ``CROPKIT_ARCH``: the model, ``efficientnet_lite0`` unless set;
- ``CROPKIT_FAST=1``: everything tiny, to see in a minute whether a notebook runs.

(``CROPKIT_PRECISION`` is read by `resolve_precision`.)
"""

import hashlib
import os
from pathlib import Path

import pandas as pd
import platformdirs

from cropkit.course.fetch import SOURCES, checkout, data_home, fetch
from cropkit.course.sample import make_sample
from cropkit.data.splitting import prepare
from cropkit.training.memory import keep_freed_memory

DATA = os.environ.get("CROPKIT_DATA", "")
ARCH = os.environ.get("CROPKIT_ARCH", "") or "efficientnet_lite0"
FAST = os.environ.get("CROPKIT_FAST", "") == "1"
FOLDER = checkout() or platformdirs.user_cache_path("cropkit")
OUT = FOLDER / "build" / "results"
CACHE = FOLDER / "build" / "cache"
FAST_PHOTOS = {"train": 3, "val": 1, "test": 1}  # of each class


def data_folder() -> Path:
    """The folder of photos: ``CROPKIT_DATA``, or the drawn sample, which is drawn now if it is not there.

    Raises:
        FileNotFoundError: if ``CROPKIT_DATA`` names no folder.
        OSError: if grocery36 is asked for and cannot be downloaded.
    """
    if not DATA:
        return sample_folder()
    # A notebook runs in its own folder; a relative path was meant from the course's.
    folder = FOLDER / Path(DATA).expanduser()
    if DATA in SOURCES and not folder.is_dir():
        return fetch(DATA)
    if not folder.is_dir():
        raise FileNotFoundError(f"CROPKIT_DATA={DATA}: no such folder. Name the folder that holds one folder a class.")
    return folder


def sample_folder() -> Path:
    """The drawn sample, which is drawn now if it is not there; in fast mode a small one."""
    name, photos_per_class = ("sample-fast", 5) if FAST else ("sample", 40)
    return make_sample(data_home() / name, photos_per_class=photos_per_class)


def load_catalog() -> pd.DataFrame:
    """The course's photos as `prepare` leaves them; in fast mode a few of them.

    The process keeps freed memory from now on (`keep_freed_memory`), since the notebooks' own loops gain from it too.

    Raises:
        FileNotFoundError, ValueError: if the folder cannot be used; the message says what to do.
    """
    keep_freed_memory()
    catalog, _ = prepare(data_folder())
    if FAST:
        number = catalog.groupby(["label", "split"]).cumcount()
        keep = number < catalog["split"].map(FAST_PHOTOS)
        catalog = catalog[keep].reset_index(drop=True)
    return catalog


def some_photos(catalog: pd.DataFrame, classes: int, photos: int = 40) -> pd.DataFrame:
    """A small part of a catalog for quick experiments, always the same one.

    Args:
        catalog: from `load_catalog`.
        classes: how many at most, evenly spread over the names of those with photos in train, val and test.
        photos: of each class in each part, at most.
    """
    parts = catalog.groupby("label")["split"].nunique()
    names = parts.index[parts == parts.max()]
    names = [names[int((place + 0.5) * len(names) / classes)] for place in range(classes)]  # not the first: neighbours
    chosen = catalog[catalog["label"].isin(names)].sample(frac=1, random_state=0)
    return chosen[chosen.groupby(["label", "split"]).cumcount() < photos].sort_index()


def runs_folder(notebook: str, catalog: pd.DataFrame) -> Path:
    """A folder for a notebook's experiments on these photos; other photos, or another model, get another one."""
    photos = catalog.sort_values("path")[["path", "sha256", "label", "split"]]
    what = ARCH + photos.to_csv(index=False)
    return OUT / notebook / hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:8]
