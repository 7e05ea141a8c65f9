"""The usual tutorial loop, written out, against cropkit: time to be as good.

    python benchmarks/tutorial.py extraction|fine_tuning <folder of photos> [arch]

The loop is what most tutorials show: ImageFolder, photos decoded whole, RandomResizedCrop, float32, SGD 0.001 with
momentum 0.9, StepLR(7, 0.1), two workers; for feature extraction the frozen backbone runs in every epoch. It runs in a
process of its own with torch's own settings, and once more with freed memory kept. Where 25 epochs would take more than
ten minutes, 5 are measured and multiplied, and the row says so. Ours counts everything after the scan: features, head
and epochs, up to the first validation accuracy that is at least the loop's best.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from machine import machine
from torch import nn, optim
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import cropkit
from cropkit import course
from cropkit.training.memory import keep_freed_memory

EPOCHS, LONG, MEASURED = 25, 600, 5


def weights(arch: str) -> str | None:
    """ImageNet's where they need no network; else random ones: the same work, and a lower accuracy for both."""
    return "imagenet" if arch == course.ARCH else None


def loop(method: str, root: str, arch: str, *, keep: bool) -> dict:
    """The tutorial; returns the best validation accuracy, its epochs and its seconds."""
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    train_cut = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()]
    val_cut = [v2.Resize(256), v2.CenterCrop(224)]
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    model = cropkit.create_model(arch, weights=weights(arch)).to(memory_format=torch.contiguous_format)
    end.append(v2.Normalize(model.preprocessing["mean"], model.preprocessing["std"]))
    train = ImageFolder(f"{root}/train", v2.Compose([*train_cut, *end]))
    val = ImageFolder(f"{root}/val", v2.Compose([*val_cut, *end]), allow_empty=True)
    val.samples = [(path, train.class_to_idx[val.classes[target]]) for path, target in val.samples]
    if method == "extraction":
        for parameter in model.parameters():
            parameter.requires_grad = False
    cropkit.reset_classifier(model, len(train.classes))
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.001, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    loaders = {"train": DataLoader(train, 32, shuffle=True, num_workers=2), "val": DataLoader(val, 32, num_workers=2)}
    best, epochs, start = 0.0, EPOCHS, time.perf_counter()
    for epoch in range(EPOCHS):
        model.train()
        for photos, targets in loaders["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(photos), targets).backward()
            optimizer.step()
        scheduler.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(photos).argmax(1) == targets).sum().item() for photos, targets in loaders["val"])
        best = max(best, right / len(val))
        took = time.perf_counter() - start
        if epoch == 0 and took * EPOCHS > LONG:
            epochs = MEASURED
        if epoch + 1 == epochs:
            break
    return {"best": best, "epochs": epochs, "seconds": took * EPOCHS / epochs}


def ours(method: str, root: str, arch: str, goal: float) -> tuple[float, float, float]:
    """Seconds until validation is at least the goal, that accuracy, and the test accuracy at the end."""
    torch.manual_seed(0)
    catalog = cropkit.data.good_photos(cropkit.scan(root))
    model = cropkit.create_model(arch, num_classes=len(cropkit.class_names(catalog)), weights=weights(arch))
    loaders = cropkit.make_loaders(catalog, model)
    start = time.perf_counter()
    if method == "extraction":
        cropkit.freeze_backbone(model)
        data = {part: cropkit.extract_features(model, loaders[part]) for part in ("train", "val")}
        of_features = time.perf_counter() - start
        reached = cropkit.fit_head(model, data)["val_accuracy"].max()
        seconds = time.perf_counter() - start
        print(f"cropkit: features {of_features:.1f} s, head {seconds - of_features:.1f} s")
    else:
        history = cropkit.fine_tune(model, loaders, epochs=6)
        before = time.perf_counter() - start - history["seconds"].sum()
        times = before + history["seconds"].cumsum()
        enough = history["val_accuracy"] >= goal
        place = int(enough.idxmax()) if enough.any() else len(history) - 1
        reached, seconds = history["val_accuracy"][place], times[place]
    return seconds, reached, cropkit.evaluate(model, loaders["test"])[1]


def as_folders(root: str, folder: str) -> str:
    """The clean photos as ``train|val|test/<class>/<photo>``, which ImageFolder needs."""
    catalog, _ = cropkit.prepare(root)
    for row in catalog.itertuples():
        place = Path(folder) / row.split / row.label / Path(row.path).name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(root) / row.path, place)
    return folder


def main(method: str, source: str, arch: str = course.ARCH) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = as_folders(source, folder)
        rows = {}
        for keep in ("as it comes", "memory kept"):
            command = [sys.executable, __file__, "--loop", method, root, arch, keep]
            rows[keep] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        goal = max(row["best"] for row in rows.values())
        seconds, reached, test = ours(method, root, arch, goal)
    print(f"{method}, {arch} ({weights(arch) or 'random'} weights), {source}")
    for name, row in rows.items():
        how = "" if row["epochs"] == EPOCHS else f" ({row['epochs']} measured, multiplied)"
        print(f"loop, {name}: 25 epochs {row['seconds']:.0f} s{how}, best val {row['best']:.3f} within "
              f"{row['epochs']} epochs; ours is {row['seconds'] / seconds:.0f} times sooner")  # fmt: skip
    print(f"cropkit: val {reached:.3f} after {seconds:.0f} s; test {test:.3f} at the end")


if __name__ == "__main__":
    if sys.argv[1] == "--loop":
        print(json.dumps(loop(*sys.argv[2:5], keep=sys.argv[5] == "memory kept")))
    else:
        main(*sys.argv[1:])
