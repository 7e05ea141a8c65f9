"""The examples in the docstrings print what they show."""

import doctest
import importlib
import inspect
import pkgutil

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

import cropkit

mpl.use("Agg")
MODULES = [m.name for m in pkgutil.walk_packages(cropkit.__path__, "cropkit.") if not m.name.endswith("__main__")]
PUBLIC = {name: value for name, value in vars(cropkit).items() if not name.startswith("_")}


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_show(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    plt.close("all")
    assert not failed


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if not inspect.ismodule(value)])
def test_every_name_of_every_day_has_an_example(name):
    assert ">>>" in inspect.getdoc(PUBLIC[name])


def test_there_are_fewer_than_thirty_names_of_every_day():
    assert len([value for value in PUBLIC.values() if not inspect.ismodule(value)]) < 30
