"""How fast is `scan`, and does its memory stay flat?

    python benchmarks/scan.py

Speed: against a full RGB decode of the same files by as many threads, reading included, in turns, medians of three.
Memory: the peak of a fresh process for 1,000, 5,000 and 20,000 photos. All files have distinct bytes: photos of the
sample, each with a number behind its last byte.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from machine import machine
from PIL import Image

import cropkit
from cropkit.course.fetch import data_home
from cropkit.course.sample import make_sample
from cropkit.data.pictures import _near_pairs

COUNTS = (1_000, 5_000, 20_000)


def copies(folder: Path, count: int) -> list[Path]:
    """So many photos of distinct bytes, 500 a class folder."""
    root = make_sample(data_home() / "sample")
    catalog = cropkit.data.good_photos(cropkit.scan(root))
    sources = [(root / path).read_bytes() for path in catalog.loc[catalog["width"] <= 1280, "path"]]
    paths = []
    for number in range(count):
        path = folder / f"class{number // 500:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(sources[number % len(sources)] + number.to_bytes(8, "big"))
        paths.append(path)
    return paths


def decode(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.convert("RGB").size


def decode_all(paths: list[Path]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, paths))


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        paths = copies(Path(folder), 2_000)
        decode_all(paths)  # from here on the files are in the system's cache for both
        pairs = [(seconds(lambda: cropkit.scan(folder)), seconds(lambda: decode_all(paths))) for _ in range(3)]
        ours, full = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        speeds = f"scan {len(paths) / ours:.0f} photos/s, full RGB decode {len(paths) / full:.0f} photos/s"
        print(f"{speeds}: {ratio:.2f} times as fast")
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            copies(Path(folder), count)
            subprocess.run([sys.executable, __file__, folder], check=True)
    rng = np.random.default_rng(0)
    for count in (25_000, 100_000):
        hashes = pd.Index([f"{a:016x}{b:016x}" for a, b in rng.integers(0, 2**63, (count, 2))])
        print(f"near pairs among {count:,} hashes: {seconds(lambda: _near_pairs(hashes)):.1f} s")  # noqa: B023


def peak_memory() -> int:
    """KiB of this process alone (Linux); getrusage would count its parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def measure(folder: str) -> None:
    """In a process of its own: scan, and say what it took."""
    before = peak_memory()
    start = time.perf_counter()
    catalog = cropkit.scan(folder)
    took = time.perf_counter() - start
    peak = (peak_memory() - before) / 1024
    table = catalog.memory_usage(deep=True).sum() / 2**20
    memory = f"peak {peak:4.0f} MiB above the start, of which the table {table:.0f} MiB"
    print(f"{len(catalog):6,} photos: {took:5.1f} s, {memory}")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
