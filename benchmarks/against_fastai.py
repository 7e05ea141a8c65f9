"""fastai's `fine_tune(5)` against cropkit's `fine_tune`: the same backbone, photos and split.

    python benchmarks/against_fastai.py <folder of photos>

fastai is installed into an environment of its own, with cropkit and the torch of this one. Both run in processes of
their own and take turns, three times each; seconds are those of training alone, memory is the peak of the process
together with the largest of its loader workers. fastai is used as its documentation shows: photos resized to 256,
`aug_transforms` to 224, and a splitter into backbone and head, so that it first trains the head alone.
"""

import importlib.metadata
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

EPOCHS, ROUNDS = 5, 3


def fastai(root: str) -> tuple[float, float]:
    """Seconds of training, and test accuracy."""
    from fastai.vision.all import (
        ImageDataLoaders,
        Learner,
        Normalize,
        Resize,
        accuracy,
        aug_transforms,
        get_image_files,
        params,
        set_seed,
    )

    import cropkit
    from cropkit import course

    set_seed(0)
    classes = len(list(Path(root, "train").iterdir()))
    model = cropkit.create_model(course.ARCH, num_classes=classes)
    stats = Normalize.from_stats(model.preprocessing["mean"], model.preprocessing["std"], cuda=False)
    changes = [*aug_transforms(size=224), stats]
    dls = ImageDataLoaders.from_folder(
        root, train="train", valid="val", item_tfms=Resize(256), batch_tfms=changes, bs=32, num_workers=2
    )
    _, head = cropkit.get_classifier(model)
    of_head = {id(parameter) for parameter in head.parameters()}

    def splitter(model):
        return [[p for p in params(model) if id(p) not in of_head], list(head.parameters())]

    learner = Learner(dls, model, splitter=splitter, metrics=accuracy)
    start = time.perf_counter()
    learner.fine_tune(EPOCHS)
    seconds = time.perf_counter() - start
    test = dls.test_dl(get_image_files(f"{root}/test"), with_labels=True)
    return seconds, float(learner.validate(dl=test)[1])


def ours(root: str) -> tuple[float, float]:
    import torch

    import cropkit
    from cropkit import course

    torch.manual_seed(0)
    catalog = cropkit.scan(root)
    model = cropkit.create_model(course.ARCH, num_classes=len(cropkit.class_names(catalog)))
    loaders = cropkit.make_loaders(catalog, model)
    start = time.perf_counter()
    cropkit.fine_tune(model, loaders, epochs=EPOCHS)
    return time.perf_counter() - start, cropkit.evaluate(model, loaders["test"])[1]


def measure(who: str, root: str) -> None:
    seconds, test = fastai(root) if who == "fastai" else ours(root)
    kib = sum(resource.getrusage(whose).ru_maxrss for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps([seconds, test, kib / 2**20]))


def main(source: str) -> None:
    from machine import machine
    from tutorial import as_folders

    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = as_folders(source, f"{folder}/photos")
        venv.create(f"{folder}/venv", with_pip=True)
        python = f"{folder}/venv/bin/python"
        same = [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in ("torch", "torchvision")]
        install = [python, "-m", "pip", "install", "--quiet", "fastai", *same, str(Path(__file__).parents[1])]
        subprocess.run(install, check=True)
        rows: dict[str, list[list[float]]] = {"fastai": [], "cropkit": []}
        for _ in range(ROUNDS):
            for who in rows:
                command = [python, __file__, "--measure", who, root]
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                rows[who].append(json.loads(out.splitlines()[-1]))
        version = "import importlib.metadata as m; print(m.version('fastai'))"
        version = subprocess.run([python, "-c", version], check=True, capture_output=True, text=True).stdout.strip()
    print(f"{source}, {EPOCHS} epochs, medians of {ROUNDS} | test accuracy | seconds | peak memory")
    for who, runs in rows.items():
        seconds, test, gib = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"{who} {version if who == 'fastai' else ''} | {test:.3f} | {seconds:.0f} | {gib:.1f} GiB")


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        measure(*sys.argv[2:])
    else:
        main(sys.argv[1])
