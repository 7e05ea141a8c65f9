"""From the catalog to batches of tensors."""

import copy
import operator
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, Subset, default_collate, get_worker_info
from torchvision.transforms import v2

from cropkit.data.catalog import SPLITS, class_names, good_photos
from cropkit.data.copies import Cut, open_resized
from cropkit.data.photos import BadPhoto
from cropkit.data.splitting import check_split

Transform = Callable[[Image.Image], Tensor]
# RandomResizedCrop takes at least this share of the photo's area. The usual 0.08 often cuts the crop away.
SMALLEST_CUT = 0.35
_drawing = threading.Lock()  # torch's random numbers are the same for all threads


def preprocessing_of(model: nn.Module) -> dict[str, Any]:
    """What a model's weights expect of a photo.

    Returns:
        ``resize_size`` (the short side) and ``crop_size`` in pixels, ``interpolation`` ("bilinear", "bicubic"),
        ``mean`` and ``std`` of the three channels, for values in [0, 1].

    Raises:
        ValueError: if the model does not say.
    """
    preprocessing = model.__dict__.get("preprocessing")
    if preprocessing is None:
        raise ValueError(
            f"{type(model).__name__} does not say what its weights expect of a photo. Make it with create_model, or "
            "set model.preprocessing (resize_size, crop_size, interpolation, mean, std)."
        )
    return preprocessing


def at_resolution(preprocessing: dict[str, Any], resolution: int | None) -> dict[str, Any]:
    """The same preprocessing for another picture size.

    Args:
        preprocessing: as in ``model.preprocessing``.
        resolution: pixels of the square that the network sees, >= 32; the resize before grows in proportion. None
            leaves everything as it is.

    Raises:
        ValueError: if `resolution` is too small.
    """
    if resolution is None:
        return preprocessing
    resolution = operator.index(resolution)  # a number of numpy's could not be saved
    if resolution < 32:
        raise ValueError(f"resolution is {resolution}, but must be at least 32 pixels.")
    resize = round(preprocessing["resize_size"] * resolution / preprocessing["crop_size"])
    return {**preprocessing, "crop_size": resolution, "resize_size": resize}


def photo_threads() -> ThreadPoolExecutor:
    """Threads that read photos, one a core."""
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


class ToTensor:
    """An RGB photo as a normalised tensor, by a table of the 256 values a channel can have.

    The numbers are those of torchvision's ``ToDtype`` and ``Normalize``. Looking them up uses one core only, so threads
    that read photos do not get in each other's way, and torch's own threads are not touched.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        values = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
        scaled = v2.functional.to_dtype(values, torch.float32, scale=True)
        self.table = v2.functional.normalize(scaled, list(mean), list(std))[:, 0].numpy()

    def __call__(self, photo: Image.Image) -> Tensor:
        channels = np.asarray(photo)
        return torch.from_numpy(np.stack([self.table[k].take(channels[..., k]) for k in range(3)]))


class Augment:
    """For training: a random cut of the photo, mirrored half of the time.

    Args:
        crop_size: pixels of the square that comes out.
        interpolation: how the cut is resized.
        to_tensor: what follows.
    """

    def __init__(self, crop_size: int, interpolation: v2.InterpolationMode, to_tensor: Transform) -> None:
        self.cut = v2.RandomResizedCrop(crop_size, scale=(SMALLEST_CUT, 1.0), interpolation=interpolation)
        self.to_tensor = to_tensor

    def __call__(self, photo: Image.Image, *seeds: int) -> Tensor:
        """The tensor of a photo; with seeds, always the same one for the same seeds."""
        with _drawn_from(*seeds):
            where = self.cut.make_params([photo])
            mirrored = torch.rand(()).item() < 0.5
        photo = self.cut.transform(photo, where)
        return self.to_tensor(v2.functional.horizontal_flip(photo) if mirrored else photo)


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


def transforms_for(model: nn.Module, *, augment: bool = False) -> Transform:
    """What turns a photo into the model's input, as its pretrained weights expect it.

    Size, interpolation, mean and standard deviation come from ``model.preprocessing``, never from a constant. A photo
    alone has no crosshair, so a model that looks at a square of each gets the square at the centre.

    Args:
        model: from `create_model`.
        augment: for training: a random cut of the photo, mirrored half of the time, instead of its centre.

    Returns:
        A function from an RGB photo to a tensor of shape (3, crop_size, crop_size), float32, normalised.

    Raises:
        ValueError: if the model does not say what it expects.

    Example:
        >>> from cropkit import create_model
        >>> model = create_model("resnet18", weights=None)
        >>> transforms_for(model)(Image.new("RGB", (640, 480))).shape
        torch.Size([3, 224, 224])
    """
    expects = preprocessing_of(model)
    ready = _transform(expects, augment=augment)
    if "cut" not in expects:
        return ready
    return lambda photo: ready(v2.functional.center_crop(photo, [round(expects["cut"] * min(photo.size))]))


def _transform(expects: dict[str, Any], *, augment: bool) -> Transform:
    crop, how = expects["crop_size"], v2.InterpolationMode(expects["interpolation"])
    to_tensor = ToTensor(expects["mean"], expects["std"])
    if augment:
        return Augment(crop, how, to_tensor)
    return v2.Compose([v2.Resize(expects["resize_size"], interpolation=how), v2.CenterCrop(crop), to_tensor])


class EpochSampler(Sampler[tuple[int, int]]):
    """The order of training: (epoch, index) of every photo once, decided by seed and epoch alone.

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


class CropDataset(Dataset[tuple[Tensor, int]]):
    """The photos of a catalog, one (tensor of shape (3, H, W), class index) each.

    A plain index gives the photo as it is. Only (epoch, index), as `EpochSampler` hands out, gives it varied, in a way
    that depends on seed, epoch and index alone.

    Args:
        catalog: rows of `scan`; without a column ``label`` the class index of each is -1. Where the model looks at
            the square round the crosshair, it needs the columns ``target_x`` and ``target_y`` of the metadata.
        class_names: a class's index is its place in this list.
        preprocessing: what the model expects of a photo, as in ``model.preprocessing``.
        augment: vary the photos of an epoch at random.
        cache: a folder for small copies of large photos (see `open_resized`).
        seed: decides, with epoch and index, how a photo is varied.

    Attributes:
        problems: reason by path of photos that cannot be read, where there are no labels; each is a blank photo then.

    Raises:
        ValueError: if a label is not in `class_names`; names the label and the photo. If crosshairs are needed and are
            not there.

    Example:
        >>> dataset = CropDataset(catalog, ["apple", "pear"], model.preprocessing)
        >>> photo, target = dataset[0]
        >>> photo.shape, dataset.class_names[target]
        (torch.Size([3, 224, 224]), 'apple')
    """

    def __init__(
        self,
        catalog: pd.DataFrame,
        class_names: Sequence[str],
        preprocessing: dict[str, Any],
        *,
        augment: bool = False,
        cache: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        if "root" not in catalog:
            raise ValueError("the catalog has no column 'root', the folder that its paths are relative to. Add it.")
        self.paths = list(catalog["path"])
        self.roots = list(catalog["root"])
        self.class_names = list(class_names)
        self.crosshairs = None
        if "target_x" in catalog and "target_y" in catalog:
            self.crosshairs = list(zip(catalog["target_x"], catalog["target_y"], strict=True))
        self.make_ready(preprocessing)
        self.augment = _transform(preprocessing, augment=True) if augment else None
        self.cache, self.seed = cache, seed
        # Kept, since a process that reads ahead does not know them.
        self.rank, self.ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.problems: dict[str, str] = {}
        self.labelled = "label" in catalog
        index = {name: number for number, name in enumerate(self.class_names)}
        labels = catalog["label"] if self.labelled else []
        for path, label in zip(self.paths, labels, strict=self.labelled):
            if label not in index:
                raise ValueError(
                    f"{path}: its label {label!r} is not among the {len(index)} classes "
                    f"({self.class_names[0]} ... {self.class_names[-1]}). Correct the label or leave the photo out."
                )
        self.targets = [index[label] for label in labels] if self.labelled else [-1] * len(self.paths)

    def make_ready(self, preprocessing: dict[str, Any]) -> None:
        """Make photos ready as `preprocessing` says, those that are not varied."""
        if preprocessing.get("around") == "crosshair" and self.crosshairs is None:
            raise ValueError(
                "the model looks round the crosshair, but the photos have no columns target_x and target_y. Give the "
                "table that has them: metadata=<its path>."
            )
        self.preprocessing, self.transform = preprocessing, _transform(preprocessing, augment=False)

    def __len__(self) -> int:
        return len(self.paths)

    def cut(self, index: int) -> Cut | None:
        """Which square of a photo is taken, as `open_resized` wants it; None takes the whole photo."""
        if "cut" not in self.preprocessing:
            return None
        around = self.preprocessing["around"] == "crosshair" and self.crosshairs
        return self.preprocessing["cut"], around[index] if around else (0, 0)

    def file(self, index: int) -> Path:
        """Where a photo is."""
        return Path(self.roots[index]) / self.paths[index]

    def __getitem__(self, place: int | tuple[int, int]) -> tuple[Tensor, int]:
        """The photo of an index as it is, or of (epoch, index) varied."""
        epoch, index = place if isinstance(place, tuple) else (None, place)
        side, interpolation = self.preprocessing["resize_size"], self.preprocessing["interpolation"]
        try:
            photo = open_resized(self.file(index), side, interpolation, cache=self.cache, cut=self.cut(index))
        except BadPhoto as error:
            if self.labelled:
                raise
            self.problems[self.paths[index]] = error.reason
            photo = Image.new("RGB", (side, side))
        if epoch is not None and self.augment is not None:
            return self.augment(photo, self.seed, epoch, index), self.targets[index]  # type: ignore[call-arg]
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


def make_loaders(
    catalog: pd.DataFrame,
    model: nn.Module,
    *,
    batch_size: int = 32,
    seed: int = 0,
    num_workers: int = 0,
    augment: bool = True,
    cache: str | os.PathLike[str] | None = None,
) -> dict[str, DataLoader]:
    """Loaders for the splits of a catalog that hold photos.

    Args:
        catalog: with train, val and test (see `split`). Photos with a problem are left out.
        model: its weights decide the transform. Where it was trained, its ``class_names`` are the classes.
        batch_size: photos a batch.
        seed: >= 0; decides the order of the training photos and how each is varied.
        num_workers: processes that read photos ahead; 0 reads each batch in this one, by threads, which works
            everywhere and is the fastest where the model computes on the CPU.
        augment: vary the training photos at random. Val and test are never varied.
        cache: a folder for lossless small copies of large photos, so that only the first epoch opens those.

    Returns:
        ``{"train": ..., "val": ..., "test": ...}``, without a split that is empty. Each yields (photos, targets) of
        shapes (N, 3, H, W) and (N,); train in random order, the others in the catalog's. A last training batch of a
        single photo, or of fewer than there are processes, is dropped. ``loader.dataset`` knows ``class_names``, the
        same list for every split, whatever classes the split happens to hold.

    Raises:
        ValueError: if there are fewer than two classes, a class has no training photos, or a label is none of the
            model's classes.

    Example:
        >>> loaders = make_loaders(catalog, model, batch_size=4)
        >>> photos, targets = next(iter(loaders["train"]))
        >>> photos.shape, targets.shape
        (torch.Size([4, 3, 224, 224]), torch.Size([4]))
    """
    names = getattr(model, "class_names", None)
    if names is None:
        check_split(catalog)
        names = class_names(catalog)
    loaders = {}
    for split in SPLITS:
        photos = good_photos(catalog[catalog["split"] == split])
        if not len(photos):
            continue
        training = split == "train"
        dataset = CropDataset(
            photos, names, preprocessing_of(model), augment=augment and training, cache=cache, seed=seed
        )
        if training and min(batch_size, len(photos)) < dataset.ranks:
            raise ValueError(
                f"a batch of {min(batch_size, len(photos))} photos cannot be shared out to {dataset.ranks} processes. "
                "Start fewer, or give a larger batch_size."
            )
        # BatchNorm cannot train on a single photo, and a process cannot on none.
        left = len(photos) % batch_size
        drop_last = training and len(photos) > batch_size > 1 and 1 <= left < max(2, dataset.ranks)
        sampler = EpochSampler(len(dataset), seed) if training else None
        loaders[split] = _loader(dataset, batch_size, sampler=sampler, num_workers=num_workers, drop_last=drop_last)
    return loaders


def made_ready(dataset: Any, preprocessing: dict[str, Any] | None) -> Any:
    """The same photos, made ready as `preprocessing` says; a data set of anything else is returned as it is."""
    if isinstance(dataset, Subset):
        return Subset(made_ready(dataset.dataset, preprocessing), dataset.indices)
    if not isinstance(dataset, CropDataset) or preprocessing in (None, dataset.preprocessing):
        return dataset
    dataset = copy.copy(dataset)
    dataset.make_ready(preprocessing)
    return dataset


def in_order(loader: DataLoader, batch_size: int, preprocessing: dict[str, Any] | None = None) -> DataLoader:
    """A loader of the same photos as they are, each once, in the order of the data set.

    Where there are several processes, it has this one's share: every `ranks`-th photo. The given loader's own order and
    epoch stay as they are. With `preprocessing` the photos are made ready as it says, whatever the loader does.
    """
    dataset: Any = made_ready(loader.dataset, preprocessing)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return _loader(
        dataset,
        batch_size,
        sampler=range(rank, len(dataset), ranks),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
    )


def _loader(dataset: Dataset, batch_size: int, **options: Any) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_sigterm_to_the_main_process,
        generator=torch.Generator(),  # else the loader would take a number from the training's own
        **{"collate_fn": default_collate, **options},
    )


def _leave_sigterm_to_the_main_process(_: int) -> None:
    """For a process that reads photos: a signal to all must not end it before the main one has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
