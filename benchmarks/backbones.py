"""What do a larger picture, mirror images and a larger backbone bring a frozen backbone, and what do they cost?

    python benchmarks/backbones.py <folder of photos> [backbone ...]

A logistic head on the features of each setting; then the answers of the settings that val likes best of each backbone,
averaged. Val chooses; test is printed in the last line, for the default and for what val chose.
"""

import sys
import tempfile
import time

import pandas as pd
import torch
from machine import machine
from torch import Tensor

import cropkit
from cropkit.experiments import LARGER

ARCHS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def answers(head: torch.nn.Linear, data: cropkit.training.Features) -> tuple[Tensor, Tensor]:
    """Probabilities, one row a photo, and the true classes."""
    vectors, targets = data.one_a_photo().tensors
    with torch.no_grad():
        return head(vectors).softmax(dim=1), targets


def accuracy(answered: tuple[Tensor, Tensor]) -> float:
    return (answered[0].argmax(dim=1) == answered[1]).float().mean().item()


def measure(catalog: pd.DataFrame, arch: str, larger: float, cache: str) -> list[tuple[dict, dict]]:
    """Without and with mirror images: a row of the table, and the answers on val and test."""
    model = cropkit.create_model(arch, num_classes=len(cropkit.class_names(catalog)))
    side = round(model.preprocessing["crop_size"] * larger)
    loaders, took, found = cropkit.make_loaders(catalog, model), 0.0, []
    for mirror in (False, True):  # mirror images come on top of the photos, which are kept
        start = time.perf_counter()
        data = {
            split: cropkit.extract_features(model, loader, cache=cache, resolution=side, mirror=mirror)
            for split, loader in loaders.items()
        }
        cropkit.fit_head(model, data)
        took += time.perf_counter() - start
        told = {split: answers(cropkit.get_classifier(model)[1], data[split]) for split in ("val", "test")}
        row = {"arch": arch, "pixels": side, "mirror": mirror, "val": accuracy(told["val"]), "seconds": round(took)}
        print(row, flush=True)
        found.append((row, told))
    return found


def main(root: str, *archs: str) -> None:
    print(machine(), flush=True)
    catalog, _ = cropkit.prepare(root)
    with tempfile.TemporaryDirectory() as cache:
        found = [
            one for arch in archs or ARCHS for larger in (1, LARGER) for one in measure(catalog, arch, larger, cache)
        ]
    table = pd.DataFrame([row for row, _ in found])
    print(table.assign(cost=table["seconds"] / table["seconds"][0]).round(3).to_string(index=False))
    best = [each.idxmax() for _, each in table.groupby("arch")["val"]]
    together = {
        split: (torch.stack([found[k][1][split][0] for k in best]).mean(0), found[0][1][split][1])
        for split in ("val", "test")
    }
    print(f"the best of each backbone averaged: val {accuracy(together['val']):.3f}")
    chosen, default = table["val"].idxmax(), 2  # the first backbone, the larger picture, no mirror images
    for name, told in (("default", found[default][1]), ("chosen by val", found[chosen][1]), ("averaged", together)):
        print(f"test, {name}: {accuracy(told['test']):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
