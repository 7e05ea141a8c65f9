"""Checkpoints: enough to predict with, or to go on from where a training was cut off."""

import hashlib
import io
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from cropkit.data.datasets import EpochSampler, preprocessing_of
from cropkit.data.files import DamagedCheckpoint, previous_of, read_sealed, replace_file, replace_text, seal
from cropkit.models.surgery import check_head, create_model
from cropkit.training.inference import mirrors
from cropkit.training.precision import precision_of
from cropkit.training.processes import copy_buffers_from_first, rank, total, wait_for_all

EVERY = 300.0  # seconds between two savings within an epoch
STOPPED = 75  # the exit status after SIGTERM: "try again later" in sysexits.h
METRICS = "metrics.jsonl"
BEST = "best.safetensors"


def save_model(
    model: nn.Module, path: str | os.PathLike[str], class_names: Sequence[str], metrics: dict[str, float] | None = None
) -> None:
    """Save a model with all that is needed to predict with it, as safetensors.

    Args:
        model: from `create_model`.
        path: the file, such as ``best.safetensors``.
        class_names: a class's index is its place in this list.
        metrics: what is known of its quality, kept with it.

    Raises:
        HeadMismatch: if the model's outputs are not these classes.
        ValueError: if the model does not say what it is.
        OSError: if the disk is full or the folder cannot be written.

    Example:
        >>> model = create_model("mobilenet_v3_small", num_classes=2, weights=None)
        >>> save_model(model, "mine.safetensors", ["apple", "pear"])
    """
    check_head(model, class_names)
    arch = model.__dict__.get("arch")
    if arch is None:
        raise ValueError(f"{type(model).__name__} does not say what it is. Make it with create_model.")
    about = {
        "arch": arch,
        "preprocessing": preprocessing_of(model),
        "class_names": list(class_names),
        "precision": precision_of(model),
        "mirror": mirrors(model),
        "metrics": metrics or {},
    }
    # contiguous() also undoes channels_last, which is an order in memory and no part of the weights.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    replace_file(Path(path), seal(tensors, about), durable=True, keep_previous=True)


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """The model of a file that `save_model` wrote, on the CPU and in eval mode; nothing else is needed.

    Args:
        path: the file, or a run's folder.

    Returns:
        As from `create_model`; ``model.preprocessing`` (with the resolution), ``model.class_names``,
        ``model.precision``, ``model.mirror`` and ``model.metrics`` are what was saved with it.

    Raises:
        DamagedCheckpoint: if the file is not what was saved; the one before is offered.
        FileNotFoundError: if there is none.

    Example:
        >>> save_model(model, "mine.safetensors", ["apple", "pear"])
        >>> load_model("mine.safetensors").class_names
        ['apple', 'pear']
    """
    path = Path(path)
    tensors, about = _read_or_offer(path / BEST if path.is_dir() else path)
    try:
        model = create_model(about["arch"], num_classes=len(about["class_names"]), weights=None)
        model.load_state_dict(tensors)
        facts = {name: about[name] for name in ("preprocessing", "class_names", "precision", "mirror", "metrics")}
    except KeyError as error:
        raise DamagedCheckpoint(f"{path}: is no model that this version saved (it lacks {error}).") from error
    model.__dict__.update(facts)
    return model.eval()


def _read_or_offer(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint; where it is damaged, the error says whether the one before it is whole.

    Where a saving was cut off between its two renamings, or goes on in another process, the one before is read.
    """
    previous = previous_of(path)
    try:
        return read_sealed(path)
    except FileNotFoundError:
        if not previous.exists():
            raise
        return read_sealed(previous)
    except DamagedCheckpoint as error:
        try:
            read_sealed(previous)
            advice = f"The one before it is whole: rename {previous.name} to {path.name}."
        except (DamagedCheckpoint, FileNotFoundError):
            advice = "Start anew without it."
        raise DamagedCheckpoint(f"{error} {advice}") from error


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as JSON lines, numbers in full; NaN, which JSON lacks, becomes null."""
    plain = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    replace_text(path, "".join(json.dumps(row) + "\n" for row in plain))


@dataclass
class TrainState:
    """How far a training has come: with weights and random numbers, all that the loop needs to go on.

    Attributes:
        epoch: the one that is going on, from 1.
        order: its number for `EpochSampler`, which counts on from one training to the next; 0 before the first.
        batches: how many of it are done, with ``loss_sum``, ``correct`` and ``count`` over their photos.
        learning_rate: at its start.
        rows: of the epochs before, as `fit` returns them.
        best_accuracy: the highest on val so far, with its ``best_loss``.
        seconds: at work so far.
    """

    epoch: int = 1
    order: int = 0
    batches: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0
    learning_rate: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    best_accuracy: float = -1.0
    best_loss: float = math.inf
    seconds: float = 0.0

    def place(self, loader: DataLoader) -> None:
        """Let a loader begin where this training is; a new training begins where the loader is."""
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, EpochSampler):
            if self.order:
                sampler.epoch, sampler.skip = self.order, self.batches * (loader.batch_size or 1)
            self.order = sampler.epoch
        elif self.batches:
            raise ValueError("this loader cannot begin in the middle of an epoch. Make it by make_loaders.")

    def count_batch(self, loss_sum: float, correct: float, count: float) -> None:
        self.loss_sum += loss_sum
        self.correct += int(correct)
        self.count += int(count)
        self.batches += 1

    def finish_epoch(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.epoch += 1
        self.order += 1
        self.batches, self.loss_sum, self.correct, self.count = 0, 0.0, 0, 0


class Checkpoint:
    """What `fit` saves in a folder, so that a training that was cut off goes on as if it had not been.

    ``last.safetensors`` holds model, optimiser, scheduler, random numbers and `TrainState`; it is written after every
    epoch and at least every five minutes. ``best.safetensors`` is the model of the best epoch, see `load_model`;
    ``metrics.jsonl`` has one line for each epoch that is done.

    Args:
        folder: one for each training.
        class_names: kept with the best model.
        seconds: at work before, as by an earlier call that was cut off.

    Example:
        >>> from cropkit.training import fit_sgd_step
        >>> history = fit_sgd_step(model, loaders, epochs=1, checkpoint=Checkpoint("mine", ["apple", "pear"]))
        >>> {"best.safetensors", "last.safetensors", "metrics.jsonl"} <= {file.name for file in Path("mine").iterdir()}
        True
    """

    def __init__(self, folder: str | os.PathLike[str], class_names: Sequence[str], *, seconds: float = 0.0) -> None:
        self.folder, self.class_names = Path(folder), list(class_names)
        self.last, self.best = self.folder / "last.safetensors", self.folder / BEST
        self.stop = False  # set it, as on SIGTERM: the step is finished, saved, and the process ends
        self.running = False  # whether `fit` trains with it
        self._before, self._started = seconds, time.monotonic()
        self._state, self._saved = TrainState(), time.monotonic()

    @property
    def seconds(self) -> float:
        """At work so far, without what was lost to a kill."""
        return self._before + time.monotonic() - self._started

    def begun(self) -> bool:
        """Whether there is something to go on from."""
        return self.last.exists() or previous_of(self.last).exists()

    def attach(
        self, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None, loader: DataLoader
    ) -> TrainState:
        """Take what is to be saved, and bring it to where the training was cut off, if it was.

        Raises:
            ValueError: if what was saved is of other photos, classes, batches, another model, optimiser or schedule;
                the differences are listed.
            DamagedCheckpoint: if it is not what was saved.
            OSError: if the folder cannot be written.
        """
        self._model, self._optimizer, self._scheduler = model, optimizer, scheduler
        self._state, self._saved, self.running = TrainState(), time.monotonic(), True
        self._facts = {
            "class_names": self.class_names,
            "photos": _photos_of(loader),
            "precision": precision_of(model),
            "preprocessing": model.__dict__.get("preprocessing"),
            "mirror": mirrors(model),
            "batch_size": loader.batch_size,
            "seed": getattr(loader.sampler, "seed", None),
            **_facts_of(model, optimizer, scheduler),
        }
        if self.begun():
            self._go_on()
        if rank() == 0:
            write_lines(self.folder / METRICS, self._state.rows)  # finds now whether the folder can be written
        return self._state

    def _go_on(self) -> None:
        tensors, then = _read_or_offer(self.last)
        now = json.loads(json.dumps(self._facts))  # as the file has it: lists, no tuples
        if differ := [f"{k}: {then.get(k)!r} then, {v!r} now" for k, v in now.items() if then.get(k) != v]:
            raise ValueError(
                f"{self.last}: is of another training ({'; '.join(differ)}). Call it as it was called then, or name "
                "another folder."
            )
        state = torch.load(io.BytesIO(tensors["state"].numpy().tobytes()), weights_only=True, map_location="cpu")
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
            self._optimizer._opt_called = True  # type: ignore[attr-defined]  # it has stepped; else a warning
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self._state = TrainState(**state["state"])
        self._before = max(self._before, self._state.seconds)

    def step_done(self) -> None:
        """Called after every step: save where it is time to."""
        self._agree_and_save(due=rank() == 0 and time.monotonic() - self._saved > EVERY)

    def save(self) -> None:
        """Write the training as it is now; ends the process if it was asked to stop.

        The first process writes for all.
        """
        self._agree_and_save(due=True)

    def _agree_and_save(self, *, due: bool) -> None:
        # What one process knows, all must know at the same place, since none may wait for another.
        stop, due = (count > 0 for count in total(self.stop, due))
        if not (stop or due):
            return
        copy_buffers_from_first(self._model)
        if rank() == 0:
            self._write_last()
        self._saved = time.monotonic()
        if stop:
            wait_for_all()
            raise SystemExit(STOPPED)

    def _write_last(self) -> None:
        self._state.seconds = self.seconds
        packed = io.BytesIO()
        state: dict[str, Any] = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "state": asdict(self._state),
        }
        torch.save(state, packed)
        content = torch.from_numpy(np.frombuffer(packed.getbuffer(), np.uint8))
        replace_file(self.last, seal({"state": content}, self._facts), durable=True, keep_previous=True)
        write_lines(self.folder / METRICS, self._state.rows)

    def save_best(self, model: nn.Module, metrics: dict[str, float]) -> None:
        """Write ``best.safetensors``, see `save_model`."""
        if rank() == 0:
            save_model(model, self.best, self.class_names, metrics)

    def finish(self, model: nn.Module) -> None:
        """The training has ended: put the weights of the best epoch into a model."""
        self.running = False
        if self.stop:  # asked after the last saving: all is saved
            raise SystemExit(STOPPED)
        if self._state.rows:
            wait_for_all()
            model.load_state_dict(_read_or_offer(self.best)[0])

    def forget_last(self) -> None:
        """Remove what only a training that goes on needs."""
        for file in self.folder.glob(f"{self.last.name}*") if rank() == 0 else ():
            file.unlink()


def _facts_of(model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """What decides how a training goes on, before its first step: plain values that can be compared."""
    weights = [(name, list(p.shape), p.requires_grad) for name, p in model.named_parameters()]
    facts: dict[str, Any] = {
        "model": [model.__dict__.get("arch", type(model).__name__), len(weights), hash_of(weights)]
    }
    facts["optimizer"] = type(optimizer).__name__
    for number, group in enumerate(optimizer.param_groups):
        facts |= {f"group {number} {k}": v for k, v in group.items() if k != "params" and _plain(v)}
    if scheduler is not None:
        facts["scheduler"] = type(scheduler).__name__
        facts |= {f"scheduler {k}": v for k, v in scheduler.state_dict().items() if _plain(v)}
    return facts


def _photos_of(loader: DataLoader) -> list[Any]:
    dataset: Any = loader.dataset
    which = [getattr(dataset, "paths", []), getattr(dataset, "targets", []), getattr(dataset, "augment", None) is None]
    return [len(dataset), hash_of(which)]


def _plain(value: object) -> bool:
    parts = value if isinstance(value, list | tuple) else [value]
    return all(part is None or isinstance(part, bool | int | float | str) for part in parts)


def hash_of(content: object) -> str:
    """A short hexadecimal digest of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
