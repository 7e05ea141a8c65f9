"""How many photos a class does fine-tuning need to be worth its time?

    python benchmarks/photos_a_class.py <folder of photos> <picture.png> [photos a class ...]

Feature extraction and fine-tuning, each with its defaults, on so many training photos of each class (0 means all),
drawn by three seeds; val and test stay whole. Prints a table of means and ranges, and draws it.
"""

import sys
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
from machine import machine
from torch.utils.data import DataLoader

import cropkit
from cropkit import Config, course
from cropkit.experiments import LARGER
from cropkit.training import Features

SEEDS, EPOCHS = (0, 1, 2), Config().epochs


def some(catalog: pd.DataFrame, photos: int, seed: int) -> pd.DataFrame:
    """The catalog with so many training photos of each class; 0 keeps all."""
    train = catalog["split"] == "train"
    shuffled = catalog[train].sample(frac=1, random_state=seed)
    chosen = shuffled if photos == 0 else shuffled.groupby("label").head(photos)
    return catalog[~train | catalog.index.isin(chosen.index)].reset_index(drop=True)


def rows_of(features: Features, keep: list[int]) -> Features:
    """Some rows of features."""
    vectors, targets = (tensor[keep] for tensor in features.tensors)
    return Features(vectors, targets, features.class_names, features.precision, preprocessing=features.preprocessing)


def extraction(catalog: pd.DataFrame, counts: list[int]) -> list[dict]:
    """Features of all photos once, then a head for each count and seed."""
    model = cropkit.create_model(course.ARCH, num_classes=len(cropkit.class_names(catalog)))
    side = round(model.preprocessing["crop_size"] * LARGER)
    loaders, start = cropkit.make_loaders(catalog, model), time.perf_counter()
    data = {split: cropkit.extract_features(model, loaders[split], resolution=side) for split in loaders}
    passed = time.perf_counter() - start
    place = {path: number for number, path in enumerate(loaders["train"].dataset.paths)}
    head, rows = cropkit.get_classifier(model)[1], []
    for photos in counts:
        for seed in SEEDS:
            chosen, start = some(catalog, photos, seed), time.perf_counter()
            keep = [place[path] for path in chosen.loc[chosen["split"] == "train", "path"]]
            cropkit.fit_head(model, {"train": rows_of(data["train"], keep), "val": data["val"]})
            val, test = (cropkit.evaluate(head, DataLoader(data[split], 64))[1] for split in ("val", "test"))
            seconds = passed * len(keep) / sum(map(len, data.values())) + time.perf_counter() - start
            rows.append(
                {"photos": photos, "method": "feature extraction", "val": val, "test": test, "seconds": seconds}
            )
    return rows


def fine_tuning(catalog: pd.DataFrame, photos: int, seed: int) -> dict:
    chosen = some(catalog, photos, seed)
    torch.manual_seed(seed)
    model = cropkit.create_model(course.ARCH, num_classes=len(cropkit.class_names(catalog)))
    loaders, start = cropkit.make_loaders(chosen, model, seed=seed), time.perf_counter()
    val = cropkit.fine_tune(model, loaders, epochs=EPOCHS)["val_accuracy"]
    seconds, test = time.perf_counter() - start, cropkit.evaluate(model, loaders["test"])[1]
    print(f"{photos} a class, seed {seed}: head {val[0]:.3f}, val {val.max():.3f} in epoch {val.idxmax()}, "
          f"test {test:.3f}, {seconds:.0f} s", flush=True)  # fmt: skip
    return {"photos": photos, "method": "fine-tuning", "val": val.max(), "test": test, "seconds": seconds}


def main(root: str, picture: str, *numbers: str) -> None:
    counts = [int(number) for number in numbers] or [5, 10, 20, 0]
    print(machine(), flush=True)
    catalog, _ = cropkit.prepare(root)
    rows = extraction(catalog, counts)
    rows += [fine_tuning(catalog, photos, seed) for photos in counts for seed in SEEDS]
    table = pd.DataFrame(rows).groupby(["photos", "method"]).agg(["mean", "min", "max"]).round(3)
    print(table.to_string())
    most = catalog.loc[catalog["split"] == "train", "label"].value_counts().mean()
    _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for method, rows_of_method in table.groupby(level="method"):
        at = [photos or most for photos, _ in rows_of_method.index]
        test = rows_of_method["test"]
        away = [test["mean"] - test["min"], test["max"] - test["mean"]]
        order = sorted(range(len(at)), key=at.__getitem__)
        mean = test["mean"].to_numpy()
        ax.errorbar([at[k] for k in order], mean[order], [side.to_numpy()[order] for side in away], marker="o", ms=4,
                    capsize=3, label=method)  # fmt: skip
    ax.set(xlabel="training photos a class (mean)", ylabel="test accuracy, mean and range of three seeds", xscale="log")
    ax.set_xticks([photos or most for photos in counts], [str(photos or f"all ({most:.0f})") for photos in counts])
    ax.minorticks_off()
    ax.legend(frameon=False)
    plt.savefig(picture, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
