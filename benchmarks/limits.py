"""How near are extraction and a fine-tuning epoch to what the machine can do at all?

    python benchmarks/limits.py [photos]

Extraction: `extract_features` without a cache, over (decode, resize and normalise by two processes, then forward on
batches that lie in memory, in the same precision). Fine-tuning: the training phase of a warm epoch, over bare training
steps on batches that lie in memory. In turns, medians of three; the photos are the sample's.
"""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from machine import machine
from torch import nn, optim

import cropkit
from cropkit import course
from cropkit.course.fetch import data_home
from cropkit.course.sample import make_sample
from cropkit.models import freeze_batchnorm
from cropkit.training import resolve_precision, train_one_epoch
from cropkit.training.memory import keep_freed_memory

ROUNDS, BATCH = 3, 64


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def decode(transform: Callable, min_side: int, paths: list[Path]) -> int:
    torch.set_num_threads(1)
    return len([transform(cropkit.open_photo(path, min_side=min_side)) for path in paths])


def extraction(catalog: pd.DataFrame, arch: str) -> None:
    model = cropkit.create_model(arch, weights="imagenet" if arch == course.ARCH else None).eval()
    loader = cropkit.make_loaders(catalog, model)["train"]
    photos = torch.stack([loader.dataset[index][0] for index in range(BATCH)])
    photos = photos.contiguous(memory_format=torch.channels_last)
    precision = resolve_precision("auto", model, training=False)
    transform, side = cropkit.data.transforms_for(model), model.preprocessing["resize_size"]
    paths = [loader.dataset.file(index) for index in range(len(loader.dataset))]
    halves = [paths[0::2], paths[1::2]]

    def forward() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            for _ in range(len(paths) // BATCH):
                model(photos)

    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(decode, [transform] * 2, [side] * 2, [half[:8] for half in halves]))  # started
        rows = []
        for _ in range(ROUNDS):
            ours = seconds(lambda: cropkit.extract_features(model, loader, precision=precision))
            limit = seconds(lambda: list(pool.map(decode, [transform] * 2, [side] * 2, halves))) + seconds(forward)
            rows.append((ours, limit))
    ratio = statistics.median(ours / limit for ours, limit in rows)
    print(f"{arch}: extraction of {len(paths)} photos in {precision} {statistics.median(r[0] for r in rows):.1f} s, "
          f"{ratio:.2f} times its limit")  # fmt: skip


def fine_tuning(catalog: pd.DataFrame, arch: str) -> None:
    num_classes = len(cropkit.class_names(catalog))
    model = cropkit.create_model(arch, num_classes=num_classes, weights="imagenet" if arch == course.ARCH else None)
    loader = cropkit.make_loaders(catalog, model, cache=course.CACHE)["train"]
    freeze_batchnorm(model)
    optimizer, criterion = optim.AdamW(model.parameters(), lr=1e-5), nn.CrossEntropyLoss()
    photos, targets = next(iter(loader))
    photos = photos.contiguous(memory_format=torch.channels_last)
    precision = resolve_precision("auto", model, training=True)

    def bare() -> None:
        model.train()
        for _ in range(len(loader)):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                logits = model(photos)
            optimizer.zero_grad()
            criterion(logits.float(), targets).backward()
            optimizer.step()

    def epoch() -> None:
        train_one_epoch(model, loader, optimizer, criterion, precision=precision)

    epoch()  # warm: large photos are kept small from here on
    rows = [(seconds(epoch), seconds(bare)) for _ in range(ROUNDS)]
    ratio = statistics.median(ours / limit for ours, limit in rows)
    print(f"{arch}: epoch of {len(loader) * 32} photos in {precision} {statistics.median(r[0] for r in rows):.1f} s, "
          f"{ratio:.2f} times bare steps")  # fmt: skip


# Steps on batches in memory cost the same however many there are, so a short epoch measures them as well.
EPOCH = 320


def main() -> None:
    print(machine())
    keep_freed_memory()
    torch.manual_seed(0)
    root = make_sample(data_home() / "sample")
    catalog = cropkit.data.good_photos(cropkit.scan(root)).assign(split="train")
    catalog = catalog.head(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
    for arch in (course.ARCH, "resnet18"):
        extraction(catalog, arch)
        fine_tuning(catalog.head(EPOCH), arch)


if __name__ == "__main__":
    main()
