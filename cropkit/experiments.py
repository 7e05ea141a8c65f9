"""Experiments: one config, one folder, one reproducible result."""

import hashlib
import itertools
import json
import math
import operator
import os
import platform
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import nn
from torch.utils.data import DataLoader

from cropkit.data.catalog import class_names, good_photos, scan
from cropkit.data.corrections import correct, read_corrections
from cropkit.data.datasets import CropDataset, make_loaders, preprocessing_of
from cropkit.data.files import file_hash, replace_text
from cropkit.data.splitting import check_split, drop_leaks
from cropkit.evaluation.metrics import bootstrap_interval, lowest_f1, weighted_precision
from cropkit.evaluation.predictions import predict
from cropkit.models.surgery import create_model, freeze_backbone, get_classifier
from cropkit.training.checkpoints import METRICS, STOPPED, Checkpoint, load_model, write_lines
from cropkit.training.features import features_for_head, fit_head
from cropkit.training.loop import HISTORY
from cropkit.training.precision import Precision, resolve_precision
from cropkit.training.processes import from_first, rank, ranks, wait_for_all
from cropkit.training.recipes import SGD_RATE, fine_tune, fit_sgd_step

# The recipes of each method, the default first.
RECIPES = {
    "feature_extraction": ("logistic", "sgd_step"),
    "fine_tuning": ("lp_ft", "sgd_step"),
    "from_scratch": ("sgd_step",),
}
LARGER = 8 / 7  # of the weights' own resolution, which serves a frozen backbone best for its cost
RECORD, PREDICTIONS, SPLIT, LOCK = "config.json", "predictions.csv", "split.csv", ".lock"
PREDICTED = ["path", "target", "predicted", "probability", "loss", "split"]
SPLIT_COLUMNS = ["path", "label", "split", "sha256", "phash", "dhash", "root"]


@dataclass(frozen=True)
class Config:
    """Everything that changes a result, beside the photos.

    Attributes:
        arch: a name that `create_model` knows.
        weights: "imagenet", None, or the path of a checkpoint of one's own; of no meaning where the method is
            from_scratch.
        method: "feature_extraction" (only a new head learns), "fine_tuning" (everything learns), or "from_scratch".
        recipe: "logistic" or "sgd_step" for feature_extraction, "lp_ft" or "sgd_step" for fine_tuning, "sgd_step" from
            scratch; the first of them unless given.
        epochs: passes over the training photos, >= 1; of no meaning to "logistic".
        learning_rate: the recipe's own unless given; see `fine_tune`.
        resolution: pixels of the square that the network sees; None is the weights' own. "auto" is that too, but for
            the recipe "logistic", where it is 8/7 of it if the network takes such pictures.
        mirror: answer by photo and mirror image together, and fit a head to the features of both.
        cut: look at a square of each photo only, its side as a share of the photo's short side, 0.1 to 1 (the whole
            photo); the network's own resize follows.
        around: where the square lies: at the "centre", or round the "crosshair", which the catalog must then have from
            its metadata (see `prepare`); at the centre where none is recorded.
        precision: "float32" or "bfloat16"; "auto" decides by the processor, see `resolve_precision`.
        batch_size: photos a batch.
        augment: vary the training photos at random; features are always those of the photos as they are.
        seed: >= 0; decides the new head, the order of the photos and how they are varied.
        corrections: a file of corrected labels (see `correct`), for train and val. The test photos keep their labels,
            so that runs before and after can be compared on them; val accuracies are then of other labels. Another
            content makes another run.

    Raises:
        ValueError: if a field cannot be what it is.

    Example:
        >>> Config(epochs=3).resolved().recipe
        'lp_ft'
    """

    arch: str = "efficientnet_lite0"
    weights: str | None = "imagenet"
    method: Literal["feature_extraction", "fine_tuning", "from_scratch"] = "fine_tuning"
    recipe: Literal["logistic", "lp_ft", "sgd_step"] | None = None
    epochs: int = 6
    learning_rate: float | None = None
    resolution: int | Literal["auto"] | None = "auto"
    mirror: bool = False
    cut: float = 1.0
    around: Literal["centre", "crosshair"] = "centre"
    precision: Precision = "auto"
    batch_size: int = 32
    augment: bool = True
    seed: int = 0
    corrections: str | None = None

    def __post_init__(self) -> None:
        if self.method not in RECIPES:
            raise ValueError(f"method {self.method!r} is unknown; known are {', '.join(RECIPES)}.")
        recipes = RECIPES[self.method]
        if self.recipe not in (None, *recipes):
            raise ValueError(
                f"recipe {self.recipe!r} is none of {self.method}'s: {', '.join(recipes)} (None takes the first)."
            )
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision is {self.precision!r}, but must be 'auto', 'float32' or 'bfloat16'.")
        # Plain types only: a number of numpy's would be another one to JSON, and no checkpoint could be read again.
        for name in ("weights", "corrections"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        for name in ("mirror", "augment"):
            if getattr(self, name) not in (True, False):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be True or False.")
            object.__setattr__(self, name, bool(getattr(self, name)))
        whole = [("epochs", 1), ("batch_size", 1), ("seed", 0)]
        for name, least in whole if self.resolution in (None, "auto") else [*whole, ("resolution", 32)]:
            try:
                object.__setattr__(self, name, operator.index(getattr(self, name)))
            except TypeError as error:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be a whole number.") from error
            if not least <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}, and below 2**63.")
        if not isinstance(self.cut, int | float) or not 0.1 <= self.cut <= 1:
            raise ValueError(f"cut is {self.cut}, but must be from 0.1 to 1, a share of the photo's short side.")
        object.__setattr__(self, "cut", float(self.cut))
        if self.around not in ("centre", "crosshair"):
            raise ValueError(f"around is {self.around!r}, but must be 'centre' or 'crosshair'.")
        if self.cut == 1 and self.around == "crosshair":
            raise ValueError(
                "a cut of 1 takes the whole photo, wherever its crosshair is. Give a smaller cut, such as 0.7."
            )
        if self.learning_rate is not None:
            object.__setattr__(self, "learning_rate", float(self.learning_rate))
            if not 0 < self.learning_rate < math.inf:
                raise ValueError(f"learning_rate is {self.learning_rate}, but must be above 0.")

    def resolved(self) -> "Config":
        """The same config with nothing left open but the precision, which the machine decides, and what the network and
        the number of photos decide: the resolution and lp_ft's rate. Corrections are told by a digest of what they
        say."""
        recipe: Any = self.recipe or RECIPES[self.method][0]
        weights = None if self.method == "from_scratch" else self.weights
        rate = self.learning_rate or (SGD_RATE if recipe == "sgd_step" else None)
        resolution = None if self.resolution == "auto" and recipe != "logistic" else self.resolution
        corrections = None if self.corrections is None else _content_of(self.corrections)
        wanted: Any = self.precision if self.precision != "auto" else os.environ.get("CROPKIT_PRECISION") or "auto"
        return replace(
            self,
            recipe=recipe,
            weights=weights,
            learning_rate=rate,
            resolution=resolution,
            precision=wanted,
            corrections=corrections,
        )

    @property
    def name(self) -> str:
        """The name of the run's folder: readable, and another one for every config that does something else."""
        config = self.resolved()
        digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode()).hexdigest()[:8]
        return f"{config.method}-{config.recipe}-{config.arch.replace('/', '_')}-{digest}"


@dataclass(frozen=True)
class Run:
    """The result of an experiment.

    Attributes:
        folder: holds ``best.safetensors`` (see `load_model`), and the rest as files.
        config: what was asked for; `Config.resolved` fills in the rest.
        finished: False if it was interrupted; the same call goes on.
        history: one row an epoch as from `fit`, or one a value of C as from `fit_head`.
        metrics: ``val_accuracy``, ``val_loss``, ``test_accuracy``, ``test_loss`` of the best epoch's model.
        predictions: of val and test as from `predict`, with a column ``split``.
        seconds: at work, features included; without what was lost to a kill.

    Example:
        >>> run = run_experiment(Config("mobilenet_v3_small", None, "feature_extraction"), catalog, "runs")
        >>> run.predictions["split"].value_counts().to_dict()
        {'val': 4, 'test': 4}
    """

    folder: Path
    config: Config
    finished: bool
    history: pd.DataFrame
    metrics: dict[str, float]
    predictions: pd.DataFrame
    seconds: float


def run_experiment(config: Config, catalog: pd.DataFrame, out: str | os.PathLike[str], *, num_workers: int = 0) -> Run:
    """Train what a config says, in a folder of its own below `out`.

    Everything is made anew, so earlier cells have no effect. A finished run is returned as it is. One that was
    cut off goes on, and on the CPU, with the same versions and threads, it ends as if it had not been. Ctrl-C returns
    what there is so far; SIGTERM finishes the step, saves, and ends the process with status 75.

    Args:
        config: everything that changes the result.
        catalog: divided into train, val and test.
        out: a folder for runs; they share small copies and features in ``out/cache``.
        num_workers: processes that read photos; any number gives the same result.

    Returns:
        The run. Its folder holds ``config.json`` (config, data, environment, precision, threads), ``split.csv`` (which
        photo was used for what), ``metrics.jsonl``, ``best.safetensors``, ``predictions.csv``, and until it is finished
        ``last.safetensors``.

    Raises:
        ValueError: if the folder holds a run of other data or of another config; the differences are listed.
        BlockingIOError: if another process trains in it.
        OSError: if it cannot be written; found before the first epoch.

    Example:
        >>> run = run_experiment(Config("mobilenet_v3_small", None, "feature_extraction"), catalog, "runs")
        >>> run.finished, sorted(run.metrics)
        (True, ['test_accuracy', 'test_loss', 'val_accuracy', 'val_loss'])
    """
    folder = Path(out).expanduser() / config.name
    folder.mkdir(parents=True, exist_ok=True)
    # The system frees it when its process dies. `is_locked` holds it for a moment.
    lock = FileLock(folder / LOCK, timeout=1)
    try:
        if rank() == 0:
            lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"{folder}: another process trains in it. Wait for it, or change the config.") from error
    try:
        with torch.random.fork_rng():  # the caller's random numbers stay as they are
            return _run(config, catalog, folder, num_workers)
    finally:
        lock.release()


def is_locked(folder: str | os.PathLike[str]) -> bool:
    """Whether a process trains in a run's folder.

    Args:
        folder: the run's, as ``run.folder``.

    Returns:
        True from a run's start until it ends or its process dies, whichever started it: a cell, a shell, or `panel`.

    Example:
        >>> run = run_experiment(Config("mobilenet_v3_small", None, "feature_extraction"), catalog, "runs")
        >>> is_locked(run.folder)
        False
    """
    if not (file := Path(folder, LOCK)).exists():
        return False
    try:
        with FileLock(file, timeout=0.2):  # another look may hold it for a moment
            return False
    except Timeout:
        return True


def run_grid(
    config: Config, catalog: pd.DataFrame, out: str | os.PathLike[str], *, num_workers: int = 0, **values: Iterable[Any]
) -> list[Run]:
    """Run every combination of some fields' values; those that are finished cost nothing.

    Args:
        config: what all runs have in common.
        catalog: as for `run_experiment`.
        out: as for `run_experiment`.
        num_workers: as for `run_experiment`.
        **values: names of `Config`'s fields, and the values that each takes.

    Returns:
        The runs, the last field varying fastest. After Ctrl-C the last one is unfinished, and the rest is missing; the
        same call goes on.

    Raises:
        ValueError: if a field cannot be what it is, or its values are not listed; before anything is trained.

    Example:
        >>> config = Config("mobilenet_v3_small", None, "feature_extraction")
        >>> [run.config.seed for run in run_grid(config, catalog, "runs", seed=range(3))]
        [0, 1, 2]
    """
    for name, each in values.items():
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise ValueError(f"{name} is {each!r}, but a grid needs a list of values: {name}=[{each!r}].")
    configs = [replace(config, **dict(zip(values, one, strict=True))) for one in itertools.product(*values.values())]
    runs = []
    for one in configs:  # all of them exist by now: a field that cannot be is found before the first has trained
        runs.append(run_experiment(one, catalog, out, num_workers=num_workers))
        if not runs[-1].finished:
            break
    return runs


def read_runs(out: str | os.PathLike[str]) -> list[Run]:
    """The runs below a folder, by name; nothing is trained.

    Args:
        out: the folder for runs.

    Returns:
        All of them, those that were interrupted too.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a folder there holds something else, or is damaged.

    Example:
        >>> config = Config("mobilenet_v3_small", None, "feature_extraction")
        >>> run = run_experiment(config, catalog, "runs")
        >>> run.folder in [known.folder for known in read_runs("runs")]
        True
    """
    folders = [path.parent for path in sorted(Path(out).expanduser().glob(f"*/{RECORD}"))]
    if not folders:
        raise FileNotFoundError(f"{out}: holds no run. run_experiment(config, catalog, {str(out)!r}) makes one.")
    return [read_run(folder) for folder in folders]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """The run of a folder, as far as it has come; nothing is trained.

    Args:
        folder: the run's, as ``run.folder``.

    Returns:
        The run.

    Raises:
        ValueError: if the folder holds something else, or is damaged.

    Example:
        >>> run = run_experiment(Config("mobilenet_v3_small", None, "feature_extraction"), catalog, "runs")
        >>> read_run(run.folder).metrics == run.metrics
        True
    """
    folder = Path(folder)
    record: Any = _read_record(folder)
    try:
        return _read(folder, Config(**record["config"]), record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder}: is no run of this version ({error!r}). Move it elsewhere.") from error


def compare_runs(out: str | os.PathLike[str]) -> pd.DataFrame:
    """What the runs below a folder reached, the best on val first; `plots.comparison` draws it.

    Choose by val, and look at test once, when the choice is made.

    Args:
        out: the folder for runs.

    Returns:
        One row a run, named as its folder: ``method`` and the other fields of `Config` in which the runs differ,
        ``val_accuracy``, ``test_accuracy``, ``low`` and ``high`` (the test's 95 % `bootstrap_interval`),
        ``weighted_precision`` and ``lowest_f1`` of the test, ``seconds``. An unfinished run has NaN.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if they saw different photos, or a folder there holds something else.

    Example:
        >>> config = Config("mobilenet_v3_small", None, "feature_extraction")
        >>> runs = run_grid(config, catalog, "runs", seed=range(3))
        >>> list(compare_runs("runs").columns)
        ['method', 'seed', 'val_accuracy', 'test_accuracy', 'low', 'high', 'weighted_precision', 'lowest_f1', 'seconds']
    """
    rows: list[dict[str, Any]] = []
    runs: list[tuple[Run, Any]] = [(run, _read_record(run.folder)) for run in read_runs(out)]
    first, seen = runs[0][0].folder.name, runs[0][1]["data"]
    for run, record in runs:
        if record["data"] != seen:
            raise ValueError(
                f"{out}: {run.folder.name} saw other photos, or another split, than {first}, so they cannot be "
                "compared. Give each collection of photos a folder of its own for runs."
            )
        test = run.predictions[run.predictions["split"] == "test"]
        low, high = bootstrap_interval(test[["target", "predicted"]]) if len(test) else (math.nan, math.nan)
        scores = {name: run.metrics.get(name, math.nan) for name in ("val_accuracy", "test_accuracy")}
        rows.append(
            {
                "run": run.folder.name,
                **{field.name: record["resolved"].get(field.name) for field in fields(Config)},
                **scores,
                "low": low,
                "high": high,
                "weighted_precision": weighted_precision(test) if len(test) else math.nan,
                "lowest_f1": lowest_f1(test) if len(test) else math.nan,
                "seconds": run.seconds,
            }
        )
    table = pd.DataFrame(rows).set_index("run")
    if table["corrections"].nunique(dropna=False) > 1:
        print("val was corrected differently, so val accuracies are of other labels; test has the same ones")
    same = [f.name for f in fields(Config) if f.name != "method" and table[f.name].nunique(dropna=False) == 1]
    return table.drop(columns=same).sort_values("val_accuracy", ascending=False, kind="stable")


def _run(config: Config, catalog: pd.DataFrame, folder: Path, num_workers: int) -> Run:
    catalog = good_photos(catalog).sort_values("path")  # the order of the rows must not matter
    names = class_names(catalog)
    asked, config = config, config.resolved()
    if twice := catalog.loc[catalog["path"].duplicated(), "path"].tolist():
        raise ValueError(f"{twice[0]} is in the catalog twice. Scan one folder that holds all photos.")
    record: dict[str, Any] = {"resolved": asdict(config), "classes": names, "data": _describe(catalog)}
    if asked.corrections is not None:
        corrected, tested = correct(catalog, asked.corrections), catalog["split"] == "test"
        corrected[tested] = catalog[tested]
        catalog = good_photos(corrected)
        check_split(catalog)
    if config.around == "crosshair":
        if missing := [column for column in ("target_x", "target_y") if column not in catalog]:
            raise ValueError(
                f"the catalog has no column {' and no '.join(missing)}, so nobody knows where the crosshairs are. Give "
                "their table: prepare(root, metadata=...)."
            )
        record["crosshairs"] = _digest_of(catalog[["path", "target_x", "target_y"]])
    if config.weights not in (None, "imagenet"):
        record["weights_file"] = file_hash(str(config.weights))
    begun = from_first(lambda: _read_record(folder))
    if begun is not None:
        _refuse_others(folder, begun, record)
    if rank() == 0:  # also of a finished run, whose photos may have moved
        roots = catalog["root"].map(lambda root: str(Path(root).expanduser().resolve()))
        replace_text(folder / SPLIT, catalog.assign(root=roots)[SPLIT_COLUMNS].to_csv(index=False))
    if begun is not None and begun["finished"]:
        return _read(folder, asked, begun)
    checkpoint = Checkpoint(folder, names, seconds=0.0 if begun is None else begun["seconds"])
    if begun is None:
        checkpoint.forget_last()  # its origin is unknown
    threads = torch.get_num_threads()
    try:
        with _stopping_on_sigterm(checkpoint):
            record = _train_and_test(config, catalog, folder, num_workers, record, begun, checkpoint, asked)
            return _read(folder, asked, record)
    except KeyboardInterrupt:
        return _read(folder, asked, {"finished": False})
    finally:
        torch.set_num_threads(threads)


def _train_and_test(
    config: Config,
    catalog: pd.DataFrame,
    folder: Path,
    num_workers: int,
    record: dict[str, Any],
    begun: dict[str, Any] | None,
    checkpoint: Checkpoint,
    asked: Config,
) -> dict[str, Any]:
    """Train from the beginning, or from where it was cut off, to the end."""
    if (
        begun is not None and begun["environment"]["processes"] == ranks()
    ):  # another number would add up in another order
        torch.set_num_threads(begun["environment"]["threads"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = _create(config, len(checkpoint.class_names)).to(device)
    record |= {"starting_weights": _digest(model), "preprocessing": preprocessing_of(model)}
    if begun is not None:
        _refuse_others(folder, begun, record)
        record = begun
        if (here := _environment(device)) != begun["environment"]:
            record.setdefault("resumed_in", []).append(here)
    else:
        training = config.precision if config.recipe != "sgd_step" else "float32"
        precision = {
            "features": resolve_precision(config.precision, model, training=False),
            "training": resolve_precision(training, model, training=True),
        }
        record |= {
            "config": asdict(asked),
            "environment": _environment(device),
            "precision": precision,
            "finished": False,
            "seconds": 0.0,
        }
    _write_json(folder / RECORD, record)
    cache = folder.parent / "cache"
    loaders = make_loaders(
        catalog,
        model,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augment,
        num_workers=num_workers,
        cache=cache,
    )
    try:
        history = _train(config, model, loaders, cache, checkpoint, record["precision"])
        # Not "<": an interrupted training may have no row yet, and the largest of none is NaN.
        if config.recipe != "logistic" and not history["epoch"].max() >= config.epochs:
            raise KeyboardInterrupt
    except (KeyboardInterrupt, SystemExit):
        _write_json(folder / RECORD, record | {"seconds": checkpoint.seconds})
        raise
    if rank() == 0:
        write_lines(folder / METRICS, history.to_dict("records"))
    kept = cache if config.method == "feature_extraction" else None
    tables = [
        predict(model, loaders[split], cache=kept).assign(split=split) for split in ("val", "test") if split in loaders
    ]
    predictions = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=PREDICTED)
    record["metrics"] = _metrics(predictions)
    if config.method == "feature_extraction":
        checkpoint.save_best(model, record["metrics"])
    if rank() == 0:
        replace_text(folder / PREDICTIONS, predictions.drop(columns="root", errors="ignore").to_csv(index=False))
    record |= {"finished": True, "seconds": checkpoint.seconds}
    _write_json(folder / RECORD, record)
    checkpoint.forget_last()
    wait_for_all()  # what is read now, the first process has written
    return record


def _create(config: Config, num_classes: int) -> nn.Module:
    """The model of a config, its head made for so many classes, at the resolution that the config asks for."""

    def create(resolution: int | None) -> nn.Module:
        torch.manual_seed(config.seed)
        model = create_model(config.arch, num_classes=num_classes, weights=config.weights, resolution=resolution)
        if config.cut < 1:
            model.__dict__["preprocessing"] = preprocessing_of(model) | {"cut": config.cut, "around": config.around}
        return model

    if config.resolution != "auto":
        return create(config.resolution)
    own = preprocessing_of(create_model(config.arch, weights=None))["crop_size"]
    try:
        return create(round(own * LARGER))
    except ValueError:  # a network for pictures of one size; any other error comes again
        return create(None)


def _train(
    config: Config,
    model: nn.Module,
    loaders: dict[str, DataLoader],
    cache: Path,
    checkpoint: Checkpoint,
    precision: dict[str, str],
) -> pd.DataFrame:
    rate = config.learning_rate
    if config.method != "feature_extraction":
        return fine_tune(
            model,
            loaders,
            epochs=config.epochs,
            recipe=config.recipe or "",
            cache=cache,
            learning_rate=rate,
            mirror=config.mirror,
            precision=precision["training"],
            feature_precision=precision["features"],
            checkpoint=checkpoint,
        )
    freeze_backbone(model)
    precise = precision["features"]
    features = features_for_head(model, loaders, cache=cache, precision=precise, mirror=config.mirror)
    if config.recipe == "logistic":
        return fit_head(model, features)
    # A matter of seconds, so nothing is saved meanwhile.
    device = next(model.parameters()).device
    head = get_classifier(model)[1]
    if ranks() == 1:  # so small that a CPU is faster
        head = head.cpu()
    on_features: dict[str, DataLoader] = {}
    for split, data in features.items():  # each its own numbers, so that an evaluation does not change the order
        order = torch.Generator().manual_seed(config.seed)
        training = split == "train"
        rows = data if training else data.one_a_photo()
        on_features[split] = DataLoader(rows, config.batch_size, shuffle=training, generator=order)
    history = fit_sgd_step(head, on_features, epochs=config.epochs, learning_rate=rate or SGD_RATE)
    model.to(device)
    features["train"].tell(model)
    return history


def _metrics(predictions: pd.DataFrame) -> dict[str, float]:
    metrics = {}
    for part, rows in predictions.groupby("split") if len(predictions) else ():
        metrics[f"{part}_accuracy"] = float((rows["target"] == rows["predicted"]).mean())
        metrics[f"{part}_loss"] = float(rows["loss"].mean())
    return metrics


def _describe(catalog: pd.DataFrame) -> dict[str, Any]:
    """The photos of a catalog in a few lines: how many, and a hash of which."""
    photos = catalog.sort_values("path")
    counts = {str(part): int(count) for part, count in photos["split"].value_counts().sort_index().items()}
    return {"photos": counts, "sha256": _digest_of(photos[["path", "label", "split", "sha256"]])}


def _content_of(corrections: str) -> str:
    """What a file of corrections says, in a few letters: who decided when does not matter."""
    return _digest_of(read_corrections(corrections).drop(columns="when").sort_values("path"))[:16]


def _digest_of(table: pd.DataFrame) -> str:
    return hashlib.sha256(table.to_csv(index=False).encode("utf-8", "surrogateescape")).hexdigest()


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _environment(device: str) -> dict[str, Any]:
    packages = ("cropkit", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "processes": ranks(),
    }


def _refuse_others(folder: Path, begun: dict[str, Any], record: dict[str, Any]) -> None:
    """Raise if a folder holds another run than the one that is asked for."""
    differences = []
    for part, now in record.items():
        then = begun.get(part)
        if isinstance(now, dict) and isinstance(then, dict):
            differences += [f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in now if then.get(k) != now.get(k)]
        elif now != then:
            differences.append(f"{part}: {then!r} then, {now!r} now")
    if differences:
        raise ValueError(
            f"{folder}: holds a run of something else ({'; '.join(differences)}). Name another folder for runs, or "
            "remove this one."
        )


def _read_record(folder: Path) -> dict[str, Any] | None:
    if not (folder / RECORD).exists():
        return None
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / RECORD}: is damaged ({error}). Remove {folder} and run again.") from error


def _read(folder: Path, config: Config, record: dict[str, Any]) -> Run:
    """The run as its files have it; one that was interrupted has no predictions yet."""
    lines = (folder / METRICS).read_text().splitlines() if (folder / METRICS).exists() else []
    history = pd.DataFrame([json.loads(line) for line in lines])
    for column in history.columns.intersection(HISTORY[1:]):
        history[column] = history[column].astype(float)  # null is NaN
    if not record["finished"]:
        return Run(folder, config, False, history, {}, pd.DataFrame(columns=PREDICTED), math.nan)
    if not (folder / PREDICTIONS).exists():
        raise ValueError(f"{folder}: its {PREDICTIONS} is gone. Remove the folder and run again.")
    names = dict.fromkeys(("path", "target", "predicted", "split"), str)  # a class may be called "NA" or "007"
    predictions = pd.read_csv(
        folder / PREDICTIONS, dtype=names, keep_default_na=False, encoding_errors="surrogateescape"
    )
    numbers = [column for column in predictions if column not in names]
    predictions[numbers] = predictions[numbers].apply(pd.to_numeric, errors="coerce")  # empty is NaN
    predictions["root"] = predictions["path"].map(_read_split(folder).drop_duplicates("path").set_index("path")["root"])
    return Run(folder, config, True, history, record["metrics"], predictions, record["seconds"])


def _read_split(folder: Path) -> pd.DataFrame:
    """Which photo a run used for what: ``path``, ``label``, ``split``, ``sha256``, ``phash``, ``dhash``, ``root``."""
    if not (folder / SPLIT).exists():
        raise ValueError(f"{folder}: its {SPLIT} is gone, so nobody knows which photos it learned from.")
    return pd.read_csv(folder / SPLIT, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    if rank() == 0:
        replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _stopping_on_sigterm(checkpoint: Checkpoint) -> Iterator[None]:
    """On SIGTERM let the step finish and be saved; Python delivers signals only to the main thread."""

    def stop(*_: object) -> None:
        if not checkpoint.running:  # no epoch is going on; features are kept as they come
            raise SystemExit(STOPPED)
        checkpoint.stop = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def predict_unseen(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    split: str = "test",
    *,
    metadata: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """What a run's model says about the labelled photos of a folder that it has not learned from.

    Where the folder holds photos of the run, those that the run put into `split` count. Where it holds none of them,
    all its photos count (of its own `split`, if it has one), but for those whose picture the run trained on or chose
    by.

    Args:
        model: the run's folder, or a model file that lies in it.
        data: the folder, as `scan` understands it.
        split: ``"test"``, ``"val"`` or ``"train"``; ``"all"`` takes every photo, whatever the model has seen.
        metadata: a table of more facts about the photos, see `scan`; a model that looks round the crosshair needs it.

    Returns:
        As from `predict`.

    Raises:
        ValueError: if no photo is left to count, or it is not known what the model learned from.

    Example:
        >>> run = run_experiment(Config("mobilenet_v3_small", None, "feature_extraction"), catalog, "runs")
        >>> len(predict_unseen(run.folder, "photos"))
        4 photos are the run's own test photos; 17 others do not count
        4
    """
    model = Path(model)
    folder = model if model.is_dir() else model.parent
    trained = load_model(model)
    catalog = from_first(lambda: _photos_to_count(folder, good_photos(scan(data, metadata=metadata)), split))
    if catalog.empty:
        raise ValueError(f"{data}: has no {split} photos that the model of {folder} has not seen.")
    trained = trained.to("cuda" if torch.cuda.is_available() else "cpu")
    dataset = CropDataset(catalog, list(trained.class_names), preprocessing_of(trained))  # type: ignore[arg-type]
    return predict(trained, DataLoader(dataset, batch_size=32))


def _photos_to_count(folder: Path, catalog: pd.DataFrame, split: str) -> pd.DataFrame:
    if split == "all":
        return catalog
    # Where bytes are there twice, having been learned from counts.
    known = _read_split(folder).sort_values("split", key=lambda split: split != "train", kind="stable")
    used = catalog["sha256"].map(known.drop_duplicates("sha256").set_index("sha256")["split"]).fillna("")
    if (used == split).any():
        counted = catalog[used == split]
        print(
            f"{len(counted)} photos are the run's own {split} photos; {len(catalog) - len(counted)} others do not count"
        )
        return counted
    if (catalog["split"] != "").any():
        catalog = catalog[catalog["split"] == split]
    # Other photos: without those whose picture the run has learned from or chosen by.
    seen = known[(known["split"] != "test") & (known["split"] != "")].assign(split="test", problem="")
    seen["path"] = [str(Path(root) / path) for root, path in zip(seen["root"], seen["path"], strict=True)]
    there = [Path(path).exists() for path in seen["path"]]
    if not all(there):
        print(f"{there.count(False)} photos that the model has seen are gone: only equal bytes can be recognised")
    seen = seen[there]
    mixed = pd.concat([catalog.assign(split="train"), seen], ignore_index=True)
    _, left_out = drop_leaks(mixed)
    gone = set(left_out["path"]) | set(catalog.loc[used.reindex(catalog.index) != "", "path"])
    counted = catalog[~catalog["path"].isin(gone)].reset_index(drop=True)
    print(f"{len(catalog) - len(counted)} photos do not count: the model has seen their picture, or two labels have it")
    return counted
