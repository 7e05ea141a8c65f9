"""How hard is the drawn sample, and what does each of its planted causes cost?

    python benchmarks/sample_difficulty.py

A logistic head on frozen features, as the photos are filed, and with each cause cured; against training from scratch in
the time that this takes. Draws the sample if it is not there. Tested on the true labels of the answer key, three times,
each time with another nine tenths of the training photos: the range is what luck does.
"""

import time

import numpy as np
import pandas as pd
import torch
from machine import machine
from torch import nn, optim

import cropkit
from cropkit import course
from cropkit.course.fetch import data_home
from cropkit.course.sample import KEY, LOOK_ALIKES, make_sample, true_labels
from cropkit.data import transforms_for
from cropkit.training import Features

DRAWS = 3


def turned_right(model: nn.Module, photos: pd.DataFrame) -> torch.Tensor:
    """Features of photos that lie on their side, turned back."""
    transform, (_, head) = transforms_for(model), cropkit.get_classifier(model)
    received: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0]))
    with torch.no_grad():
        for row in photos.itertuples():
            photo = cropkit.open_photo(f"{row.root}/{row.path}").rotate(-90, expand=True)
            model.eval()(transform(photo)[None])
    hook.remove()
    return torch.cat(received)


def main() -> None:
    root = make_sample(data_home() / "sample")
    catalog, _ = cropkit.data.drop_leaks(cropkit.data.good_photos(cropkit.scan(root)))
    names = cropkit.class_names(catalog)
    key = pd.read_csv(root / KEY, dtype=str).set_index("path")
    truth = true_labels(root)
    sideways = key.index[key["defect"] == "lies on its side, EXIF lost"]
    print(machine())
    print(f"{len(catalog)} clean photos, {len(names)} classes, {catalog['path'].isin(list(truth)).sum()} wrong labels, "
          f"{catalog['path'].isin(sideways).sum()} on their side without saying so", flush=True)  # fmt: skip

    start = time.perf_counter()
    model = cropkit.create_model(course.ARCH, num_classes=len(names))
    loaders = cropkit.make_loaders(catalog, model)
    filed = {part: cropkit.extract_features(model, loader) for part, loader in loaders.items()}
    cropkit.fit_head(model, filed)
    seconds = time.perf_counter() - start
    head = cropkit.get_classifier(model)[1]

    def variant(part: str, *, labels: bool, upright: bool) -> Features:
        paths, (vectors, targets) = loaders[part].dataset.paths, (t.clone() for t in filed[part].tensors)
        for place, path in enumerate(paths):
            if labels and path in truth:
                targets[place] = names.index(truth[path])
        lying = [place for place, path in enumerate(paths) if path in sideways]
        if upright and lying:
            rows = catalog.set_index("path", drop=False).loc[[paths[place] for place in lying]]
            vectors[lying] = turned_right(model, rows)
        return Features(vectors, targets, names, filed[part].precision)

    cures = {"as filed": {}, "labels of train and val corrected": {"labels": True},
             "photos on their side turned": {"upright": True}, "both": {"labels": True, "upright": True}}  # fmt: skip
    for cure, how in cures.items():
        labels, upright = how.get("labels", False), how.get("upright", False)
        data = {part: variant(part, labels=labels or part == "test", upright=upright) for part in filed}
        scores = []
        for draw in range(DRAWS):
            count = len(data["train"])
            some = torch.randperm(count, generator=torch.Generator().manual_seed(draw))[: count * 9 // 10]
            train = Features(*(t[some] for t in data["train"].tensors), names, filed["train"].precision)
            cropkit.fit_head(model, {"train": train, "val": data["val"]})
            vectors, targets = data["test"].tensors
            with torch.no_grad():
                scores.append((head(vectors).argmax(dim=1) == targets).float().mean().item())
        print(f"{cure}: test {np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})", flush=True)

    cropkit.fit_head(model, filed)
    vectors, targets = filed["test"].tensors
    with torch.no_grad():
        predicted = head(vectors).argmax(dim=1)
    print(f"all training photos, labels as filed: test {(predicted == targets).float().mean():.3f} in {seconds:.0f} s")
    group = {crop: number for number, crops in enumerate(LOOK_ALIKES) for crop in crops}
    wrong = torch.nonzero(predicted != targets).flatten().tolist()
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
