"""Does `find_duplicates` find copies of photos, and does it tell apart what only looks alike?

    python benchmarks/near_duplicates.py --data <grocery36> [--sheet pairs.png]

Copies that must be found: those planted in the drawn sample, and four kinds of copies of 500 real photos. Pictures that
must not be named: drawn studio photos, each of another fruit on one white background. Then the real photos as they are:
every pair that is named, and with --sheet a picture of them all, for eyes to judge.
"""

import argparse
import csv
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from machine import machine
from PIL import Image, ImageEnhance, ImageFilter

import cropkit
from cropkit.course.fetch import data_home
from cropkit.course.sample import KEY, make_sample
from cropkit.data.photos import contain
from cropkit.data.pictures import _near_pairs

COPIED = 500  # real photos of which copies are made
# Colour, radius as a share of the photo's height, height by width, and how much each of them varies.
KINDS = {
    "tomato": ((196, 48, 36), 0.27, 0.92),
    "lime": ((122, 158, 48), 0.24, 0.88),
    "plum": ((94, 44, 82), 0.24, 0.95),
    "pear": ((184, 178, 70), 0.26, 1.2),
    "peach": ((226, 150, 98), 0.27, 0.96),
    "orange": ((232, 134, 30), 0.27, 1.0),
}
SIZE = (400, 300)


def draw_fruit(kind: str, rng: np.random.Generator, place: float = 0.03, varies: float = 1.0) -> Image.Image:
    """A fruit with shading, a highlight, spots and a soft shadow on white; each call draws another one.

    Args:
        kind: of `KINDS`.
        rng: draws everything that varies.
        place: how far the fruit lies from the centre, standard deviation as a share of the photo's width.
        varies: how much colour, size and shape vary; 1 is as on a market stall.
    """
    colour, radius, tall = KINDS[kind]
    width, height = SIZE
    radius *= height * (1 + 0.06 * varies * rng.normal())
    tall *= 1 + 0.03 * varies * rng.normal()
    x0, y0 = width * (0.5 + place * rng.normal()), height * (0.52 + place * rng.normal())
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dx, dy = (x - x0) / radius, (y - y0) / (radius * tall)
    inside = dx**2 + dy**2
    shadow = np.exp(-(((x - x0) / (1.1 * radius)) ** 2 + ((y - y0 - radius * tall) / (0.18 * radius)) ** 2))
    photo = (247 - 90 * shadow)[..., None] * np.ones(3, np.float32)
    skin = np.array(colour) + 9 * varies * rng.normal(size=3) + 5 * varies * rng.normal()
    blotches = Image.fromarray(rng.normal(size=(7, 9)).astype(np.float32)).resize(SIZE, Image.Resampling.BICUBIC)
    light = 1.08 - 0.45 * np.clip(inside, 0, 1) ** 1.5 - 0.12 * (dx + dy) + 0.05 * np.asarray(blotches)
    hx, hy = -0.35 + 0.05 * rng.normal(size=2)
    shine = 90 * np.exp(-((dx - hx) ** 2 + (dy - hy) ** 2) / 0.02)
    fruit = light[..., None] * skin + shine[..., None]
    cover = np.clip((1 - np.sqrt(inside)) * radius / 1.5 + 0.5, 0, 1)[..., None]
    photo = cover * fruit + (1 - cover) * photo
    for _ in range(rng.integers(2, 6)):  # spots on the skin
        angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.8)
        far = (dx - away * np.cos(angle)) ** 2 + (dy - away * np.sin(angle)) ** 2
        photo *= 1 - 0.3 * np.exp(-far / rng.uniform(0.001, 0.006))[..., None]
    photo += rng.normal(0, 2, photo.shape)
    return Image.fromarray(photo.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.7))


def draw_studio(root: Path, kinds: list[str], count: int, **how: float) -> None:
    """So many photos, the kinds in turn, each of another fruit."""
    rng = np.random.default_rng(0)
    for number, kind in zip(range(count), itertools.cycle(kinds), strict=False):
        path = root / kind / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_fruit(kind, rng, **how).save(path, quality=int(rng.integers(70, 95)))


def cut(photo: Image.Image, share: float = 0.02) -> Image.Image:
    """Without a margin on each side."""
    w, h = photo.size
    return photo.crop((round(share * w), round(share * h), round(w - share * w), round(h - share * h)))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again, quality 60": lambda photo: photo,
    "half as large": lambda photo: photo.resize((photo.width // 2, photo.height // 2)),
    "2 % cut off each side": cut,
    "1.08 times as bright": lambda photo: ImageEnhance.Brightness(photo).enhance(1.08),
}


def find(root: Path) -> tuple[pd.DataFrame, int, float]:
    """What is named in a folder, how many photos it holds, and the seconds that finding took."""
    catalog = cropkit.scan(root)
    start = time.perf_counter()
    return cropkit.find_duplicates(catalog), len(cropkit.data.good_photos(catalog)), time.perf_counter() - start


def candidate_pairs(root: Path) -> int:
    """How many pairs of different hashes are near enough for their pixels to be compared."""
    photos = cropkit.data.good_photos(cropkit.scan(root))
    return len(_near_pairs(pd.Index((photos["phash"] + photos["dhash"]).unique()))[0])


def planted(root: Path) -> tuple[str, ...]:
    """The drawn sample's copies: found, and what else is named."""
    named, count, took = find(root)
    with (root / KEY).open(encoding="utf-8", newline="") as file:
        pairs = [(row["path"], row["detail"]) for row in csv.DictReader(file) if row["found by"] == "find_duplicates"]
    group = named.set_index("path")["group"]
    found = sum(one in group and group[one] == group.get(other, -1) for one, other in pairs)
    more = len(set(group.index) - {path for pair in pairs for path in pair})
    result = f"{found} found, {more} others named"
    return (f"drawn sample, {len(pairs)} planted copies", f"{count:,}", result, f"{took:.1f}")


def copies(data: Path) -> list[tuple[str, ...]]:
    """Each kind of copy, in a folder with its originals."""
    paths = cropkit.data.good_photos(cropkit.scan(data))["path"].sample(COPIED, random_state=0)
    rows = []
    for name, change in COPIES.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for kind in ("original", "copy"):
                (root / kind).mkdir()
            for number, path in enumerate(paths):
                shutil.copyfile(data / path, root / "original" / f"{number:03d}.jpg")
                quality = 60 if "60" in name else 90
                change(cropkit.open_photo(data / path)).save(root / "copy" / f"{number:03d}.jpg", quality=quality)
            named, count, took = find(root)
        group = named.set_index("path")["group"]
        pairs = [(f"original/{number:03d}.jpg", f"copy/{number:03d}.jpg") for number in range(len(paths))]
        found = sum(one in group and group[one] == group.get(other, -1) for one, other in pairs)
        result = f"{found / len(pairs):.1%} of {len(pairs)} found"
        rows.append((f"real photos, {name}", f"{count:,}", result, f"{took:.1f}"))
    return rows


def studio(name: str, kinds: list[str], count: int, **how: float) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as folder:
        draw_studio(Path(folder), kinds, count, **how)
        named, count, took = find(Path(folder))
    return (name, f"{count:,}", f"{len(named)} named ({len(named) / count:.1%})", f"{took:.1f}")


def contact_sheet(root: Path, named: pd.DataFrame, file: Path, side: int = 220) -> None:
    """All photos named, one group a row."""
    groups = [list(rows["path"]) for _, rows in named.groupby("group")]
    sheet = Image.new("RGB", (side * max(map(len, groups), default=1), side * max(len(groups), 1)), "white")
    for row, column in ((row, column) for row, paths in enumerate(groups) for column in range(len(paths))):
        sheet.paste(contain(cropkit.open_photo(root / groups[row][column]), side - 6), (column * side, row * side))
    sheet.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the real photos, grocery36")
    parser.add_argument("--sample", type=Path, default=data_home() / "sample", help="the drawn sample")
    parser.add_argument("--sheet", type=Path, help="a PNG to write, all real photos that are named")
    args = parser.parse_args()
    print(machine(), end="\n\n")
    named, count, took = find(args.data)
    candidates = candidate_pairs(args.data)
    for number, rows in named.groupby("group"):
        print(f"{number + 1}: {', '.join(rows['path'])}")
    if args.sheet:
        contact_sheet(args.data, named, args.sheet)
    table = [
        planted(make_sample(args.sample)),
        (
            "real photos as they are",
            f"{count:,}",
            f"{len(named)} named, of {candidates} candidate pairs",
            f"{took:.1f}",
        ),
        *copies(args.data),
        studio("studio photos of six kinds", list(KINDS), 300),
        studio("studio photos in one place", list(KINDS)[:3], 90, place=0.008, varies=0.7),
    ]
    print("\n| | photos | result | seconds |\n|---|---|---|---|")
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
