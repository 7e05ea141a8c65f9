"""The examples in the docstrings print what they show."""

import doctest
import importlib
import inspect
import pkgutil
import shutil
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch

import cropkit

mpl.use("Agg")
MODULES = [m.name for m in pkgutil.walk_packages(cropkit.__path__, "cropkit.") if not m.name.endswith("__main__")]
PUBLIC = {name: value for name, value in vars(cropkit).items() if not name.startswith("_")}
EVERY_DAY = {name: value for name, value in PUBLIC.items() if not inspect.ismodule(value)}
ROOMS = [importlib.import_module(f"cropkit.{room}") for room in ("data", "models", "training", "evaluation")]
DOORS = {
    value.__qualname__: value
    for room in [*ROOMS, importlib.import_module("cropkit.experiments")]
    for value in vars(room).values()
    if getattr(value, "__module__", "").startswith(room.__name__) and not value.__name__.startswith("_")
}
FUNCTIONS = {name: value for name, value in DOORS.items() if inspect.isfunction(value)}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """What the examples take for granted: a folder photos, its catalog, a model of two classes, and its loaders."""
    generator = torch.Generator().manual_seed(0)
    root = tmp_path_factory.mktemp("examples")
    for crop in ("apple", "pear"):
        (root / "photos" / crop).mkdir(parents=True)
        for number in range(10):
            noise = torch.randint(256, (3, 6, 8), generator=generator, dtype=torch.uint8)
            photo = cropkit.data.datasets.v2.functional.to_pil_image(noise).resize((80, 60))
            photo.save(root / "photos" / crop / f"{number}.jpg")
    shutil.copyfile(root / "photos/apple/0.jpg", root / "photos/apple/copy.jpg")
    return root


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_show(name, examples, monkeypatch):
    monkeypatch.chdir(examples)
    catalog = cropkit.split(cropkit.scan(Path("photos")))
    model = cropkit.create_model("mobilenet_v3_small", num_classes=2, weights=None)
    model.class_names = ["apple", "pear"]
    given = {"catalog": catalog, "model": model, "loaders": cropkit.make_loaders(catalog, model)}
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, _ = doctest.testmod(importlib.import_module(name), extraglobs=given, optionflags=flags)
    plt.close("all")
    assert not failed


@pytest.mark.parametrize("name", {**EVERY_DAY, **FUNCTIONS})
def test_a_public_name_has_an_example_that_is_run(name):
    text = inspect.getdoc({**EVERY_DAY, **FUNCTIONS}[name])
    assert ">>>" in text
    assert "+SKIP" not in text


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_takes_and_returns(name):
    signature, text = inspect.signature(FUNCTIONS[name]), inspect.getdoc(FUNCTIONS[name])
    assert not signature.parameters or "Args:" in text
    assert signature.return_annotation in (None, "None") or "Returns:" in text


def test_the_names_of_every_day_stay_few():
    assert len(EVERY_DAY) <= 32  # each more needs a reason in the package's docstring
