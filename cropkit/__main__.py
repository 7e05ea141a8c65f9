"""The functions of cropkit from the shell: ``python -m cropkit <command> --help``, or just ``cropkit``.

Under ``torchrun ... -m cropkit <command>`` train, evaluate and predict run in all its processes together.
Results go to stdout, progress and remarks to stderr. Exit codes: 0; 1 where something could not be done, and one line
says what and why; 2 where the command line is wrong; 130 after Ctrl-C; 75 after SIGTERM, when all is saved.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import nn
from torch.utils.data import DataLoader

from cropkit import catalog as photos
from cropkit import experiments, interpret, samples, training
from cropkit.checkpoints import load_model, save_whole
from cropkit.datasets import CropDataset, transforms_for
from cropkit.distributed import from_first, processes, rank
from cropkit.experiments import Config
from cropkit.models import preprocessing_of


def sample(root: Path = samples.DATA / "sample", seed: int = 0, photos_per_class: int = 40) -> str:
    """Draw the 33-crop sample with its planted defects; prints its folder.

    Args:
        root: folder to draw into.
        seed: of the drawing.
        photos_per_class: number of photos of each crop.
    """
    return str(samples.make_sample(root, seed=seed, photos_per_class=photos_per_class))


def fetch(name: Literal["grocery36"], root: Path | None = None) -> str:
    """Download a collection of real photos; prints its folder.

    Args:
        name: the collection.
        root: folder to put it into; data/<name> unless given.
    """
    return str(samples.fetch(name, root))


def scan(data: Path, metadata: Path | None = None) -> str:
    """List every photo and what is wrong with it, as CSV.

    Args:
        data: folder of <class>/<photo>, train|val|test/<class>/<photo>, or with an index.csv.
        metadata: a table of more facts about the photos, such as tag_locCoor.csv.
    """
    found = photos.scan(data, metadata=metadata)
    for path, reason in found.attrs["skipped"]:
        print(f"passed over: {path} ({reason})")
    bad = found[found["problem"] != ""]
    print(f"{len(found)} files of {found['label'].nunique()} classes; {len(bad)} cannot be used")
    return found.to_csv(index=False)


def train(data: Path, config: Config, out: Path = Path("runs"), num_workers: int = 0) -> str:
    """Train what the options say, or go on where it was cut off; prints the run's folder and scores as JSON.

    Args:
        data: folder of photos; where it has no train, val and test parts, they are made.
        config: what changes the result.
        out: folder for runs.
        num_workers: processes that read photos; any number gives the same result.
    """
    catalog = from_first(lambda: photos.prepare(data))
    run = experiments.run_experiment(config, catalog, out, num_workers=num_workers)
    if not run.finished:
        print(f"stopped; the same command goes on. {run.folder}")
        raise KeyboardInterrupt
    return json.dumps({"run": str(run.folder), **run.metrics, "photos": len(run.predictions)}, indent=1)


def evaluate(model: Path, data: Path, part: Literal["train", "val", "test"] = "test", out: Path | None = None) -> str:
    """Score a trained model on labelled photos; prints JSON.

    Args:
        model: a run's folder, or its best.safetensors.
        data: folder of photos; where it has no parts, all of them count.
        part: which part counts.
        out: file for the predictions, as CSV.
    """
    trained = _load(model)
    catalog = from_first(lambda: photos.good_photos(photos.scan(data)))
    if (catalog["split"] != "").any():
        catalog = catalog[catalog["split"] == part]
    if catalog.empty:
        raise ValueError(f"{data}: has no {part} photos.")
    side = preprocessing_of(trained)["resize_size"]
    dataset = CropDataset(catalog, list(trained.class_names), transforms_for(trained), min_side=side)  # type: ignore[arg-type]
    predictions = training.predict(trained, DataLoader(dataset, batch_size=32))
    if out is not None and rank() == 0:
        save_whole(out, predictions.to_csv(index=False))
    low, high = interpret.bootstrap_interval(predictions[["target", "predicted"]])
    scores = {
        "photos": len(predictions),
        "accuracy": interpret.accuracy(predictions),
        "between": [low, high],
        "weighted_precision": interpret.weighted_precision(predictions),
        "expected_calibration_error": interpret.expected_calibration_error(predictions),
    }
    return json.dumps(scores, indent=1)


def predict(model: Path, data: Path, out: Path | None = None) -> str:
    """Name every photo of a folder, labelled or not, however nested; prints CSV: filename,label.

    Files that cannot be read have a row without a label, and are told on stderr.

    Args:
        model: a run's folder, or its best.safetensors.
        data: folder of photos.
        out: file for the CSV, instead of printing it.
    """
    table = training.classify(_load(model), data)
    for row in table[table["problem"] != ""].itertuples() if rank() == 0 else ():
        print(f"not readable: {row.path} ({row.problem})")
    answer = table[["path", "label"]].rename(columns={"path": "filename"}).to_csv(index=False)
    if out is None:
        return answer
    if rank() == 0:
        save_whole(out, answer)
    return str(out)


def compare(out: Path = Path("runs")) -> str:
    """Compare the runs below a folder, the best on val first, as CSV.

    Args:
        out: folder for runs.
    """
    return experiments.compare_runs(out).to_csv()


def _load(model: Path) -> nn.Module:
    trained = load_model(model / "best.safetensors" if model.is_dir() else model)
    return trained.to("cuda" if torch.cuda.is_available() else "cpu")


def _remarks_to_stderr(command: Callable[..., str]) -> Callable[..., str]:
    """The same command; what it prints on its way goes to stderr, so that stdout holds the result alone."""

    @functools.wraps(command)
    def quiet(*args: object, **kwargs: object) -> str:
        with contextlib.redirect_stdout(sys.stderr):
            return command(*args, **kwargs)

    return quiet


COMMANDS = {f.__name__: _remarks_to_stderr(f) for f in (sample, fetch, scan, train, evaluate, predict, compare)}


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        with processes():
            result = tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="cropkit",
                description="Transfer learning on crop photos. `cropkit <command> --help` lists a command's options.",
                args=arguments,
                config=(tyro.conf.OmitArgPrefixes,),
            )
            if rank() == 0:
                print(result, end="" if result.endswith("\n") else "\n")
    except (OSError, ValueError) as error:
        print(f"cropkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
