"""Experiments: one config, one folder, one result that can be had again."""

import hashlib
import itertools
import json
import math
import operator
import os
import platform
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from cropkit.cache import file_hash
from cropkit.catalog import class_names, good_photos
from cropkit.checkpoints import METRICS, STOPPED, Checkpoint, save_whole, write_lines
from cropkit.datasets import make_loaders
from cropkit.distributed import from_first, rank, ranks, wait_for_all
from cropkit.features import extract_features, feature_precision, fit_head
from cropkit.interpret import bootstrap_interval
from cropkit.models import create_model, freeze_backbone, get_classifier
from cropkit.training import DIARY_RATE, fine_tune, fit, predict, training_precision

# The recipes of each method, the default first.
RECIPES = {
    "feature_extraction": ("logistic", "diary"),
    "fine_tuning": ("lp_ft", "diary"),
    "from_scratch": ("diary",),
}
RECORD, PREDICTIONS = "config.json", "predictions.csv"
PREDICTED = ["path", "target", "predicted", "probability", "loss", "split"]


@dataclass(frozen=True)
class Config:
    """Everything that changes a result, beside the photos.

    Attributes:
        arch: a name that `create_model` knows.
        weights: "imagenet", None, or the path of a checkpoint of one's own; None where the method is from_scratch.
        method: "feature_extraction" (only a new head learns), "fine_tuning" (everything learns), or "from_scratch".
        recipe: "logistic" or "diary" for feature_extraction, "lp_ft" or "diary" for fine_tuning, "diary" from scratch;
            the first of them unless given.
        epochs: passes over the training photos, >= 1; of no meaning to "logistic".
        learning_rate: the recipe's own unless given; see `fine_tune`.
        batch_size: photos a batch.
        augment: vary the training photos at random; features are always those of the photos as they are.
        seed: >= 0; decides the new head, the order of the photos and how they are varied.

    Raises:
        ValueError: if a field cannot be what it is.
    """

    arch: str = "efficientnet_lite0"
    weights: str | None = "imagenet"
    method: Literal["feature_extraction", "fine_tuning", "from_scratch"] = "fine_tuning"
    recipe: Literal["logistic", "lp_ft", "diary"] | None = None
    epochs: int = 6
    learning_rate: float | None = None
    batch_size: int = 32
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in RECIPES:
            raise ValueError(f"method {self.method!r} is unknown; known are {', '.join(RECIPES)}.")
        recipes = RECIPES[self.method]
        if self.recipe is None:
            object.__setattr__(self, "recipe", recipes[0])
        if self.recipe not in recipes:
            raise ValueError(
                f"recipe {self.recipe!r} is none of {self.method}'s: {', '.join(recipes)} (None takes the first)."
            )
        if self.method == "from_scratch":
            object.__setattr__(self, "weights", None)
        # Plain types only: a number of numpy's would be another one to JSON, and no checkpoint could be read again.
        if self.weights is not None:
            object.__setattr__(self, "weights", os.fspath(self.weights))
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            try:
                object.__setattr__(self, name, operator.index(getattr(self, name)))
            except TypeError as error:
                raise ValueError(f"{name} is {getattr(self, name)!r}, but must be a whole number.") from error
            if not least <= getattr(self, name) < 2**63:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least {least}, and below 2**63.")
        if self.learning_rate is not None:
            object.__setattr__(self, "learning_rate", float(self.learning_rate))
            if not 0 < self.learning_rate < math.inf:
                raise ValueError(f"learning_rate is {self.learning_rate}, but must be above 0.")

    @property
    def name(self) -> str:
        """The name of the run's folder: readable, and another one for every other config."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.method}-{self.recipe}-{self.arch.replace('/', '_')}-{digest}"


@dataclass(frozen=True)
class Run:
    """What an experiment left.

    Attributes:
        folder: holds ``best.safetensors`` (see `load_model`), and the rest as files.
        config: what was asked for.
        finished: False if it was interrupted; the same call goes on.
        history: one row an epoch as from `fit`, or one a strength as from `fit_head`.
        metrics: ``val_accuracy``, ``val_loss``, ``test_accuracy``, ``test_loss`` of the best epoch's model.
        predictions: of val and test as from `predict`, with a column ``split``.
        seconds: at work, features included; without what was lost to a kill.
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

    Everything is made anew, so nothing of an earlier cell gets in. A finished run is returned as it is. One that was
    cut off goes on, and on the CPU, with the same versions and threads, it ends as if it had not been. Ctrl-C returns
    what there is so far; SIGTERM finishes the step, saves, and ends the process with status 75.

    Args:
        config: everything that changes the result.
        catalog: divided into train, val and test.
        out: a folder for runs; they share small copies and features in ``out/cache``.
        num_workers: processes that read photos; any number gives the same result.

    Returns:
        The run. Its folder holds ``config.json`` (config, data, environment, precision, threads), ``metrics.jsonl``,
        ``best.safetensors``, ``predictions.csv``, and until it is finished ``last.pt``.

    Raises:
        ValueError: if the folder holds a run of other data or of another config; the differences are listed.
        BlockingIOError: if another process trains in it.
        OSError: if it cannot be written; found before the first epoch.
    """
    folder = Path(out).expanduser() / config.name
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)  # the system frees it when its process dies
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


def run_grid(
    config: Config, catalog: pd.DataFrame, out: str | os.PathLike[str], *, num_workers: int = 0, **values: Iterable[Any]
) -> list[Run]:
    """Run every combination of some fields' values; those that are finished cost nothing.

    ``run_grid(Config(epochs=3), catalog, out, method=["feature_extraction", "fine_tuning"], seed=range(3))`` makes six.

    Args:
        config: what all runs have in common. Where the method is among the fields, each has its default recipe.
        catalog: as for `run_experiment`.
        out: as for `run_experiment`.
        num_workers: as for `run_experiment`.
        **values: names of `Config`'s fields, and the values that each takes.

    Returns:
        The runs, the last field varying fastest. After Ctrl-C the last one is unfinished, and the rest is missing; the
        same call goes on.

    Raises:
        ValueError: if a field cannot be what it is, or its values are not listed; before anything is trained.
    """
    for name, each in values.items():
        if isinstance(each, str) or not isinstance(each, Iterable):
            raise ValueError(f"{name} is {each!r}, but a grid needs a list of values: {name}=[{each!r}].")
    if "method" in values:  # these two follow from a method, so the first one's must not stay for the others
        values = {"recipe": [None], **values}
        if config.method == "from_scratch":
            values = {"weights": [Config.weights], **values}
    configs = [replace(config, **dict(zip(values, one, strict=True))) for one in itertools.product(*values.values())]
    runs = []
    for one in configs:  # all of them exist by now: a field that cannot be is found before the first has trained
        runs.append(run_experiment(one, catalog, out, num_workers=num_workers))
        if not runs[-1].finished:
            break
    return runs


def read_runs(out: str | os.PathLike[str]) -> list[Run]:
    """The runs below a folder, by name; nothing is trained.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a folder there holds something else, or is damaged.
    """
    return [run for run, _ in _read_all(out)]


def _read_all(out: str | os.PathLike[str]) -> list[tuple[Run, dict[str, Any]]]:
    """The runs below a folder, each with its record."""
    folders = [path.parent for path in sorted(Path(out).expanduser().glob(f"*/{RECORD}"))]
    if not folders:
        raise FileNotFoundError(f"{out}: holds no run. run_experiment(config, catalog, {str(out)!r}) makes one.")
    runs = []
    for folder in folders:
        record: Any = _read_record(folder)
        try:
            runs.append((_read(folder, Config(**record["config"]), record), record))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder}: is no run of this version ({error!r}). Move it elsewhere.") from error
    return runs


def compare_runs(out: str | os.PathLike[str]) -> pd.DataFrame:
    """What the runs below a folder reached, the best on val first; `plots.comparison` draws it.

    Choose by val, and look at test once, when the choice is made.

    Returns:
        One row a run, named as its folder: ``method`` and the other fields of `Config` in which the runs differ,
        ``val_accuracy``, ``test_accuracy``, ``low`` and ``high`` (the test's 95 % `bootstrap_interval`), ``seconds``.
        An unfinished run has NaN.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if they saw different photos, or a folder there holds something else.
    """
    rows, runs = [], _read_all(out)
    first, seen = runs[0][0].folder.name, runs[0][1]["data"]
    for run, record in runs:
        if record["data"] != seen:
            raise ValueError(
                f"{out}: {run.folder.name} saw other photos, or other parts of them, than {first}, so they cannot be "
                "compared. Give each collection of photos a folder of its own for runs."
            )
        test = run.predictions[run.predictions["split"] == "test"]
        low, high = bootstrap_interval(test[["target", "predicted"]]) if len(test) else (math.nan, math.nan)
        scores = {name: run.metrics.get(name, math.nan) for name in ("val_accuracy", "test_accuracy")}
        rows.append(
            {"run": run.folder.name, **asdict(run.config), **scores, "low": low, "high": high, "seconds": run.seconds}
        )
    table = pd.DataFrame(rows).set_index("run")
    same = [f.name for f in fields(Config) if f.name != "method" and table[f.name].nunique(dropna=False) == 1]
    return table.drop(columns=same).sort_values("val_accuracy", ascending=False, kind="stable")


def _run(config: Config, catalog: pd.DataFrame, folder: Path, num_workers: int) -> Run:
    catalog = catalog.sort_values("path")  # the order of the rows must not matter
    names = class_names(catalog)
    record: dict[str, Any] = {"config": asdict(config), "classes": names, "data": _describe(catalog)}
    if config.weights not in (None, "imagenet"):
        record["weights_file"] = file_hash(str(config.weights))
    begun, checkpoint = from_first(lambda: _read_record(folder)), Checkpoint(folder, names)
    if begun is not None:
        _refuse_others(folder, begun, record)
        if begun["finished"]:
            if begun["root"] != (root := _root(catalog)):  # the photos have moved
                begun["root"] = root
                _write_json(folder / RECORD, begun)
            return _read(folder, config, begun)
    else:
        checkpoint.forget_last()  # nobody knows of what it is
    threads = torch.get_num_threads()
    try:
        with _stopping_on_sigterm(checkpoint):
            return _go_on(config, catalog, folder, num_workers, record, begun, checkpoint)
    except KeyboardInterrupt:
        return _read(folder, config, {"finished": False})
    finally:
        torch.set_num_threads(threads)


def _go_on(
    config: Config,
    catalog: pd.DataFrame,
    folder: Path,
    num_workers: int,
    record: dict[str, Any],
    begun: dict[str, Any] | None,
    checkpoint: Checkpoint,
) -> Run:
    """Train from the beginning, or from where it was cut off, to the end."""
    start = time.perf_counter()
    if begun is not None and begun["environment"]["processes"] == ranks():  # others would add up in another order
        torch.set_num_threads(begun["environment"]["threads"])
    names = checkpoint.class_names
    torch.manual_seed(config.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = create_model(config.arch, num_classes=len(names), weights=config.weights).to(device)
    record["starting_weights"] = _digest(model)
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
    if begun is not None:
        _refuse_others(folder, begun, record)
        record = begun
        if (here := _environment(device)) != begun["environment"]:
            record.setdefault("gone_on_in", []).append(here)
    else:
        environment = _environment(device)
        chosen = from_first(lambda: _chosen_before(config, environment, folder.parent))
        chosen = chosen or _choose(config, model, loaders)
        record |= {"environment": environment, "precision": chosen, "finished": False}
    record["root"] = _root(catalog)
    _write_json(folder / RECORD, record)
    history = _train(config, model, loaders, cache, checkpoint, record["precision"])
    if rank() == 0:
        write_lines(folder / METRICS, history.to_dict("records"))
    before = record.get("seconds", 0.0)
    if history.attrs.get("interrupted"):
        _write_json(folder / RECORD, record | {"seconds": before + time.perf_counter() - start})
        raise KeyboardInterrupt
    parts = [predict(model, loaders[part]).assign(split=part) for part in ("val", "test") if part in loaders]
    predictions = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=PREDICTED)
    record["metrics"] = _metrics(predictions)
    if config.method == "feature_extraction":
        checkpoint.save_best(model, record["metrics"])
    if rank() == 0:
        save_whole(folder / PREDICTIONS, predictions.to_csv(index=False))
    record |= {"finished": True, "seconds": before + time.perf_counter() - start}
    _write_json(folder / RECORD, record)
    checkpoint.forget_last()
    wait_for_all()  # what is read now, the first process has written
    return _read(folder, config, record)


def _train(
    config: Config,
    model: nn.Module,
    loaders: dict[str, DataLoader],
    cache: Path,
    checkpoint: Checkpoint,
    precision: dict[str, str],
) -> pd.DataFrame:
    dtype = {use: getattr(torch, name) for use, name in precision.items()}
    if config.method != "feature_extraction":
        return fine_tune(
            model,
            loaders,
            epochs=config.epochs,
            recipe=config.recipe or "",
            cache=cache,
            learning_rate=config.learning_rate,
            precision=dtype["training"],
            feature_precision=dtype["features"],
            checkpoint=checkpoint,
        )
    freeze_backbone(model)
    parts = [part for part in loaders if part != "test"]
    features = {p: extract_features(model, loaders[p], cache=cache, precision=dtype["features"]) for p in parts}
    if config.recipe == "logistic":
        return fit_head(model, features)
    return _fit_head_by_diary(config, model, features)


def _fit_head_by_diary(config: Config, model: nn.Module, features: dict[str, TensorDataset]) -> pd.DataFrame:
    """The diary's SGD on features; a matter of seconds, so that nothing need be saved meanwhile."""
    device = next(model.parameters()).device
    head = get_classifier(model)[1].cpu()
    loaders = {}
    for part, data in features.items():  # each its own numbers, so that an evaluation does not change the order
        order = torch.Generator().manual_seed(config.seed)
        loaders[part] = DataLoader(data, config.batch_size, shuffle=part == "train", generator=order)
    optimizer = optim.SGD(head.parameters(), lr=config.learning_rate or DIARY_RATE, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    history = fit(head, loaders, optimizer, scheduler=scheduler, epochs=config.epochs)
    model.to(device)
    return history


def _chosen_before(config: Config, environment: dict[str, Any], out: Path) -> dict[str, str] | None:
    """The precision of an earlier run of this kind, so that all seeds are computed alike, whatever a probe says."""
    alike = ("arch", "method", "recipe", "batch_size")
    for path in sorted(out.glob(f"*/{RECORD}")):
        record: Any = _read_record(path.parent)
        here = isinstance(record, dict) and record.get("environment") == environment
        if here and all(record["config"][name] == getattr(config, name) for name in alike):
            return record["precision"]
    return None


def _choose(config: Config, model: nn.Module, loaders: dict[str, DataLoader]) -> dict[str, str]:
    """The precision for each use, tried once and then read from the record."""
    chosen = {"features": torch.float32, "training": torch.float32}
    if config.recipe == "lp_ft":
        chosen["training"] = training_precision(model, loaders["train"])
    if config.recipe == "lp_ft" or config.method == "feature_extraction":
        chosen["features"] = feature_precision(model, loaders["train"])
    return {use: str(dtype).removeprefix("torch.") for use, dtype in chosen.items()}


def _metrics(predictions: pd.DataFrame) -> dict[str, float]:
    metrics = {}
    for part, rows in predictions.groupby("split") if len(predictions) else ():
        metrics[f"{part}_accuracy"] = float((rows["target"] == rows["predicted"]).mean())
        metrics[f"{part}_loss"] = float(rows["loss"].mean())
    return metrics


def _describe(catalog: pd.DataFrame) -> dict[str, Any]:
    """The photos of a catalog in a few lines: how many, and a hash of which."""
    photos = good_photos(catalog).sort_values("path")
    rows = photos[["path", "label", "split", "sha256"]].to_csv(index=False)
    counts = {str(part): int(count) for part, count in photos["split"].value_counts().sort_index().items()}
    return {"photos": counts, "sha256": hashlib.sha256(rows.encode()).hexdigest()}


def _root(catalog: pd.DataFrame) -> str:
    return str(Path(catalog.attrs["root"]).expanduser().resolve())


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
    for column in ("val_loss", "val_accuracy"):
        if column in history:
            history[column] = history[column].astype(float)  # null is NaN
    if not record["finished"]:
        return Run(folder, config, False, history, {}, pd.DataFrame(columns=PREDICTED), math.nan)
    if not (folder / PREDICTIONS).exists():
        raise ValueError(f"{folder}: its {PREDICTIONS} is gone. Remove the folder and run again.")
    names = dict.fromkeys(("path", "target", "predicted", "split"), str)  # a class may be called "NA" or "007"
    predictions = pd.read_csv(folder / PREDICTIONS, dtype=names, keep_default_na=False)
    numbers = [column for column in predictions if column not in names]
    predictions[numbers] = predictions[numbers].apply(pd.to_numeric, errors="coerce")  # empty is NaN
    predictions.attrs["root"] = record["root"]
    return Run(folder, config, True, history, record["metrics"], predictions, record["seconds"])


def _write_json(path: Path, content: dict[str, Any]) -> None:
    if rank() == 0:
        save_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _stopping_on_sigterm(checkpoint: Checkpoint) -> Iterator[None]:
    """On SIGTERM let the step finish and be saved; only the main thread can be told."""

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
