"""How soon do 12-megapixel photos reach the model, the first time and later, against the usual loader?

    python benchmarks/large_photos.py

200 distinct JPEGs of 4000 x 3000 pixels; the same random cut and normalisation for both; two worker processes for both.
The usual loader is torchvision's ImageFolder, which decodes every photo whole in every epoch.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import cropkit

PHOTOS, ROUNDS = 200, 3


def draw(root: Path) -> None:
    """Photos with detail at every scale, as a camera's: smooth shapes, finer ones, and a little noise."""
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        layers = []
        for n in (2, 20, 200):
            noise = Image.fromarray(rng.integers(0, 256, (3 * n, 4 * n, 3), dtype=np.uint8))
            layers.append(np.asarray(noise.resize((4000, 3000)), np.float32))
        pixels = 0.5 * layers[0] + 0.3 * layers[1] + 0.15 * layers[2] + rng.normal(0, 3, (3000, 4000, 1))
        folder = root / ("apple", "pear")[number % 2]
        folder.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.jpg", quality=90)


def seconds(loader: Iterable) -> float:
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def main() -> None:
    print(machine())
    model = cropkit.create_model("efficientnet_lite0")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "photos"
        draw(root)
        catalog = cropkit.scan(root).assign(split="train")
        size = catalog["bytes"].mean() / 1e6
        usual = DataLoader(ImageFolder(str(root), cropkit.data.transforms_for(model, augment=True)), 32, num_workers=2)
        rows = []
        for number in range(ROUNDS):
            cache = Path(folder) / f"cache{number}"
            ours = cropkit.make_loaders(catalog, model, num_workers=2, cache=cache)["train"]
            rows.append((seconds(usual), seconds(ours), seconds(ours)))
        kept = cropkit.data.cache_size(cache) / PHOTOS / 1e3
        usual_s, first_s, later_s = (statistics.median(column) for column in zip(*rows, strict=True))
    print(
        f"{PHOTOS} photos of 4000 x 3000, {size:.1f} MB each; medians of {ROUNDS} rounds; copies of {kept:.0f} kB each"
    )
    print(f"ImageFolder, every epoch: {usual_s:.1f} s")
    print(f"cropkit, first epoch, cache written: {first_s:.1f} s, {usual_s / first_s:.1f} times sooner")
    print(f"cropkit, later epochs: {later_s:.2f} s, {usual_s / later_s:.0f} times sooner")


if __name__ == "__main__":
    main()
