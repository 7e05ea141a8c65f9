"""The one progress bar: plain text on stdout, which a notebook and a terminal both show."""

import sys
import warnings
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
# Some libraries load tqdm's widget variant, which complains in every first cell where ipywidgets is not installed.
warnings.filterwarnings("ignore", message="IProgress not found")


def progress(items: Iterable[T], description: str, *, total: int | None = None) -> "tqdm[T]":
    """Iterate over `items` behind a progress bar that disappears at the end; a log file gets none."""
    ipython = sys.modules.get("IPython")
    seen = sys.stdout.isatty() or (ipython is not None and ipython.get_ipython() is not None)
    return tqdm(items, description, total=total, leave=False, file=sys.stdout, mininterval=0.5, disable=not seen)
