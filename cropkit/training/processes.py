"""More than one process: what `torchrun` starts, each with a rank, trains one model together.

Every function here does nothing where there is one process, so the callers read the same on a laptop and on eight GPUs.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes where `torchrun` has started this one; NCCL on GPUs, one each, else gloo."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Long, since the first process may scan for hours; where one dies, torchrun ends the others at once.
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(hours=24))
    yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


def ranks() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This one's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def share(items: Sequence[T]) -> Sequence[T]:
    """What of some items is this process's: every item is exactly one's."""
    return items[rank() :: ranks()]


def together(model: nn.Module) -> nn.Module:
    """The model in torch's `DistributedDataParallel`: all processes start from the first one's weights and buffers, and
    each step takes the mean of their gradients."""
    return DistributedDataParallel(model) if ranks() > 1 else model


def share_of_batch(photos: int) -> float:
    """By what a process's loss is multiplied, so that the mean over processes is the mean over photos."""
    return 1.0 if ranks() == 1 else ranks() * photos / total(photos)[0]


def copy_buffers_from_first(model: nn.Module) -> None:
    """Give all processes the first one's BatchNorm statistics, which each has from its own photos."""
    if ranks() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def total(*numbers: float) -> list[float]:
    """Each number summed over the processes."""
    if ranks() == 1:
        return list(numbers)
    sums = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.all_reduce(sums)
    return sums.tolist()


def gathered(mine: Tensor, count: int) -> Tensor:
    """All rows, in order, of which each process has its `share`; shape (count, ...)."""
    if ranks() == 1:
        return mine
    rows = mine.new_empty((count, *mine.shape[1:]))
    for one in range(ranks()):
        part = rows[one :: ranks()].to(_device()).contiguous()
        if one == rank():
            part = mine.to(_device()).contiguous()
        if len(part):
            dist.broadcast(part, one)
        rows[one :: ranks()] = part.to(rows.device)
    return rows


def collected(items: dict[str, T]) -> dict[str, T]:
    """All processes' items in one dict."""
    if ranks() == 1:
        return items
    dicts: list[dict[str, T]] = [{} for _ in range(ranks())]
    dist.all_gather_object(dicts, items)
    return {key: value for each in dicts for key, value in each.items()}


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if ranks() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made, 0, device=_device())
    return made[0]


def wait_for_all() -> None:
    """Go on when all processes are here."""
    if ranks() > 1:
        dist.barrier()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
