"""The diary's two recipes over their full 25 epochs, and the recipe of today beside them, on the drawn sample.

    python benchmarks/diary.py

Images of 128 pixels a side, since those of 224 take three times as long; half an hour on two cores with other work
beside. The same call goes on where it was stopped. Writes `cropkit/course/diary.csv`, which lesson 06 draws: one row a
recipe and epoch. Prints test accuracies at the end.
"""

from pathlib import Path

import pandas as pd
from machine import machine

import cropkit
from cropkit import Config, course
from cropkit.course.fetch import data_home
from cropkit.course.sample import make_sample
from cropkit.data.files import replace_text

SIDE = 128
RECIPES = {
    "feature extraction, diary": Config(method="feature_extraction", recipe="sgd_step", epochs=25, resolution=SIDE),
    "fine-tuning, head first": Config(method="fine_tuning", resolution=SIDE),
    "fine-tuning, diary": Config(method="fine_tuning", recipe="sgd_step", epochs=25, resolution=SIDE),
}
COLUMNS = ["epoch", "learning_rate", "train_accuracy", "val_accuracy", "val_loss"]


def main() -> None:
    print(machine(), flush=True)
    catalog, _ = cropkit.prepare(make_sample(data_home() / "sample"))
    out = course.FOLDER / "build" / "diary"
    runs = {name: cropkit.run_experiment(config, catalog, out) for name, config in RECIPES.items()}
    curves = pd.concat([run.history[COLUMNS].assign(recipe=name) for name, run in runs.items()])
    text = curves[["recipe", *COLUMNS]].round(6).to_csv(index=False)
    replace_text(Path(course.__file__).parent / "diary.csv", f"# {machine()}: python benchmarks/diary.py\n{text}")
    rows = [{"recipe": name, **run.metrics} for name, run in runs.items()]
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
