"""What the notebooks share: which photos, which model, how much of it, and where results go.

Three environment variables decide, and they are read here and nowhere else:

- ``CROPKIT_DATA``: a folder of one's own photos instead of the drawn sample;
- ``CROPKIT_ARCH``: the model, ``efficientnet_lite0`` unless set;
- ``CROPKIT_FAST=1``: everything tiny, to see in a minute whether a notebook runs.
"""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd

from cropkit import samples
from cropkit.catalog import prepare
from cropkit.checkpoints import save_whole
from cropkit.memory import keep_freed_memory

FOLDER = Path(__file__).resolve().parents[1]
DATA = os.environ.get("CROPKIT_DATA", "")
ARCH = os.environ.get("CROPKIT_ARCH", "") or "efficientnet_lite0"
FAST = os.environ.get("CROPKIT_FAST", "") == "1"
OUT = FOLDER / "build" / "results"
CACHE = FOLDER / "build" / "cache"
keep_freed_memory()  # the notebooks' own loops gain from it too
FAST_PHOTOS = {"train": 3, "val": 1, "test": 1}  # of each class


def data_folder() -> Path:
    """The folder of photos: ``CROPKIT_DATA``, or the drawn sample, which is drawn now if it is not there.

    Raises:
        FileNotFoundError: if ``CROPKIT_DATA`` names no folder.
    """
    if not DATA:
        name, photos_per_class = ("sample-fast", 5) if FAST else ("sample", 40)
        return samples.make_sample(samples.DATA / name, photos_per_class=photos_per_class)
    # A notebook runs in its own folder; a relative path was meant from the course's.
    folder = FOLDER / Path(DATA).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"CROPKIT_DATA={DATA}: no such folder. Name the folder that holds one folder a class.")
    return folder


def load_catalog() -> pd.DataFrame:
    """The course's photos as `prepare` leaves them; in fast mode a few of them.

    Raises:
        FileNotFoundError, ValueError: if the folder cannot serve; the message says what to do.
    """
    catalog = prepare(data_folder())
    if FAST:
        number = catalog.groupby(["label", "split"]).cumcount()
        keep = number < catalog["split"].map(FAST_PHOTOS)
        catalog = catalog[keep].reset_index(drop=True)
    return catalog


def some_photos(catalog: pd.DataFrame, classes: int, photos: int = 40) -> pd.DataFrame:
    """A small part of a catalog for quick experiments, always the same one.

    Args:
        catalog: from `load_catalog`.
        classes: how many at most; those with photos in train, val and test come first.
        photos: of each class in each part, at most.
    """
    parts = catalog.groupby("label")["split"].nunique().sort_values(ascending=False, kind="stable")
    chosen = catalog[catalog["label"].isin(parts.index[:classes])].sample(frac=1, random_state=0)
    return chosen[chosen.groupby(["label", "split"]).cumcount() < photos].sort_index()


def runs_folder(notebook: str, catalog: pd.DataFrame) -> Path:
    """A folder for a notebook's experiments on these photos; other photos, or another model, get another one."""
    photos = catalog.sort_values("path")[["path", "sha256", "label", "split"]]
    what = ARCH + photos.to_csv(index=False)
    return OUT / notebook / hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()[:8]


# What else stands on the course's closing page: a piece of HTML, and its title.
PAGES = {"comparison": "Methods compared (06)", "matrix": "What was mixed up (07)"}


def keep_page(name: str, html: str) -> None:
    """Leave a piece of HTML, one of `PAGES`, for the course's closing page."""
    if name not in PAGES:
        raise ValueError(f"{name!r} is no piece of the closing page; known are {', '.join(PAGES)}.")
    OUT.mkdir(parents=True, exist_ok=True)
    save_whole(OUT / f"{name}.html", html)


# The rows of the course's closing table: the notebook and the method that it records.
ROWS = (
    ("04_feature_extraction", "feature extraction"),
    ("05_fine_tuning", "fine-tuning, diary"),
    ("05_fine_tuning", "fine-tuning, head first"),
)


def row_file(notebook: str, method: str) -> Path:
    """Where a row of the closing table lies."""
    return OUT / f"{notebook}-{method.replace(', ', '-').replace(' ', '_')}.json"


def record(notebook: str, method: str, trainable: int, test_accuracy: float, seconds: float) -> None:
    """Write one row of the course's closing table.

    Args:
        notebook: the notebook's name without ``.ipynb``.
        method: the row's method; together they are one of `ROWS`.
        trainable: number of weights that learned.
        test_accuracy: share of the test photos that were classified right.
        seconds: what training took.
    """
    if (notebook, method) not in ROWS:
        raise ValueError(f"{notebook!r} with {method!r} is no row of the closing table; known are {ROWS}.")
    row = {"model": ARCH, "method": method, "trainable": trainable, "test_accuracy": test_accuracy, "seconds": seconds}
    OUT.mkdir(parents=True, exist_ok=True)
    save_whole(row_file(notebook, method), json.dumps(row))
