from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from test_explorer import made_up

from cropkit import Config, create_model, scan
from cropkit.data.crops import CHINESE
from cropkit.evaluation import metrics, plots
from cropkit.evaluation.metrics import classification_report, confusion_matrix
from cropkit.experiments import Run

mpl.use("Agg")
FRUIT = list(CHINESE)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def predictions(names, photos=300):
    targets = [names[k % len(names)] for k in range(photos)]
    return made_up("photos", [f"{k}.jpg" for k in range(photos)], targets)


def drawn(ax):
    """The labels of the axes, after the figure is rendered as in a notebook."""
    ax.figure.canvas.draw()
    return [label.get_text() for axis in (ax.xaxis, ax.yaxis) for label in axis.get_ticklabels()]


def run(seed, accuracy, method="fine_tuning"):
    epochs = np.arange(1, 4)
    history = pd.DataFrame({"epoch": epochs, "val_accuracy": accuracy + 0.1 * epochs})
    table = predictions(FRUIT[:3], 60).assign(split="test")
    return Run("folder", Config(method=method, seed=seed).resolved(), True, history, {}, table, 1.0)


def test_a_run_that_was_stopped_in_its_first_epoch_is_drawn():
    only = pd.DataFrame({"epoch": [0], "val_accuracy": [0.5]})
    assert plots.comparison([replace(run(0, 0.5), history=only)]).lines[0].get_xdata().tolist() == [0]


def every_plot(names, root, paths):
    """One `Axes` of each function, by its name."""
    table = predictions(names)
    torch.manual_seed(0)
    model = create_model("resnet18", num_classes=2, weights=None)
    catalog = pd.DataFrame({"label": table["target"], "split": ["train", "val", "test"] * 100})
    history = pd.DataFrame({"epoch": [1, 2], "train_accuracy": [0.2, 0.5], "val_accuracy": [0.3, 0.4]})
    return {
        "class_counts": lambda ax: plots.class_counts(catalog, ax=ax),
        "contact_sheet": lambda ax: plots.contact_sheet(root, paths, names[: len(paths)], ax=ax),
        "learning_curves": lambda ax: plots.learning_curves(history, ax=ax),
        "heatmap": lambda ax: plots.heatmap(confusion_matrix(table), ax=ax),
        "per_class": lambda ax: plots.per_class(classification_report(table), ax=ax),
        "reliability": lambda ax: plots.reliability(metrics.reliability(table), ax=ax),
        "comparison": lambda ax: plots.comparison([run(0, 0.5), run(1, 0.4), run(0, 0.1, "from_scratch")], ax=ax),
        "grad_cam": lambda ax: plots.grad_cam(model, root / paths[0], ax=ax),
    }


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # files that other tests left open
@pytest.mark.parametrize("given", [True, False])
def test_each_plot_draws_into_the_axes_it_is_given_or_makes_its_own(make_photos, given):
    root = make_photos({"apple": 2})
    calls = every_plot(FRUIT, root, scan(root)["path"].tolist())
    functions = {name for name, value in vars(plots).items() if getattr(value, "__module__", "") == plots.__name__}
    assert {name for name in functions if not name.startswith("_")} == set(calls)
    for call in calls.values():
        own = plt.figure().add_subplot() if given else None
        ax = call(own)
        assert isinstance(ax, Axes) and (own is None or ax is own)
        drawn(ax)


def test_all_33_names_are_on_the_axes():
    table = predictions(FRUIT)
    for ax in (plots.heatmap(confusion_matrix(table)), plots.per_class(classification_report(table))):
        assert set(FRUIT) <= set(drawn(ax))


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # files that other tests left open
def test_chinese_names_are_drawn_where_a_font_has_them():
    if plots._cjk_font() is None:
        pytest.skip("no font here has Chinese letters (Debian: fonts-noto-cjk)")
    names = list(CHINESE.values())
    assert set(names) <= set(drawn(plots.heatmap(confusion_matrix(predictions(names)))))


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # files that other tests left open
def test_without_such_a_font_they_are_english_and_nothing_warns(monkeypatch):
    monkeypatch.setattr(plots, "_cjk_font", lambda: None)
    names = [*sorted(CHINESE.values())[:5], "某物"]
    labels = drawn(plots.heatmap(confusion_matrix(predictions(names))))
    assert {name for name, chinese in CHINESE.items() if chinese in names} <= set(labels)
    assert f"class {sorted(names).index('某物')}" in labels


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # files that other tests left open
def test_every_plot_of_classes_takes_chinese_names_and_dollars(make_photos):
    root = make_photos({"apple": 2})
    for call in every_plot(
        [*list(CHINESE.values())[:4], "$\\bad$", "a$b$c"], root, scan(root)["path"].tolist()
    ).values():
        drawn(call(None))


def test_captions_without_a_font_are_english(make_photos, monkeypatch):
    monkeypatch.setattr(plots, "_cjk_font", lambda: None)
    root = make_photos({"apple": 1})
    pictures = [
        np.asarray(plots.contact_sheet(root, ["apple/0.jpg"], [caption]).images[0].get_array())
        for caption in ("竹筍 here", "bambooshoots here", "梨 here")
    ]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no photos to show"):
        plots.contact_sheet(tmp_path, [], [])
    with pytest.raises(ValueError, match="no runs to compare"):
        plots.comparison([])


def test_seeds_share_a_colour_and_a_name():
    ax = plots.comparison([run(0, 0.5), run(1, 0.4), run(0, 0.1, "from_scratch")])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "fine_tuning, imagenet, lp_ft",
        "from_scratch, sgd_step, learning_rate=0.001",
    ]
    curves = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert curves[0].get_color() == curves[1].get_color() != curves[2].get_color()


def test_shares_are_shown_as_percentages():
    matrix = confusion_matrix(predictions(FRUIT[:3]), normalize="true")
    numbers = [text.get_text() for text in plots.heatmap(matrix).texts]
    assert numbers == [f"{100 * share:.0f}" for share in matrix.to_numpy().flatten()]
