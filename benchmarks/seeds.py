"""How much does the result of fine-tuning depend on chance?

    python benchmarks/seeds.py <folder of photos> [mirror]

`fine_tune` with its default recipe, 6 epochs, from three seeds; with "mirror" it answers by photo and mirror image.
"""

import statistics
import sys
import time

import torch
from machine import machine

import cropkit
from cropkit import course

EPOCHS, SEEDS = 6, (0, 1, 2)


def main(root: str, *options: str) -> None:
    print(machine())
    catalog = cropkit.data.good_photos(cropkit.scan(root))
    scores = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = cropkit.create_model(course.ARCH, num_classes=len(cropkit.class_names(catalog)))
        loaders = cropkit.make_loaders(catalog, model, seed=seed)
        start = time.perf_counter()
        history = cropkit.fine_tune(model, loaders, epochs=EPOCHS, mirror="mirror" in options)
        took = time.perf_counter() - start
        scores.append(cropkit.evaluate(model, loaders["test"])[1])
        val = history["val_accuracy"]
        print(f"seed {seed}: test {scores[-1]:.3f}, best val {val.max():.3f} in epoch {val.idxmax()}, "
              f"fitted head {val[0]:.3f}, {took:.0f} s in {model.precision}", flush=True)  # fmt: skip
    print(f"test, mean of {len(SEEDS)}: {statistics.mean(scores):.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
