"""The panel for runs: real child processes, and a panel that is made of folders alone."""

import json
import re
import time

import pytest
from filelock import FileLock

from cropkit import Config, panel, run_experiment, scan, split
from cropkit.experiments import LOCK, RECORD, read_runs
from cropkit.panels import LOG, OPENED, PROCESS, start, state_of, stop

QUICK = Config("mobilenet_v3_small", None, "feature_extraction", resolution=64)
LONG = Config("mobilenet_v3_small", None, "from_scratch", epochs=40, resolution=64, batch_size=4)


@pytest.fixture
def catalog(make_photos):
    return split(scan(make_photos({"apple": 10, "pear": 10})))


def wait_for(condition, within=120):
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def epochs_done(folder):
    lines = folder / "metrics.jsonl"
    return len(lines.read_text().splitlines()) - 1 if lines.exists() else -1


def buttons(box):
    found = {}

    def look(widget):
        if hasattr(widget, "on_click"):
            found[widget.description] = widget
        for child in getattr(widget, "children", ()):
            look(child)

    look(box)
    return found


def parts(box):
    columns, _, told, chosen, curve, pair, page = box.children
    controls = {one.description: one for column in columns.children for one in column.children}
    return controls, told, chosen, curve, pair.children[:2], page


def test_a_run_that_is_stopped_goes_on_and_ends_as_if_nobody_had_disturbed_it(catalog, tmp_path):
    whole = run_experiment(LONG, catalog, tmp_path / "whole")
    folder = start(LONG, catalog, tmp_path / "runs")
    assert state_of(folder) == "running"
    with pytest.raises(BlockingIOError, match="is trained already"):
        start(LONG, catalog, tmp_path / "runs")
    wait_for(lambda: epochs_done(folder) >= 2)
    stop(folder)
    assert state_of(folder) == "stopped" and 2 <= epochs_done(folder) < 40
    start(LONG, catalog, tmp_path / "runs")
    wait_for(lambda: state_of(folder) != "running")
    assert state_of(folder) == "finished", (folder / LOG).read_text()
    (run,) = read_runs(tmp_path / "runs")
    assert run.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    assert run.predictions.drop(columns="root").equals(whole.predictions.drop(columns="root"))


def test_the_panel_is_made_of_the_folders_alone(catalog, tmp_path):
    pytest.importorskip("ipywidgets")
    out = tmp_path / "runs"
    box = panel(catalog, out, base=QUICK)
    _, told, chosen, *_ = parts(box)
    buttons(box)["run"].click()
    assert "started" in told.value and chosen.value == QUICK.name
    buttons(box)["run"].click()
    assert "is trained already" in told.value
    wait_for(lambda: state_of(out / QUICK.name) != "running")
    assert state_of(out / QUICK.name) == "finished", (out / QUICK.name / LOG).read_text()
    again = panel(catalog, out, base=LONG)  # another kernel
    listed = parts(again)[2].options[0][0]
    assert listed.startswith("finished") and re.search(r"val \d", listed) and "test" not in listed
    buttons(again)["open the test"].click()
    assert "; test " in parts(again)[2].options[0][0]
    assert "when" in json.loads((out / QUICK.name / OPENED).read_text())
    assert parts(again)[0]["method"].value == "from_scratch"
    buttons(again)["clone"].click()
    fields = parts(again)[0]
    assert fields["method"].value == "feature_extraction" and fields["resolution"].value == "64"


def test_two_runs_are_compared_on_val_until_both_tests_are_open(catalog, tmp_path):
    pytest.importorskip("ipywidgets")
    out = tmp_path / "runs"
    runs = [run_experiment(Config(**(vars(QUICK) | {"seed": seed, "recipe": "sgd_step", "epochs": 1})), catalog, out)
            for seed in (0, 1)]  # fmt: skip
    box = panel(catalog, out)
    _, told, chosen, _, pair, page = parts(box)
    buttons(box)["compare"].click()
    assert "choose a run before" in told.value
    for one, run in zip(pair, runs, strict=True):
        one.value = run.folder.name
    buttons(box)["compare"].click()
    assert "McNemar" in page.value and told.value.startswith("the val photos")
    for run in runs:
        chosen.value = run.folder.name
        buttons(box)["open the test"].click()
    buttons(box)["compare"].click()
    assert told.value.startswith("the test photos")


def test_what_cannot_be_is_a_sentence_in_the_panel(catalog, tmp_path):
    pytest.importorskip("ipywidgets")
    box = panel(catalog, tmp_path / "runs", base=QUICK)
    controls, told, *_ = parts(box)
    for name, value, said in (
        ("epochs", "many", "epochs is 'many', but must be a number"),
        ("learning_rate", "-1", "learning_rate is -1.0, but must be above 0"),
        ("corrections", "none.csv", "no such file of corrections"),
    ):
        before = controls[name].value
        controls[name].value = value
        buttons(box)["run"].click()
        assert said in told.value.replace("&#x27;", "'")
        controls[name].value = before
    buttons(box)["stop"].click()
    assert "there is no run yet" in told.value
    with pytest.raises(OSError):
        (tmp_path / "file").write_text("")
        panel(catalog, tmp_path / "file" / "runs")


def test_a_child_that_fails_says_why_in_the_panel(catalog, tmp_path):
    pytest.importorskip("ipywidgets")
    unknown = Config("no_such_net", None, "feature_extraction")
    folder = start(unknown, catalog, tmp_path)
    wait_for(lambda: state_of(folder) != "running")
    curve = parts(panel(catalog, tmp_path))[3]
    assert "stopped: unknown architecture" in curve.value


def test_a_process_number_that_another_program_has_got_is_no_training(catalog, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    import os

    (folder / PROCESS).write_text(json.dumps({"pid": os.getpid(), "created": 0.0}))
    assert state_of(folder) == "stopped"


def test_a_run_that_a_cell_or_a_shell_trains_is_neither_stopped_nor_started_twice(catalog, tmp_path):
    pytest.importorskip("ipywidgets")
    folder = tmp_path / QUICK.name
    folder.mkdir()
    (folder / RECORD).write_text('{"finished": false}')
    with FileLock(folder / LOCK):
        assert state_of(folder) == "elsewhere"
        box = panel(catalog, tmp_path, base=QUICK)
        assert parts(box)[2].options[0][0].startswith("elsewhere")
        for button, said in (("stop", "is trained by a cell or a shell"), ("run", "is trained already")):
            buttons(box)[button].click()
            assert said in parts(box)[1].value
    assert state_of(folder) == "stopped"
