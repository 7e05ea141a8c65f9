"""The competition's own layout, made from drawn photos: how long do the shell's commands take on it, with what memory?

    python benchmarks/competition_folder.py <scratch folder> [photos]

Training photos in ``train/<class>``, test photos in ``test/0`` to ``test/f``, of 1 to 12 megapixels, some of them lying
on their side with the axes of their crosshair swapped; ``tag_locCoor.csv`` in cp950, ``TARGET_FID`` not unique, some
crosshairs not recorded; and the template of a submission. Prints minutes and the largest memory of each command.
"""

import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from machine import machine
from PIL import Image
from sklearn.metrics import precision_score

from cropkit.course.drawing import CLASSES
from cropkit.course.sample import make_sample
from cropkit.data.catalog import PHOTO_SUFFIXES

SHORT_SIDES = {720: 0.6, 1536: 0.3, 3000: 0.1}  # pixels: about 1, 3 and 12 megapixels
TAGS = "tag_locCoor.csv"


def enlarge(source: Path, target: Path, short: int) -> float:
    """Save a photo with another short side, without EXIF's turn; returns how many times as large it is."""
    with Image.open(source) as photo:
        scale = short / min(photo.size)
        size = [round(length * scale) for length in photo.size]
        photo.convert("RGB").resize(size, Image.Resampling.BILINEAR).save(target, quality=85, exif=photo.getexif())
    return scale


def make(root: Path, photos: int) -> pd.Series:
    """The folder, unless it is there; returns the labels of the test photos by file name."""
    drawn = make_sample(root / "drawn", seed=7, photos_per_class=round(photos / len(CLASSES) / 1.12 / 0.8))
    tags = pd.read_csv(drawn / TAGS, encoding="cp950", dtype=str).set_index("Img")
    files = sorted(path for path in drawn.glob("*/*/*") if path.is_file() and path.stat().st_size)
    files = [path for path in files if path.suffix.lower() in PHOTO_SUFFIXES and path.read_bytes()[:1] != b"<"]
    random, jobs, labels = np.random.default_rng(0), [], {}
    for path in files:
        part, label = path.relative_to(drawn).parts[:2]
        folder = root / "test" / path.name[0] if part == "test" else root / "train" / label
        folder.mkdir(parents=True, exist_ok=True)
        jobs.append((path, folder / path.name, int(random.choice(list(SHORT_SIDES), p=list(SHORT_SIDES.values())))))
        if part == "test":
            labels[path.name] = label
    if not (root / TAGS).exists():
        with ProcessPoolExecutor() as pool:
            done = list(pool.map(_try, jobs, chunksize=16))
        scales = {job[1].name: scale for job, scale in zip(jobs, done, strict=True)}
        scale = tags.index.map(scales).to_series(index=tags.index).fillna(1.0)
        for axis in ("target_x", "target_y"):
            tags[axis] = (tags[axis].astype(float) * scale).round().astype(int)
        columns = ["TARGET_FID", "Img", *tags.columns.drop("TARGET_FID")]
        tags.reset_index()[columns].to_csv(root / TAGS, index=False, encoding="cp950")
    truth = pd.Series(labels)
    rows = truth.index.to_series().sample(frac=1, random_state=0)
    pd.DataFrame({"filename": rows, "label": ""}).to_csv(root / "sample_submission.csv", index=False)
    return truth


def _try(job: tuple[Path, Path, int]) -> float:
    try:
        return enlarge(*job)
    except OSError:  # a file that was cut off: it stays as it is
        job[1].write_bytes(job[0].read_bytes())
        return 1.0


def run(name: str, *command: str) -> str:
    """Run one command of cropkit; prints its minutes, and the largest memory of any command so far."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "cropkit", *command], check=True, stdout=subprocess.PIPE, text=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{name}: {(time.perf_counter() - start) / 60:.1f} minutes, at most {peak:.1f} GB so far", flush=True)
    return done.stdout


def main(folder: str, photos: str = "2000") -> None:
    root = Path(folder)
    truth = make(root, int(photos))
    megapixels = sum(np.prod(Image.open(file).size) for file in root.glob("test/*/*")) / len(truth) / 1e6
    train = sum(1 for file in root.glob("train/*/*"))
    print(f"{machine()}\n{train} training photos, {len(truth)} test photos of {megapixels:.1f} megapixels on average")
    runs = []
    for name, options in {
        "train, whole photos": [],
        "train, whole photos, Lite1": ["--arch", "efficientnet_lite1"],
        "train, 70 % round the crosshair": ["--cut", "0.7", "--around", "crosshair"],
    }.items():
        places = ["--data", str(root / "train"), "--metadata", str(root / TAGS), "--out", str(root / "runs")]
        told = run(name, "train", *places, "--method", "feature_extraction", *options)
        runs.append(json.loads(told))
        print(f"  val {runs[-1]['val_accuracy']:.3f}, its own test {runs[-1]['test_accuracy']:.3f}")
    kept = sum(file.stat().st_size for file in root.glob("runs/cache/photos-*/*/*"))
    print(f"small copies: {kept / 1e6:.0f} MB")
    out = root / "submission.csv"
    models = [part for one in runs[:2] for part in ("--model", one["run"])]
    template = ["--template", str(root / "sample_submission.csv"), "--out", str(out)]
    run("submit, two models", "submit", *models, "--data", str(root / "test"), *template)
    answers = pd.read_csv(out, dtype=str)
    score = precision_score(truth[answers["filename"]], answers["label"], average="weighted", zero_division=0)
    print(f"weighted precision of {out.name}, by scikit-learn: {score:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
