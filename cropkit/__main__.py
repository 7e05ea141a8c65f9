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

import pandas as pd
import torch
import tyro

from cropkit import experiments
from cropkit.course import handout
from cropkit.course.fetch import data_home
from cropkit.course.fetch import fetch as fetch_collection
from cropkit.course.sample import make_sample
from cropkit.data import catalog, splitting
from cropkit.data.files import replace_text
from cropkit.evaluation import metrics, predictions, submission
from cropkit.experiments import Config
from cropkit.training.checkpoints import load_model
from cropkit.training.processes import from_first, processes, rank


def sample(root: Path | None = None, seed: int = 0, photos_per_class: int = 40) -> str:
    """Draw the 33-crop sample with its planted defects; prints its folder.

    Args:
        root: folder to draw into; sample in the folder for data unless given.
        seed: of the drawing.
        photos_per_class: number of photos of each crop.
    """
    return str(make_sample(root or data_home() / "sample", seed=seed, photos_per_class=photos_per_class))


def fetch(name: Literal["grocery36"], root: Path | None = None) -> str:
    """Download a collection of real photos; prints its folder.

    Args:
        name: the collection.
        root: folder to put it into; its name in the folder for data unless given.
    """
    return str(fetch_collection(name, root))


def course(folder: tyro.conf.Positional[Path], lang: Literal["en", "zh_TW"] | None = None, update: bool = False) -> str:
    """Unpack the course's notebooks into a folder; prints what was written, and what was kept.

    Args:
        folder: a new folder, or with --update one that is in use: what you changed stays, the new file lies beside it.
        lang: the language, English unless given.
        update: bring the notebooks of the installed version.
    """
    said = handout.unpack(folder, lang, update)
    return "\n".join(said or ["nothing is newer"])


def bundle(
    folder: tyro.conf.Positional[Path], lang: Literal["en", "zh_TW"] = "en", torch_index: str | None = None
) -> str:
    """Make a folder for a USB stick: all packages and the unpacked course; prints the folder.

    Args:
        folder: a new folder.
        lang: the language of the notebooks.
        torch_index: an address of CPU-only builds of torch, which are much smaller.
    """
    return str(handout.bundle(folder, lang, torch_index))


def scan(data: Path, metadata: Path | None = None, corrections: Path | None = None) -> str:
    """List every photo and what is wrong with it, as CSV.

    Args:
        data: folder of <class>/<photo>, train|val|test/<class>/<photo>, or with an index.csv.
        metadata: a table of more facts about the photos, such as tag_locCoor.csv.
        corrections: a file of corrected labels.
    """
    found = catalog.scan(data, metadata=metadata, corrections=corrections)
    for row in catalog.passed_over(data).itertuples():
        print(f"passed over: {row.path} ({row.reason})")
    bad = found[found["problem"] != ""]
    print(f"{len(found)} files of {found['label'].nunique()} classes; {len(bad)} cannot be used")
    return found.drop(columns="root").to_csv(index=False)


def train(
    data: Path, config: Config, out: Path = Path("runs"), num_workers: int = 0, metadata: Path | None = None
) -> str:
    """Train what the options say, or go on where it was cut off; prints the run's folder and scores as JSON.

    Args:
        data: folder of photos; where it has no train, val and test folders, it is divided. The run records how.
        config: what changes the result.
        out: folder for runs.
        num_workers: processes that read photos; any number gives the same result.
        metadata: a table of more facts about the photos, such as tag_locCoor.csv.
    """
    photos, left_out = from_first(lambda: splitting.prepare(data, metadata=metadata))
    for row in left_out.itertuples() if rank() == 0 else ():
        print(f"left out: {row.path} ({row.reason})")
    run = experiments.run_experiment(config, photos, out, num_workers=num_workers)
    if not run.finished:
        print(f"stopped; the same command goes on. {run.folder}")
        raise KeyboardInterrupt
    return json.dumps({"run": str(run.folder), **run.metrics, "photos": len(run.predictions)}, indent=1)


def evaluate(
    model: Path,
    data: Path,
    split: Literal["test", "val", "train", "all"] = "test",
    out: Path | None = None,
    metadata: Path | None = None,
) -> str:
    """Score a trained model on labelled photos that it has not learned from; prints JSON.

    Where the folder holds photos of the model's own run, its own test photos count. Of any other folder all photos
    count, but for those whose picture the model has learned from.

    Args:
        model: a run's folder.
        data: folder of photos.
        split: which photos count; "all" counts every photo, whatever the model has seen.
        out: file for the predictions, as CSV.
        metadata: a table of more facts about the photos, such as tag_locCoor.csv.
    """
    table = experiments.predict_unseen(model, data, split, metadata=metadata)
    if out is not None and rank() == 0:
        replace_text(out, table.drop(columns="root").to_csv(index=False))
    low, high = metrics.bootstrap_interval(table[["target", "predicted"]])
    scores = {
        "split": split,
        "photos": len(table),
        "accuracy": metrics.accuracy(table),
        "between": [low, high],
        "weighted_precision": metrics.weighted_precision(table),
        "lowest_f1": metrics.lowest_f1(table),
        "never_predicted": metrics.never_predicted(table),
        "expected_calibration_error": metrics.expected_calibration_error(table),
    }
    return json.dumps(scores, indent=1)


def predict(
    model: tyro.conf.UseAppendAction[tuple[Path, ...]],
    data: Path,
    out: Path | None = None,
    metadata: Path | None = None,
) -> str:
    """Name every photo of a folder, labelled or not, however nested; prints CSV: filename,label.

    Files that cannot be read have a row without a label, and are named on stderr.

    Args:
        model: a run's folder, or its best.safetensors; given several times, the models answer together.
        data: folder of photos.
        out: file for the CSV, instead of printing it.
        metadata: a table of more facts about the photos, such as tag_locCoor.csv.
    """
    table = _answers(model, data, metadata)
    answer = table.rename(columns={"path": "filename", "predicted": "label"})[["filename", "label"]].to_csv(index=False)
    if out is None:
        return answer
    if rank() == 0:
        replace_text(out, answer)
    return str(out)


def submit(
    model: tyro.conf.UseAppendAction[tuple[Path, ...]],
    data: Path,
    template: Path,
    out: Path = Path("submission.csv"),
    metadata: Path | None = None,
) -> str:
    """Answer a competition: the rows of its template with the predicted classes; prints the file's name.

    Nothing is written unless each row has its answer, and each photo its row.

    Args:
        model: a run's folder, or its best.safetensors; given several times, the models answer together.
        data: folder of the test photos, nested as they may be.
        template: the competition's sample submission, a CSV table of filename and label.
        out: the file to write.
        metadata: a table of more facts about the photos, such as tag_locCoor.csv.
    """
    table = _answers(model, data, metadata)
    if rank() == 0:
        submission.write_submission(table, template, out)
    return str(out)


def _answers(model: Sequence[Path], data: Path, metadata: Path | None) -> pd.DataFrame:
    """What one model, or several together, say about the photos of a folder."""
    if not model:
        raise ValueError("no model is named. Give --model <a run's folder>, once for each model.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tables = [predictions.predict(load_model(one).to(device), data, metadata=metadata) for one in model]
    table = predictions.average(*tables)
    for row in table[table["problem"] != ""].itertuples() if rank() == 0 else ():
        print(f"not readable: {row.path} ({row.problem})")
    return table


def compare(out: Path = Path("runs")) -> str:
    """Compare the runs below a folder, the best on val first, as CSV.

    Args:
        out: folder for runs.
    """
    return experiments.compare_runs(out).to_csv()


def _remarks_to_stderr(command: Callable[..., str]) -> Callable[..., str]:
    """The same command; what it prints on its way goes to stderr, so that stdout holds the result alone."""

    @functools.wraps(command)
    def quiet(*args: object, **kwargs: object) -> str:
        with contextlib.redirect_stdout(sys.stderr):
            return command(*args, **kwargs)

    return quiet


FUNCTIONS = (course, bundle, sample, fetch, scan, train, evaluate, predict, submit, compare)
COMMANDS = {function.__name__: _remarks_to_stderr(function) for function in FUNCTIONS}


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
    except (OSError, ValueError, ArithmeticError, MemoryError, RuntimeError, ImportError) as error:
        print(f"cropkit: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
