"""From the catalog to batches of tensors."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torchvision.transforms import v2

from cropkit.cache import open_shrunk
from cropkit.catalog import SPLITS, check_split, class_names, good_photos
from cropkit.distributed import rank, ranks
from cropkit.models import preprocessing_of
from cropkit.photos import open_photo

Transform = Callable[[Image.Image], Tensor]
# RandomResizedCrop takes at least this share of the photo's area. The usual 0.08 often cuts the crop away.
SMALLEST_CUT = 0.35
_drawing = threading.Lock()  # torch's random numbers are the same for all threads


def photo_threads() -> ThreadPoolExecutor:
    """Threads that read photos, one a core."""
    # Threads of one: two of them that each use all cores for a photo's arithmetic would only disturb each other.
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return ThreadPoolExecutor(max(1, cores), initializer=torch.set_num_threads, initargs=(1,))


@contextmanager
def _drawn_from(*seeds: int) -> Iterator[None]:
    """Draw random numbers that depend on the seeds alone, and leave the training's own as they are."""
    if not seeds:
        yield
        return
    with _drawing, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_mix(*seeds))
        yield


def _mix(*seeds: int) -> int:
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


class Augment:
    """For training: a random cut of the photo, mirrored half of the time.

    Args:
        cut: how the photo is cut and resized.
        to_tensor: what follows.
    """

    def __init__(self, cut: v2.RandomResizedCrop, to_tensor: Transform) -> None:
        self.cut, self.to_tensor = cut, to_tensor

    def __call__(self, photo: Image.Image, *seeds: int) -> Tensor:
        """The tensor of a photo; with seeds, always the same one for the same seeds."""
        with _drawn_from(*seeds):
            where = self.cut.make_params([photo])
            mirrored = torch.rand(()).item() < 0.5
        photo = self.cut.transform(photo, where)
        return self.to_tensor(v2.functional.horizontal_flip(photo) if mirrored else photo)


class EpochSampler(Sampler[tuple[int, int]]):
    """The order of training: (epoch, index) of every photo once, by seed and epoch alone.

    Iterating again gives the next epoch. Set ``epoch`` (from 1) and ``skip`` (photos of it that are done) to begin
    elsewhere.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch, self.skip = count, seed, 1, 0

    def order(self, epoch: int) -> list[int]:
        return torch.randperm(self.count, generator=torch.Generator().manual_seed(_mix(self.seed, epoch))).tolist()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, skip = self.epoch, self.skip
        self.epoch, self.skip = epoch + 1, 0
        return iter([(epoch, index) for index in self.order(epoch)[skip:]])

    def __len__(self) -> int:
        return max(0, self.count - self.skip)


def _leave_sigterm_to_the_main_process(_: int) -> None:
    """For a process that reads photos: a signal to all must not end it before the main one has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class CropDataset(Dataset[tuple[Tensor, int]]):
    """The photos of a catalog, one (tensor of shape (3, H, W), class index) each.

    Args:
        catalog: rows of `scan`, all of them good photos.
        class_names: a class's index is its place in this list.
        transform: makes the tensor from an RGB photo.
        min_side: passed on to `open_photo`.
        cache: a folder for small copies of large photos, of the short side `min_side` (see `open_shrunk`).
        verify: compare a copy with its photo's bytes, not only with size and time of change.
        seed: with the epoch and the index that `EpochSampler` hands out, it decides how a photo is varied, so that
            the number of processes and threads does not matter.

    Raises:
        ValueError: if a row's label is not in `class_names`; names the label and the photo.
    """

    def __init__(
        self,
        catalog: pd.DataFrame,
        class_names: Sequence[str],
        transform: Transform,
        *,
        min_side: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        verify: bool = False,
        seed: int = 0,
    ) -> None:
        if "root" not in catalog.attrs:
            raise ValueError(
                "the catalog no longer knows its folder (pandas drops attrs on some ways). Set it again: "
                'catalog.attrs["root"] = "<the scanned folder>".'
            )
        self.root = Path(catalog.attrs["root"])
        self.paths = list(catalog["path"])
        self.class_names = list(class_names)
        self.transform = transform
        self.min_side = min_side
        self.cache, self.verify, self.seed = cache, verify, seed
        self.rank, self.ranks = rank(), ranks()  # kept, since a process that reads ahead does not know them
        index = {name: number for number, name in enumerate(self.class_names)}
        for path, label in zip(catalog["path"], catalog["label"], strict=True):
            if label not in index:
                raise ValueError(
                    f"{path}: its label {label!r} is not among the {len(index)} classes "
                    f"({self.class_names[0]} ... {self.class_names[-1]}). Correct the label or leave the photo out."
                )
        self.targets = [index[label] for label in catalog["label"]]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: int | tuple[int, int]) -> tuple[Tensor, int]:
        """The photo of an index, or of an epoch and an index."""
        epoch, index = place if isinstance(place, tuple) else (None, place)
        path = self.root / self.paths[index]
        if self.cache is not None and self.min_side is not None:
            photo = open_shrunk(path, self.min_side, self.cache, verify=self.verify)
        else:
            photo = open_photo(path, min_side=self.min_side)
        if epoch is not None and isinstance(self.transform, Augment):
            return self.transform(photo, self.seed, epoch, index), self.targets[index]
        return self.transform(photo), self.targets[index]

    def __getitems__(self, places: Sequence[int | tuple[int, int]]) -> list[tuple[Tensor, int]]:
        """A batch: read by threads, unless this is one of several processes that read.

        Of a training batch, whose places have an epoch, each process that trains gets its share.
        """
        if isinstance(places[0], tuple):
            places = places[self.rank :: self.ranks]
        if get_worker_info() is not None or len(places) == 1:
            return [self[place] for place in places]
        with photo_threads() as pool:
            return list(pool.map(self.__getitem__, places))


def transforms_for(model: nn.Module, *, augment: bool = False) -> Transform:
    """What turns a photo into the model's input, as its pretrained weights expect it.

    Size, interpolation, mean and standard deviation come from ``model.preprocessing``, never from a constant.

    Args:
        model: from `create_model`.
        augment: for training: a random cut of the photo, mirrored half of the time, instead of its centre.

    Returns:
        A function from an RGB photo to a tensor of shape (3, crop_size, crop_size), float32, normalised.

    Raises:
        ValueError: if the model does not say what it expects.
    """
    expects = preprocessing_of(model)
    crop, how = expects["crop_size"], v2.InterpolationMode(expects["interpolation"])
    to_tensor = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(expects["mean"], expects["std"]),
    ]
    if augment:
        cut = v2.RandomResizedCrop(crop, scale=(SMALLEST_CUT, 1.0), interpolation=how)
        return Augment(cut, v2.Compose(to_tensor))
    return v2.Compose([v2.Resize(expects["resize_size"], interpolation=how), v2.CenterCrop(crop), *to_tensor])


def make_loaders(
    catalog: pd.DataFrame,
    model: nn.Module,
    *,
    batch_size: int = 32,
    seed: int = 0,
    num_workers: int = 0,
    augment: bool = True,
    cache: str | os.PathLike[str] | None = None,
    verify: bool = False,
) -> dict[str, DataLoader]:
    """Loaders for the parts of a catalog that hold photos.

    Args:
        catalog: divided into train, val and test (see `split`). Photos with a problem are left out.
        model: its weights decide the transform.
        batch_size: photos a batch.
        seed: >= 0; decides the order of the training photos and how each is varied.
        num_workers: processes that read photos ahead; 0 reads each batch in this one, by threads, which works
            everywhere and is the fastest where the model computes on the CPU.
        augment: vary the training photos at random. Val and test are never varied.
        cache: a folder for small copies of large photos, so that only the first epoch opens those; see `cache_size`
            and `clear_cache`.
        verify: compare every copy with the bytes of its photo, which reads all photos in every epoch.

    Returns:
        ``{"train": ..., "val": ..., "test": ...}``, without a part that is empty. Each yields (photos, targets) of
        shapes (N, 3, H, W) and (N,); train in random order, the others in the catalog's. A last training batch of a
        single photo, or of fewer than there are processes, is dropped. ``loader.dataset`` knows ``class_names``, the
        same list for every part, whatever classes the part happens to hold.

    Raises:
        ValueError: if there are fewer than two classes, or a class has no training photos.
    """
    check_split(catalog)
    names = class_names(catalog)
    loaders = {}
    for part in SPLITS:
        photos = good_photos(catalog[catalog["split"] == part])
        if not len(photos):
            continue
        photos.attrs |= catalog.attrs
        training = part == "train"
        if training and min(batch_size, len(photos)) < ranks():
            raise ValueError(
                f"a batch of {min(batch_size, len(photos))} photos cannot be shared out to {ranks()} processes. Start "
                "fewer, or give a larger batch_size."
            )
        # BatchNorm cannot train on a single photo, and a process cannot on none.
        left = len(photos) % batch_size
        drop_last = training and len(photos) > batch_size > 1 and 1 <= left < max(2, ranks())
        dataset = CropDataset(
            photos,
            names,
            transforms_for(model, augment=augment and training),
            min_side=preprocessing_of(model)["resize_size"],
            cache=cache,
            verify=verify,
            seed=seed,
        )
        loaders[part] = DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=EpochSampler(len(dataset), seed) if training else None,
            num_workers=num_workers,
            drop_last=drop_last,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_sigterm_to_the_main_process,
            generator=torch.Generator(),  # else the loader would take a number from the training's own
        )
    return loaders
