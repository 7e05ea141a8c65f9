"""The sample of 33 crops, drawn offline, with known defects."""

import csv
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import PIL
from filelock import FileLock
from PIL import Image

from cropkit.course.drawing import CLASSES, draw_photo
from cropkit.data.corrections import add_correction
from cropkit.data.progress import progress

VERSION = 7  # a new number has every sample drawn anew
MARKER, KEY, TAGS = ".sample.json", "answer_key.csv", "tag_locCoor.csv"
SIZES = {(640, 480): 0.6, (800, 600): 0.24, (1024, 768): 0.1, (1280, 720): 0.04, (1280, 960): 0.02}
ORIENTATIONS = {1: 0.95, 6: 0.03, 8: 0.015, 3: 0.005}  # EXIF; 6 and 8 lie on their side
PARTS = ("train", "train", "train", "val", "test")  # of every five photos of a class
NOT_IN_VAL = "lemon"
WRONG = 0.1  # of the labels; a third of them at random, the others to a look-alike
HARD_HIT = ("greenonion", "chinesechives", 0.3)  # of the former's photos, so many are filed as the latter
# All upright train and val photos of these come from a camera that lost the EXIF number of photos held upright, so they
# lie on their side; the test photos come from others.
SIDEWAYS = (
    "asparagus", "betel", "broccoli", "kale", "litchi", "loofah", "onion", "pear", "pennisetum", "redbeans",
)  # fmt: skip
# Crops that people mix up too; each group shares a way of growing in `drawing`.
LOOK_ALIKES = (
    ("broccoli", "cauliflower", "chinesecabbage", "kale", "lettuce"),
    ("litchi", "longan", "roseapple"),
    ("chinesechives", "greenonion", "onion"),
    ("redbeans", "soybeans", "sweetpotato"),
    ("custardapple", "lemon", "mango", "pear"),
    ("asparagus", "sesbania", "sunhemp"),
    ("pennisetum", "waterbamboo"),
    ("grape", "loofah", "passionfruit"),
    ("betel", "papaya"),
)
LOOK_ALIKES_FILED_TWICE = (
    ("cauliflower", "broccoli"),
    ("chinesecabbage", "lettuce"),
    ("longan", "litchi"),
    ("greenonion", "chinesechives"),
)
TAG_COLUMNS = ("TARGET_FID", "Img", "target_x", "target_y", "COUNTYNAME", "TOWNNAME", "town_x", "town_y")
TOWNS = (
    ("雲林縣", "西螺鎮", 120.46, 23.78),
    ("彰化縣", "溪湖鎮", 120.48, 23.95),
    ("嘉義縣", "民雄鄉", 120.43, 23.55),
    ("臺南市", "玉井區", 120.46, 23.12),
    ("高雄市", "美濃區", 120.54, 22.90),
    ("屏東縣", "枋寮鄉", 120.59, 22.37),
    ("南投縣", "名間鄉", 120.68, 23.84),
    ("臺中市", "東勢區", 120.83, 24.26),
    ("苗栗縣", "大湖鄉", 120.86, 24.42),
    ("宜蘭縣", "三星鄉", 121.65, 24.67),
    ("花蓮縣", "吉安鄉", 121.56, 23.97),
    ("臺東縣", "卑南鄉", 121.08, 22.78),
)
TOWNS_OF_A_CROP = 4  # as often in each


class Shot(NamedTuple):
    """One photo of the sample that is to be drawn."""

    path: str
    label: str
    number: int
    size: tuple[int, int]
    orientation: int
    target: bool
    sideways: bool


class Tag(NamedTuple):
    """What `tag_locCoor.csv` says of one photo: target in pixels from the centre, x right and y up, and a town."""

    x: int
    y: int
    town: int


def _plan(seed: int, photos_per_class: int) -> list[Shot]:
    shots = []
    for label in CLASSES:
        rng = np.random.default_rng([seed, CLASSES.index(label), 2**31])
        for index in range(photos_per_class + int(rng.integers(0, photos_per_class // 4 + 1))):
            part = PARTS[index % len(PARTS)]
            if part == "val" and label == NOT_IN_VAL:
                part = "train"
            size = tuple(SIZES)[rng.choice(len(SIZES), p=list(SIZES.values()))]
            orientation = tuple(ORIENTATIONS)[rng.choice(len(ORIENTATIONS), p=list(ORIENTATIONS.values()))]
            if index == 2 and CLASSES.index(label) % 10 == 5:
                size, orientation = (4000, 3000), 1
            target = not (index == 1 and CLASSES.index(label) % 8 == 3)
            sideways = label in SIDEWAYS and part != "test" and orientation == 1 and size[0] < 2000
            path = f"{part}/{label}/{_new_name(rng)}.jpg"
            shots.append(Shot(path, label, index, size, orientation, target, sideways))
    return shots


def _new_name(rng: np.random.Generator) -> str:
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def _draw_class(shots: list[Shot], root: Path, seed: int) -> dict[str, Tag]:
    """Draw and save the photos of one class; returns the tag of each path."""
    tags = {}
    for shot in shots:
        lies = shot.orientation in (6, 8)
        size = shot.size[::-1] if lies else shot.size  # a camera held upright
        image, (x, y) = draw_photo(shot.label, seed, shot.number, size=size, target=shot.target)
        exif = Image.Exif()
        if shot.orientation != 1:
            exif[0x0112] = shot.orientation
            turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
            image = image.transpose(turn[shot.orientation])
        if shot.sideways:
            image, (x, y) = image.transpose(Image.Transpose.ROTATE_90), (-y, x)
        (root / shot.path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / shot.path, quality=78, exif=exif)
        towns = np.random.default_rng([seed, CLASSES.index(shot.label), shot.number, 1])
        town = (CLASSES.index(shot.label) * 5 + int(towns.integers(0, TOWNS_OF_A_CROP))) % len(TOWNS)
        if shot.target and towns.random() < 0.03:
            x = y = 0  # a crosshair that nobody recorded
        tags[shot.path] = Tag(x, y, town)
    return tags


def _plant_defects(root: Path, shots: list[Shot], tags: dict[str, Tag], seed: int) -> list[tuple[str, ...]]:
    """Give the drawn photos what real collections have; returns the rows of the answer key, `tags` is kept in step."""
    rng = np.random.default_rng([seed, 2**31])
    whole = [s for s in shots if s.orientation == 1 and s.size[0] < 2000 and tags[s.path][:2] != (0, 0)]
    sound = [whole[k].path for k in rng.permutation(len(whole)) if not whole[k].sideways]
    key: list[tuple[str, ...]] = []

    def take(start: str) -> str:
        """A photo below `start` that has no defect yet."""
        path = next(path for path in sound if path.startswith(start))
        sound.remove(path)
        return path

    def copy(path: str, folder: str, defect: str, *, size: float = 1.0, cut: float = 0.0, quality: int = 0) -> None:
        """A second file of the same picture in another folder; unless something changes, of the same bytes."""
        other = f"{folder}/{_new_name(rng)}.jpg"
        if quality:
            image: Image.Image = Image.open(root / path)
            w, h = image.size
            image = image.crop((round(cut * w), round(cut * h), round(w - cut * w), round(h - cut * h)))
            image.resize((round(image.width * size), round(image.height * size))).save(root / other, quality=quality)
        else:
            shutil.copyfile(root / path, root / other)
        tag = tags[path]  # a cut of equal width on opposite sides leaves the centre where it is
        tags[other] = tag._replace(x=round(tag.x * size), y=round(tag.y * size))
        key.append((other, defect, path, "find_duplicates"))

    for shot in shots:
        if shot.orientation != 1:
            key.append((shot.path, "lies on its side or head", f"EXIF orientation {shot.orientation}", "scan"))
        if shot.sideways:
            key.append((shot.path, "lies on its side, EXIF lost", "turned left", "eyes, or a class that scatters"))
        if not shot.target:
            key.append((shot.path, "no target", "bare ground, no crosshair", "metadata"))
        elif tags[shot.path][:2] == (0, 0):
            key.append((shot.path, "target not recorded", "there is a crosshair, but no place for it", "metadata"))

    for start, end in (("train", "train"), ("train", "test"), ("val", "test"), ("test", "train")) * 2:
        path = take(start)
        copy(path, f"{end}/{path.split('/')[1]}", "same bytes")
    for start, end in (("train", "train"), ("train", "test"), ("train", "val"), ("test", "train")):
        for change in ({"quality": 60}, {"quality": 85, "size": 0.6}, {"quality": 85, "cut": 0.02}):
            path = take(start)
            copy(path, f"{end}/{path.split('/')[1]}", "same picture, saved again, resized or cut", **change)
    for one, other in LOOK_ALIKES_FILED_TWICE:
        copy(take(f"train/{one}/"), f"train/{other}", "same picture under two classes")
    for path, wrong in _wrong_labels(sound, shots, rng).items():
        sound.remove(path)
        part, label, name = path.split("/")
        (root / path).rename(root / part / wrong / name)
        tags[f"{part}/{wrong}/{name}"] = tags.pop(path)
        key.append((f"{part}/{wrong}/{name}", "wrong label", label, "eyes, or find_label_errors"))

    for defect, mode in (("grey", "L"), ("CMYK", "CMYK")):
        for _ in range(4):
            path = take("")
            Image.open(root / path).convert(mode).save(root / path, "JPEG", quality=82)
            key.append((path, defect, "", "scan"))
    for _ in range(3):
        path = take("")
        Image.open(root / path).save(root / path, "PNG")
        key.append((path, "wrong extension", "a PNG named .jpg", "scan"))
        path = take("")
        upper = path.replace(".jpg", ".JPG")
        (root / path).rename(root / upper)
        tags[upper] = tags.pop(path)
        key.append((upper, "extension in upper case", "", "scan"))

    for defect, keep in (("truncated", 0.5), ("truncated", 0.9), ("empty", 0.0)):
        path = take("train")
        other = f"{path.rsplit('/', 1)[0]}/{_new_name(rng)}.jpg"
        data = (root / path).read_bytes()
        (root / other).write_bytes(data[: int(len(data) * keep)])
        tags[other] = tags[path]
        key.append((other, defect, f"{keep:.0%} of a photo", "scan"))
    other = f"{take('train').rsplit('/', 1)[0]}/{_new_name(rng)}.jpg"
    (root / other).write_text("<html><body>404 Not Found</body></html>\n", encoding="ascii")
    tags[other] = Tag(0, 0, 0)
    key.append((other, "text named .jpg", "a web page", "scan"))

    path = take("train")
    hidden = (root / path).parent / ".ipynb_checkpoints"
    hidden.mkdir()
    shutil.copyfile(root / path, hidden / f"{Path(path).stem}-checkpoint.jpg")
    key.append((hidden.relative_to(root).as_posix(), "hidden folder with copies", path, "scan"))
    key.append((f"val/{NOT_IN_VAL}", "class missing from val", "", "counts"))
    key.append((TAGS, "towns tell the crop", f"each crop grows in {TOWNS_OF_A_CROP} of {len(TOWNS)} towns", "counts"))

    for _ in range(2):
        lost = f"{_new_name(rng)}.jpg"
        tags[lost] = Tag(int(rng.integers(1, 90)), int(rng.integers(1, 90)), 0)
        key.append((lost, "row without a photo", TAGS, "metadata"))
        path = take("train")
        del tags[path]
        key.append((path, "photo without a row", TAGS, "metadata"))
    return key


def _wrong_labels(sound: list[str], shots: list[Shot], rng: np.random.Generator) -> dict[str, str]:
    """Which photos get which wrong label. Every class keeps at least two photos of a part where it had three."""
    left = Counter(shot.path.rsplit("/", 1)[0] for shot in shots)
    alike = {crop: [c for c in crops if c != crop] for crops in LOOK_ALIKES for crop in crops}
    victim, taken_for, share = HARD_HIT
    hit = [path for path in sound if path.split("/")[1] == victim]
    hit = hit[: round(share * len(hit))]
    wrong: dict[str, str] = {}
    for path in hit + [path for path in sound if path not in hit]:
        folder, label = path.rsplit("/", 1)[0], path.split("/")[1]
        if len(wrong) >= WRONG * len(shots) or left[folder] < 3:
            continue
        others = [c for c in CLASSES if c not in (label, NOT_IN_VAL)]
        if path in hit:
            others = [taken_for]
        elif len(wrong) % 3 and label in alike:
            others = [c for c in alike[label] if c != NOT_IN_VAL]
        wrong[path] = str(rng.choice(others))
        left[folder] -= 1
    return wrong


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]], encoding: str) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([header, *rows])


def _write_tags(root: Path, tags: dict[str, Tag], seed: int) -> None:
    """The competition's table of targets and towns, in the encoding that it comes in."""
    rng = np.random.default_rng([seed, 2**31 + 1])
    rows = []
    for path, tag in sorted(tags.items(), key=lambda item: Path(item[0]).name):
        county, town, x, y = TOWNS[tag.town]
        where = (f"{x + rng.normal(0, 0.01):.7f}", f"{y + rng.normal(0, 0.01):.7f}")
        rows.append((int(rng.integers(1, 6000)), Path(path).name, tag.x, tag.y, county, town, *where))
    _write_csv(root / TAGS, TAG_COLUMNS, rows, "cp950")


def true_labels(root: str | os.PathLike[str]) -> dict[str, str]:
    """By the answer key: the true label of each photo that is filed under another; empty where there is no key."""
    key = Path(root) / KEY
    if not key.exists():
        return {}
    rows = csv.DictReader(key.read_text(encoding="utf-8").splitlines())
    return {row["path"]: row["detail"] for row in rows if row["defect"] == "wrong label"}


def correct_by_the_key(catalog: pd.DataFrame, file: str | os.PathLike[str]) -> None:
    """Append to a file of corrections the true label of each photo of a catalog that is filed under another."""
    truth = true_labels(catalog["root"].iloc[0])
    for row in catalog[catalog["path"].isin(list(truth))].to_dict("records"):
        add_correction(file, row, truth[row["path"]])


def on_true_labels(predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions, as from `predict`, with the answer key's true labels as targets."""
    truth = true_labels(predictions["root"].iloc[0])
    return predictions.assign(target=predictions["path"].map(truth).fillna(predictions["target"]))


def make_sample(root: str | os.PathLike[str], *, seed: int = 0, photos_per_class: int = 40) -> Path:
    """Draw the sample of 33 crops into ``<root>/train|val|test/<class>/<uuid>.jpg``, unless it is there already.

    It is like a real collection in its defects too: copies, some of them in another part; wrong labels, mostly of
    look-alikes; photos that lie on their side; files that are
    no photos; a class that val lacks. ``answer_key.csv`` (path, defect, detail, found by) lists them all, and
    ``tag_locCoor.csv`` (cp950, the competition's columns) says where in each photo the crosshair lies. Two processes
    may ask for the same sample at once: one draws, the other waits.

    Args:
        root: the sample's own folder; made if it is missing, replaced if it holds another sample.
        seed: another seed draws other photos. The same seed and version of Pillow give the same bytes.
        photos_per_class: photos of the smallest classes, at least 5; the largest have a quarter more.

    Returns:
        The folder.

    Raises:
        FileExistsError: if `root` holds something that is not a sample.
        ValueError: if `photos_per_class` is below 5.
    """
    if photos_per_class < 5:
        raise ValueError(f"photos_per_class={photos_per_class} is below 5, of which train gets 3, val 1 and test 1.")
    if multiprocessing.parent_process() is not None:
        raise RuntimeError(
            "make_sample was called in a process that is itself drawing. In a script, put the call under "
            'if __name__ == "__main__":'
        )
    root = Path(root).expanduser().resolve()
    wanted = {"version": VERSION, "pillow": PIL.__version__, "seed": seed, "photos_per_class": photos_per_class}
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{root}.lock"):
        marker = root / MARKER
        if marker.is_file() and marker.read_text() == json.dumps(wanted):
            return root
        if root.exists() and not marker.is_file() and any(root.iterdir()):
            raise FileExistsError(f"{root}: holds something else than a drawn sample. Name a new folder.")
        # Drawn beside its place and renamed whole, so that an interrupted drawing is never taken for a sample.
        work = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
        try:
            shots = _plan(seed, photos_per_class)
            chunks = [list(group) for _, group in itertools.groupby(shots, key=lambda shot: shot.label)]
            tags: dict[str, Tag] = {}
            with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
                drawn = pool.map(partial(_draw_class, root=work, seed=seed), chunks)
                for some in progress(drawn, "draw the sample", total=len(chunks)):
                    tags |= some
            key = _plant_defects(work, shots, tags, seed)
            _write_tags(work, tags, seed)
            _write_csv(work / KEY, ("path", "defect", "detail", "found by"), sorted(key), "utf-8")
            (work / MARKER).write_text(json.dumps(wanted))
            work.chmod(0o755)
            if root.exists():
                shutil.rmtree(root)
            work.rename(root)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return root
