"""Checkpoints: written whole or not at all, checked when they are read, enough to predict with or to go on from."""

import hashlib
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from cropkit.cache import replace_file
from cropkit.distributed import rank, total, wait_for_all
from cropkit.models import check_head, create_model, preprocessing_of

EVERY = 300.0  # seconds between two savings within an epoch
STOPPED = 75  # the exit status after SIGTERM: "try again later" in sysexits.h
METRICS = "metrics.jsonl"
HASHES = 8  # of the latest savings, any of which the file may hold after a cut


class DamagedCheckpoint(ValueError):
    """A file that is not what was saved."""


def save_checked(path: Path, data: bytes) -> None:
    """Replace a file so that at any moment the old content or the new one can be loaded, also after a power cut.

    The SHA-256 of both stand in ``<name>.sha256`` before the file changes. The content before is kept as
    ``<name>.previous``.

    Raises:
        OSError: if the disk is full or the folder cannot be written; the file is then as it was.
    """
    sums = _beside(path, ".sha256")

    def write(temporary: Path) -> None:
        _write(temporary, data)
        known = sums.read_text().split() if sums.exists() else []
        save_whole(sums, "\n".join([hashlib.sha256(data).hexdigest(), *known[: HASHES - 1]]))
        if path.exists():
            os.replace(path, _beside(path, ".previous"))

    replace_file(path, write)
    _sync(path.parent)


def save_whole(path: Path, text: str) -> None:
    """Replace a text file so that also after a power cut it is the old one or the new one."""
    replace_file(path, lambda temporary: _write(temporary, text.encode()))
    _sync(path.parent)


def load_checked(path: Path) -> bytes:
    """The content of a file that `save_checked` wrote.

    Raises:
        DamagedCheckpoint: if it is not what was written; the one before is offered.
        FileNotFoundError: if there is none.
    """
    previous = _beside(path, ".previous")
    try:
        data = path.read_bytes()
    except FileNotFoundError:  # a saving was cut off between its two renamings, or goes on in another process
        if not previous.exists():
            raise
        data = previous.read_bytes()
    sums = _beside(path, ".sha256")
    known = sums.read_text().split() if sums.exists() else []
    if hashlib.sha256(data).hexdigest() in known:
        return data
    whole = previous.exists() and hashlib.sha256(previous.read_bytes()).hexdigest() in known
    raise DamagedCheckpoint(
        f"{path}: is damaged, since its SHA-256 is none of those in {sums.name}. "
        + (f"The one before it is whole: rename {previous.name} to {path.name}." if whole else "Start anew without it.")
    )


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make renamings in a folder last; Windows has no way to ask for it, and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows as JSON lines, numbers in full; NaN, which JSON lacks, becomes null."""
    plain = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    save_whole(path, "".join(json.dumps(row) + "\n" for row in plain))


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
    """
    check_head(model, class_names)
    arch = model.__dict__.get("arch")
    if arch is None:
        raise ValueError(f"{type(model).__name__} does not say what it is. Make it with create_model.")
    about = {
        "arch": arch,
        "preprocessing": preprocessing_of(model),
        "class_names": list(class_names),
        "metrics": metrics or {},
    }
    # contiguous() also undoes channels_last, which is an order in memory and no part of the weights.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_checked(Path(path), safetensors.torch.save(tensors, {"cropkit": json.dumps(about)}))


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """The model of a file that `save_model` wrote, on the CPU and in eval mode; nothing else is needed.

    Returns:
        As from `create_model`; ``model.class_names`` and ``model.metrics`` are what was saved with it.

    Raises:
        DamagedCheckpoint: if the file is not what was saved; the one before is offered.
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    # A file that was taken elsewhere without its .sha256 is checked by its structure alone.
    data = load_checked(path) if _beside(path, ".sha256").exists() else path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["cropkit"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedCheckpoint(f"{path}: is no model that save_model wrote ({error}).") from error
    model = create_model(about["arch"], num_classes=len(about["class_names"]), weights=None)
    model.load_state_dict(tensors)
    model.__dict__.update({name: about[name] for name in ("preprocessing", "class_names", "metrics")})
    return model.eval()


@dataclass
class Position:
    """How far a training has come: with weights and random numbers, all that the loop needs to go on.

    Attributes:
        epoch: the one that is going on, from 1.
        batches: how many of it are done, with ``loss_sum``, ``correct`` and ``count`` over their photos.
        learning_rate: at its start.
        rows: of the epochs before, as `fit` returns them.
        best_accuracy: the highest on val so far.
    """

    epoch: int = 1
    batches: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    count: int = 0
    learning_rate: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)
    best_accuracy: float = -1.0

    def finish_epoch(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.epoch += 1
        self.batches, self.loss_sum, self.correct, self.count = 0, 0.0, 0, 0


class Checkpoint:
    """What `fit` saves in a folder, so that a training that was cut off goes on as if it had not been.

    ``last.pt`` holds model, optimiser, scheduler, random numbers and `Position`; it is written after every epoch and
    at least every five minutes. ``best.safetensors`` is the model of the best epoch, see `load_model`;
    ``metrics.jsonl`` has one line for each epoch that is done.

    Args:
        folder: one for each training.
        class_names: kept with the best model.
    """

    def __init__(self, folder: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        self.folder, self.class_names = Path(folder), list(class_names)
        self.last, self.best = self.folder / "last.pt", self.folder / "best.safetensors"
        self.stop = False  # set it, as on SIGTERM: the step is finished, saved, and the process ends
        self.running = False  # whether `fit` trains with it
        self._position, self._saved = Position(), time.monotonic()

    def begun(self) -> bool:
        """Whether there is something to go on from."""
        return self.last.exists() or _beside(self.last, ".previous").exists()

    def attach(
        self, model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None, loader: DataLoader
    ) -> Position:
        """Take what is to be saved, and bring it to where the training was cut off, if it was.

        Raises:
            ValueError: if what was saved is of other photos, classes or batches; the differences are listed.
            DamagedCheckpoint: if it is not what was saved.
            OSError: if the folder cannot be written.
        """
        self._model, self._optimizer, self._scheduler = model, optimizer, scheduler
        self._position, self._saved, self.running = Position(), time.monotonic(), True
        self._facts = {
            "class_names": self.class_names,
            "photos": len(loader.dataset),  # type: ignore[arg-type]
            "batch_size": loader.batch_size,
            "seed": getattr(loader.sampler, "seed", None),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.begun():
            state = torch.load(io.BytesIO(load_checked(self.last)), weights_only=True, map_location="cpu")
            then = state["facts"]
            if differ := [f"{k}: {then[k]!r} then, {now!r} now" for k, now in self._facts.items() if then[k] != now]:
                raise ValueError(
                    f"{self.last}: is of another training ({'; '.join(differ)}). Make the loaders as they were, "
                    "or name another folder."
                )
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if scheduler is not None:
                scheduler.load_state_dict(state["scheduler"])
                optimizer._opt_called = True  # type: ignore[attr-defined]  # it has stepped; else the scheduler warns
            torch.set_rng_state(state["random"])
            if torch.cuda.is_available() and state["random_cuda"]:
                torch.cuda.set_rng_state_all(state["random_cuda"])
            self._position = Position(**state["position"])
        if rank() == 0:
            write_lines(self.folder / METRICS, self._position.rows)  # finds now whether the folder can be written
        return self._position

    def step_done(self) -> None:
        """Called after every step: save where it is time to."""
        self.stop = total(self.stop)[0] > 0  # where one process was told to, all stop after the same step
        if self.stop or time.monotonic() - self._saved > EVERY:
            self.save()

    def save(self) -> None:
        """Write ``last.pt``; ends the process if it was told to stop. The first process writes for all."""
        if rank() == 0:
            self._write_last()
        self._saved = time.monotonic()
        if self.stop:
            wait_for_all()
            raise SystemExit(STOPPED)

    def _write_last(self) -> None:
        state: dict[str, Any] = {
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "position": asdict(self._position),
            "facts": self._facts,
        }
        packed = io.BytesIO()
        torch.save(state, packed)
        save_checked(self.last, packed.getvalue())
        write_lines(self.folder / METRICS, self._position.rows)

    def save_best(self, model: nn.Module, metrics: dict[str, float]) -> None:
        """Write ``best.safetensors``, see `save_model`."""
        if rank() == 0:
            save_model(model, self.best, self.class_names, metrics)

    def forget_last(self) -> None:
        """Remove what only a training that goes on needs."""
        for file in self.folder.glob(f"{self.last.name}*") if rank() == 0 else ():
            file.unlink()

    def load_best(self, model: nn.Module) -> None:
        """Put the weights of the best epoch into a model."""
        wait_for_all()
        model.load_state_dict(safetensors.torch.load(load_checked(self.best)))
