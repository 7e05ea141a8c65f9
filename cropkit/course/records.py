"""What the notebooks leave for the closing table of a run of the whole course, and for the site's page of results."""

import json
from pathlib import Path

from cropkit.course.settings import ARCH, OUT
from cropkit.data.files import replace_text

PIECES = ("comparison", "matrix")  # of HTML, from lessons 07 and 08


def keep_page(name: str, html: str) -> None:
    """Leave a piece of HTML, one of `PIECES`, for the site's page of results."""
    if name not in PIECES:
        raise ValueError(f"{name!r} is no piece of the page of results; known are {', '.join(PIECES)}.")
    OUT.mkdir(parents=True, exist_ok=True)
    replace_text(OUT / f"{name}.html", html)


# The rows of the course's closing table: the notebook and the method that it records.
ROWS = (
    ("05_feature_extraction", "feature extraction"),
    ("09_fix_and_rerun", "feature extraction, fixed"),
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
    replace_text(row_file(notebook, method), json.dumps(row))
