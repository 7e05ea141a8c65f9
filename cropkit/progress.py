"""The one progress bar: plain text on stdout, which a notebook and a terminal both show."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], description: str, *, total: int | None = None) -> "tqdm[T]":
    """Iterate over `items` behind a progress bar that disappears at the end; a log file gets none."""
    seen = sys.stdout.isatty() or "ipykernel" in sys.modules
    return tqdm(items, description, total=total, leave=False, file=sys.stdout, mininterval=0.5, disable=not seen)
