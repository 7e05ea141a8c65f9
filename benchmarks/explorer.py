"""How long does the explorer take for 5,000 photos, and how large is its page?

    python benchmarks/explorer.py

Photos of distinct bytes in 33 classes; the predictions are made up: one in five is wrong, half of those by one of three
neighbours. And once the worst that can be, answers by pure chance, so that nearly every photo is shown.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from machine import machine
from scan import copies

import cropkit
from cropkit.data.crops import CHINESE

PHOTOS = 5_000


def made_up(folder: str, right: float) -> pd.DataFrame:
    random = np.random.default_rng(0)
    names = sorted(CHINESE)
    target = random.integers(len(names), size=PHOTOS)
    near = (target + random.integers(1, 4, PHOTOS)) % len(names)
    wrong = np.where(random.random(PHOTOS) < 0.5, near, random.integers(len(names), size=PHOTOS))
    said = np.where(random.random(PHOTOS) < right, target, wrong if right else random.integers(len(names), size=PHOTOS))
    table = pd.DataFrame(
        {
            "path": [str(path.relative_to(folder)) for path in sorted(Path(folder).glob("*/*.jpg"))],
            "target": np.array(names)[target],
            "predicted": np.array(names)[said],
            "probability": random.uniform(0.3, 1, PHOTOS),
            "loss": random.exponential(1, PHOTOS),
        }
    )
    probabilities = np.full((PHOTOS, len(names)), 0.3 / 32)
    probabilities[np.arange(PHOTOS), said] = 0.7
    return pd.concat([table, pd.DataFrame(probabilities, columns=[f"p_{name}" for name in names])], axis=1)


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        copies(Path(folder), PHOTOS)
        for right in (0.8, 0.0):
            table = made_up(folder, right)
            start = time.perf_counter()
            page = cropkit.explore(table, root=folder).html
            took = time.perf_counter() - start
            print(f"{cropkit.evaluation.accuracy(table):.0%} of {PHOTOS:,} photos right: {page.count('<img'):,} shown, "
                  f"{took:.1f} s, {len(page) / 1e6:.1f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
