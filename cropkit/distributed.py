"""More than one process: what `torchrun` starts, each with a rank, trains one model together.

Every function here does nothing where there is one process, so the callers read the same on a laptop and on eight GPUs.
A batch is shared out by rank and its gradients are averaged over photos, so any number of ranks takes the same steps,
but for rounding, and for layers that look at the whole batch (BatchNorm in train mode sees each rank's share).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

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


def average_gradients(model: nn.Module, photos: int) -> None:
    """Replace each gradient, a mean over this process's photos, by the mean over all processes' photos."""
    if ranks() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [gradients[0].new_ones(1)]) * photos
    dist.all_reduce(flat)
    flat /= flat[-1].clone()
    for gradient, mean in zip(gradients, flat.split([*(g.numel() for g in gradients), 1]), strict=False):
        gradient.copy_(mean.view_as(gradient))


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


def collected(items: list[T]) -> list[T]:
    """All processes' items, the first one's first."""
    if ranks() == 1:
        return items
    lists: list[list[T]] = [[] for _ in range(ranks())]
    dist.all_gather_object(lists, items)
    return [item for each in lists for item in each]


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if ranks() == 1:
        return make()
    made: list[Any] = [make() if rank() == 0 else None]
    dist.broadcast_object_list(made, 0, device=_device())
    return made[0]


def copy_from_first(model: nn.Module) -> None:
    """Give all processes the first one's weights and buffers."""
    if ranks() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)


def wait_for_all() -> None:
    """Go on when all processes are here."""
    if ranks() > 1:
        dist.barrier()


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
