"""Photos on disk and the real data, for the tests that need them."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def make_photos(tmp_path):
    """A function that fills a folder with so many small noisy JPEGs a class."""

    def make(counts: dict[str, int], root: Path = tmp_path / "photos") -> Path:
        rng = np.random.default_rng(0)
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((80, 60)).save(root / folder / f"{number}.jpg")
        return root

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder grocery36; tests on it are skipped where nobody has it."""
    folder = os.environ.get("CROPKIT_REAL_DATA", "")
    if not folder:
        pytest.skip("CROPKIT_REAL_DATA does not name grocery36 (see data/README.md)")
    return Path(folder)
