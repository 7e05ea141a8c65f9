"""What do corrected labels bring a frozen backbone on the drawn sample?

    python benchmarks/corrections.py

The logistic head once, and the recipe sgd_step from three random heads: on labels as filed, and on labels of train and
val corrected by the answer key. Corrected are all of them, or those among the 100 photos that `find_label_errors`
doubts most, as if somebody had looked at these. Each pair is compared on the true labels of the test photos.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
from machine import machine

import cropkit
from cropkit import Config, course
from cropkit.course.fetch import data_home
from cropkit.course.sample import correct_by_the_key, make_sample, on_true_labels

LOOKED_AT, SEEDS = 100, (0, 1, 2)


def main() -> None:
    print(machine(), flush=True)
    root = make_sample(data_home() / "sample")
    catalog, _ = cropkit.prepare(root)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        doubted = cropkit.find_label_errors(catalog, cache=out / "cache").head(LOOKED_AT)
        files = {"all by the key": out / "all.csv", f"{LOOKED_AT} looked at": out / "some.csv"}
        for photos, file in zip((catalog, doubted), files.values(), strict=True):
            correct_by_the_key(photos, file)
        base = Config(arch=course.ARCH, method="feature_extraction")
        configs = [base, *(replace(base, recipe="sgd_step", learning_rate=0.1, epochs=25, seed=seed) for seed in SEEDS)]
        rows = []
        for config in configs:
            before = cropkit.run_experiment(config, catalog, out)
            for name, file in files.items():
                after = cropkit.run_experiment(replace(config, corrections=file), catalog, out)
                tables = (run.predictions[run.predictions["split"] == "test"] for run in (before, after))
                pair = [on_true_labels(table) for table in tables]
                counted = cropkit.evaluation.mcnemar(*pair)
                rows.append(
                    {
                        "recipe": config.resolved().recipe,
                        "seed": config.seed,
                        "corrected": name,
                        **dict(zip(("before", "after"), map(cropkit.evaluation.accuracy, pair), strict=True)),
                        "now right": counted["only_other"],
                        "now wrong": counted["only_one"],
                        "p": counted["p_value"],
                    }
                )
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).round(3)
    print(table.sort_values(["corrected", "recipe", "seed"]).to_string(index=False))


if __name__ == "__main__":
    main()
