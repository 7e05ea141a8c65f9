"""Does extraction keep its speed and its memory as the collection grows?

    python benchmarks/growth.py

Features of 250, 1,000, 4,000 and 16,000 photos of distinct bytes, each count in a fresh process with an empty cache.
The smaller counts are the first of the same files. Process start and scan are excluded.
"""

import gc
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from machine import machine
from scan import copies

import cropkit
from cropkit import course

COUNTS = (250, 1_000, 4_000, 16_000)


def measure(root: str, count: int) -> None:
    catalog = cropkit.scan(root)
    catalog["label"] = [str(number % 33) for number in range(len(catalog))]
    some = catalog.head(count).assign(split="train")
    model = cropkit.create_model(course.ARCH)
    loader = cropkit.make_loaders(some, model)["train"]
    few = cropkit.make_loaders(catalog.head(128).assign(split="train"), model)["train"]
    cropkit.extract_features(model, few)  # warm
    gc.collect()
    process, done, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        features = cropkit.extract_features(model, loader, cache=cache, precision="float32").tensors[0]
        took = time.perf_counter() - start
    done.set()
    watcher.join()
    mib, own = (peak[0] - before) / 2**20, features.numel() * 4 / 2**20
    print(f"| {count:,} | {1000 * took / count:.1f} | {mib:.0f} MiB | {own:.0f} MiB |")


def main() -> None:
    print(machine())
    print(
        "| photos | ms a photo | peak memory above the warm process | of which features |\n|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        copies(Path(folder), max(COUNTS))
        for count in COUNTS:
            subprocess.run([sys.executable, __file__, folder, str(count)], check=True, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
