"""How hard is the drawn sample? A logistic head on frozen features, against training from scratch in the same time.

    python benchmarks/sample_difficulty.py

Draws the sample if it is not there. Wrong labels, which nobody can see, are counted as they are filed.
"""

import time

import numpy as np
import torch
from machine import machine
from sklearn.linear_model import LogisticRegression
from torch import nn, optim
from torch.utils.data import DataLoader

import cropkit
from cropkit import course
from cropkit.course.fetch import data_home
from cropkit.course.sample import LOOK_ALIKES, make_sample
from cropkit.training.memory import keep_freed_memory

C_VALUES = (0.003, 0.01, 0.03, 0.1, 0.3)


def features(model: nn.Module, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """What the head receives for each photo, and the targets."""
    _, head = cropkit.get_classifier(model)
    received: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: received.append(inputs[0]))
    with torch.no_grad():
        for photos, labels in loader:
            model.eval()(photos)
            targets.append(labels)
    hook.remove()
    return torch.cat(received).numpy(), torch.cat(targets).numpy()


def main() -> None:
    torch.manual_seed(0)
    keep_freed_memory()
    root = make_sample(data_home() / "sample")
    catalog, _ = cropkit.data.drop_leaks(cropkit.data.good_photos(cropkit.scan(root)))
    names = cropkit.class_names(catalog)
    print(machine())
    print(f"{len(catalog)} clean photos, {len(names)} classes")

    start = time.perf_counter()
    model = cropkit.create_model(course.ARCH)
    loaders = cropkit.make_loaders(catalog, model, augment=False)
    parts = {part: features(model, loader) for part, loader in loaders.items()}
    heads = [LogisticRegression(C=c, max_iter=300).fit(*parts["train"]) for c in C_VALUES]
    best = max(heads, key=lambda head: head.score(*parts["val"]))
    seconds = time.perf_counter() - start
    vectors, targets = parts["test"]
    predicted = best.predict(vectors)
    print(f"frozen {course.ARCH}, logistic head: test {(predicted == targets).mean():.3f} in {seconds:.0f} s")

    group = {crop: number for number, crops in enumerate(LOOK_ALIKES) for crop in crops}
    wrong = np.flatnonzero(predicted != targets)
    inside = [group.get(names[predicted[k]], -1) == group.get(names[targets[k]], -2) for k in wrong]
    pairs = sum(len(crops) * (len(crops) - 1) for crops in LOOK_ALIKES) / (len(names) * (len(names) - 1))
    print(f"confusions inside the look-alike groups: {np.mean(inside):.2f} of {len(wrong)}; by chance {pairs:.2f}")

    start, epochs = time.perf_counter(), 0
    scratch = cropkit.create_model(course.ARCH, num_classes=len(names), weights=None)
    loaders = cropkit.make_loaders(catalog, scratch)
    optimizer = optim.SGD(scratch.parameters(), lr=0.01, momentum=0.9)
    while time.perf_counter() - start < seconds:
        cropkit.training.train_one_epoch(scratch, loaders["train"], optimizer, nn.CrossEntropyLoss())
        epochs += 1
    took = time.perf_counter() - start
    _, accuracy = cropkit.evaluate(scratch, loaders["test"])
    print(f"from scratch, {epochs} whole epochs: test {accuracy:.3f} in {took:.0f} s")


if __name__ == "__main__":
    main()
