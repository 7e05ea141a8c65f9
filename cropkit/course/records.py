"""What the notebooks leave for the closing page of a run of the whole course."""

import json
from pathlib import Path

from cropkit.course.settings import ARCH, OUT
from cropkit.data.files import replace_text

# What else stands on the course's closing page: a piece of HTML, and its title.
PAGES = {"comparison": "Methods compared (07)", "matrix": "What was mixed up (08)"}


def keep_page(name: str, html: str) -> None:
    """Leave a piece of HTML, one of `PAGES`, for the course's closing page."""
    if name not in PAGES:
        raise ValueError(f"{name!r} is no piece of the closing page; known are {', '.join(PAGES)}.")
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
