"""What do a larger picture, mirror images and a larger backbone bring a frozen backbone, and what do they cost?

    python benchmarks/backbones.py <folder of photos>

A logistic head on the features of each setting; then the predictions of the settings that val likes best of each backbone,
averaged. Val chooses; test is printed in the last line, for the default and for what val chose.
"""

import sys
import tempfile
import time

import pandas as pd
from machine import machine

import cropkit
from cropkit.evaluation import accuracy, average

ARCHS = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def main(root: str) -> None:
    print(machine(), flush=True)
    catalog, _ = cropkit.prepare(root)
    rows, predictions = [], {}
    with tempfile.TemporaryDirectory() as cache:
        for arch in ARCHS:
            for larger in (1, 8 / 7):
                model = cropkit.create_model(arch, num_classes=len(cropkit.class_names(catalog)))
                side = round(model.preprocessing["crop_size"] * larger)
                loaders, took = cropkit.make_loaders(catalog, model), 0.0
                for mirror in (False, True):
                    start = time.perf_counter()
                    data = {
                        split: cropkit.extract_features(
                            model, loaders[split], cache=cache, resolution=side, mirror=mirror
                        )
                        for split in ("train", "val")
                    }
                    cropkit.fit_head(model, data)
                    took += time.perf_counter() - start  # mirror images come on top of the photos as they are
                    told = {split: cropkit.predict(model, loaders[split]) for split in ("val", "test")}
                    predictions[arch, side, mirror] = told
                    rows.append(
                        {"arch": arch, "pixels": side, "mirror": mirror, "val": accuracy(told["val"]), "seconds": took}
                    )
                    print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    table["cost"] = table["seconds"] / table["seconds"][0]
    print(table.round(3).to_string(index=False))
    keys = ["arch", "pixels", "mirror"]
    best = [tuple(each.loc[each["val"].idxmax(), keys]) for _, each in table.groupby("arch")]
    chosen = tuple(table.loc[table["val"].idxmax(), keys])
    # The third row: Lite0, the larger picture, no mirror images.
    default = tuple(table.loc[2, keys])
    together = {split: accuracy(average(*(predictions[key][split] for key in best))) for split in ("val", "test")}
    print(f"the best of each backbone averaged: val {together['val']:.3f}")
    print(f"test: default {default} {accuracy(predictions[default]['test']):.3f}; chosen by val {chosen} "
          f"{accuracy(predictions[chosen]['test']):.3f}; averaged {together['test']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
