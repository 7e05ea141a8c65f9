import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import cropkit
from cropkit import (
    Config,
    compare_runs,
    experiments,
    load_model,
    make_loaders,
    predict,
    run_experiment,
    run_grid,
    scan,
    split,
)
from cropkit.data.files import read_sealed
from cropkit.experiments import LOCK, is_locked, read_runs
from cropkit.models import surgery
from cropkit.training import checkpoints, precision, resolve_precision

SIDE = 64  # pixels: as good as 224 for what is tested here, and ten times as fast
TINY = {"arch": "mobilenet_v3_small", "weights": None, "resolution": SIDE, "epochs": 2, "batch_size": 4}
SCRATCH = Config(method="from_scratch", **TINY)


@pytest.fixture
def catalog(make_photos):
    return split(scan(make_photos({"apple": 10, "pear": 10})))


def same(one, other):
    """Whether two runs agree bit for bit, the time column apart."""
    assert one.history.drop(columns="seconds", errors="ignore").equals(
        other.history.drop(columns="seconds", errors="ignore")
    )
    assert one.predictions.equals(other.predictions)
    assert (one.folder / "best.safetensors").read_bytes() == (other.folder / "best.safetensors").read_bytes()
    return True


@pytest.mark.parametrize(
    "config",
    [
        SCRATCH,
        Config(method="feature_extraction", **TINY),
        Config(method="feature_extraction", recipe="sgd_step", **TINY),
        Config(method="fine_tuning", **TINY),
        Config(method="fine_tuning", recipe="sgd_step", **TINY),
    ],
    ids=lambda config: config.name.rsplit("-", 2)[0],
)
def test_a_run_leaves_what_is_needed_and_is_repeated_bit_for_bit(catalog, tmp_path, config):
    run = run_experiment(config, catalog, tmp_path / "runs")
    assert run.finished
    record = json.loads((run.folder / "config.json").read_text())
    assert Config(**record["config"]) == config == run.config
    assert Config(**record["resolved"]) == config.resolved()
    assert record["environment"]["threads"] == torch.get_num_threads()
    training = "auto" if config.resolved().recipe != "sgd_step" else "float32"
    expected = {"features": False, "training": True}
    tried = cropkit.create_model(config.arch, num_classes=2, weights=None)
    assert record["precision"] == {
        use: resolve_precision(training if in_training else "auto", tried, training=in_training)
        for use, in_training in expected.items()
    }
    if "epoch" in run.history:
        assert run.history["epoch"].tolist() == [0, 1, 2]
    model = load_model(run.folder / "best.safetensors")
    told = predict(model, make_loaders(catalog, model)["test"])
    kept = run.predictions[run.predictions["split"] == "test"].reset_index(drop=True)
    assert kept["path"].tolist() == told["path"].tolist()
    assert kept["predicted"].tolist() == told["predicted"].tolist()
    assert run.metrics["test_accuracy"] == (kept["target"] == kept["predicted"]).mean()
    assert not (run.folder / "last.safetensors").exists()
    torch.rand(7)  # whatever the caller draws does not matter
    assert same(run, run_experiment(config, catalog, tmp_path / "again", num_workers=2))


def test_an_experiment_does_what_fine_tune_does(catalog, tmp_path):
    run = run_experiment(Config(**TINY), catalog, tmp_path)
    torch.manual_seed(0)
    model = cropkit.create_model("mobilenet_v3_small", weights=None, num_classes=2, resolution=SIDE)
    history = cropkit.fine_tune(model, make_loaders(catalog, model, batch_size=4), epochs=2)
    assert history["train_loss"][1:].tolist() == run.history["train_loss"][1:].tolist()


def test_a_finished_run_is_returned_at_once(catalog, tmp_path, monkeypatch):
    run = run_experiment(SCRATCH, catalog, tmp_path)
    monkeypatch.setattr(cropkit.experiments, "create_model", None)
    assert same(run, run_experiment(SCRATCH, catalog, tmp_path))


def test_another_config_has_another_folder():
    changes = [{"seed": 1}, {"epochs": 3}, {"batch_size": 8}, {"learning_rate": 0.01}, {"augment": False}]
    names = {Config(method="from_scratch", **(TINY | change)).name for change in [{}, *changes]}
    assert len(names) == 6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": "magic"}, "method 'magic'"),
        ({"recipe": "logistic"}, "none of fine_tuning's: lp_ft, sgd_step"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**70}, "below 2"),
        ({"epochs": 1.0}, "epochs is 1.0, but must be a whole number"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"resolution": 16}, "resolution is 16, but must be at least 32"),
        ({"resolution": "large"}, "resolution is 'large', but must be a whole number"),
        ({"mirror": "both"}, "mirror is 'both'"),
        ({"augment": "False"}, "augment is 'False', but must be True or False"),
    ],
)
def test_a_config_that_cannot_be_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        Config(**fields)


def test_other_data_and_other_classes_are_refused_and_listed(catalog, tmp_path):
    run_experiment(SCRATCH, catalog, tmp_path)
    fewer = catalog.drop(index=catalog.index[catalog["split"] == "train"][0])
    with pytest.raises(ValueError, match=r"something else \(photos: .*'train': 12.* then, .*'train': 11.* now"):
        run_experiment(SCRATCH, fewer, tmp_path)
    renamed = catalog.assign(label=catalog["label"].replace("pear", "plum"))
    with pytest.raises(ValueError, match=r"classes: \['apple', 'pear'\] then, \['apple', 'plum'\] now"):
        run_experiment(SCRATCH, renamed, tmp_path)


def test_another_recipe_model_or_batch_size_in_the_folder_is_refused(catalog, tmp_path):
    run = run_experiment(SCRATCH, catalog, tmp_path)
    other = Config(method="from_scratch", **(TINY | {"batch_size": 8}))
    shutil.copytree(run.folder, tmp_path / other.name)
    with pytest.raises(ValueError, match="batch_size: 4 then, 8 now"):
        run_experiment(other, catalog, tmp_path)


def test_other_starting_weights_of_the_same_name_are_refused(catalog, tmp_path, monkeypatch):
    model = cropkit.create_model("mobilenet_v3_small", weights=None, num_classes=2, resolution=SIDE)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    config = Config(**(TINY | {"weights": str(tmp_path / "own.pth"), "recipe": "sgd_step"}))
    monkeypatch.setattr(cropkit.experiments, "_train", interrupted)
    assert not run_experiment(config, catalog, tmp_path).finished
    monkeypatch.setattr(cropkit.experiments, "file_hash", lambda _: "the same")
    record = tmp_path / config.name / "config.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"weights_file": "the same"}))
    model.features[0][0].weight.data += 1
    torch.save(model.state_dict(), tmp_path / "own.pth")
    with pytest.raises(ValueError, match="starting_weights: "):
        run_experiment(config, catalog, tmp_path)


def test_a_finished_run_of_a_file_that_has_changed_is_not_returned(catalog, tmp_path):
    model = cropkit.create_model("mobilenet_v3_small", weights=None, num_classes=2, resolution=SIDE)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    config = Config(**(TINY | {"weights": tmp_path / "own.pth", "method": "feature_extraction"}))
    run_experiment(config, catalog, tmp_path)
    model.features[0][0].weight.data += 1
    torch.save(model.state_dict(), tmp_path / "own.pth")
    with pytest.raises(ValueError, match="weights_file: "):
        run_experiment(config, catalog, tmp_path)


def test_numbers_of_numpy_and_equal_configs_have_one_name():
    config = Config(learning_rate=np.float64(1), seed=np.int64(3), epochs=np.int32(2))
    assert config.name == Config(learning_rate=1, seed=3, epochs=2).name
    assert {type(config.learning_rate), type(config.seed), type(config.epochs)} == {float, int}


def test_the_order_of_the_rows_does_not_matter(catalog, tmp_path):
    config = Config(method="from_scratch", **(TINY | {"epochs": 1}))
    other = catalog.iloc[::-1]
    assert same(run_experiment(config, catalog, tmp_path / "a"), run_experiment(config, other, tmp_path / "b"))


def test_a_catalog_of_training_photos_alone_gives_a_run_without_predictions(catalog, tmp_path):
    config = Config(method="from_scratch", **(TINY | {"epochs": 1}))
    for _ in range(2):
        run = run_experiment(config, catalog[catalog["split"] == "train"], tmp_path)
        assert run.finished and len(run.predictions) == 0 and run.metrics == {}
        assert run.history["val_accuracy"].isna().all()


def test_a_damaged_record_is_named_and_one_that_is_lost_lets_nothing_old_in(catalog, tmp_path, monkeypatch):
    swapped = catalog.assign(label=catalog["label"].map({"apple": "pear", "pear": "apple"}))
    whole = run_experiment(SCRATCH, swapped, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(cropkit.experiments, "predict", interrupted)
        run = run_experiment(SCRATCH, catalog, tmp_path / "cut")
    assert not run.finished and len(run.history) == 3
    (run.folder / "config.json").write_text("")
    with pytest.raises(ValueError, match=r"config\.json: is damaged"):
        run_experiment(SCRATCH, catalog, tmp_path / "cut")
    (run.folder / "config.json").unlink()
    assert same(whole, run_experiment(SCRATCH, swapped, tmp_path / "cut"))


def interrupted(*_, **__):
    raise KeyboardInterrupt


TRAIN = """
import sys
import cropkit
from cropkit.training import checkpoints
from cropkit import Config, run_experiment, scan, split
root, out, workers, every, fields = sys.argv[1:]
checkpoints.EVERY = float(every)
save = checkpoints.Checkpoint._write_last
def told(self):
    save(self)
    print(self._state.epoch, self._state.batches, flush=True)
checkpoints.Checkpoint._write_last = told
if __name__ == "__main__":
    run_experiment(Config(**eval(fields)), split(scan(root)), out, num_workers=int(workers))
"""


def train(catalog, out, config, *, workers=0, every=0.0):
    """A process that trains, and prints epoch and batches whenever it has saved."""
    command = [
        sys.executable,
        "-c",
        TRAIN,
        catalog["root"].iloc[0],
        str(out),
        str(workers),
        str(every),
        repr(vars(config)),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def saved(process, times):
    for _ in range(times):
        assert process.stdout.readline()


@pytest.mark.parametrize(
    ("config", "workers", "then", "saves"),
    [(SCRATCH, 0, 2, 2), (SCRATCH, 2, 0, 5), (SCRATCH, 4, 2, 3), (Config(**TINY), 2, 0, 2)],
    ids=["sgd_step", "sgd_step to the epoch's end", "sgd_step of four", "lp_ft"],
)
def test_after_a_kill_the_same_call_ends_as_if_there_had_been_none(catalog, tmp_path, config, workers, then, saves):
    whole = run_experiment(config, catalog, tmp_path / "whole")
    with train(catalog, tmp_path / "cut", config, workers=workers) as process:
        saved(process, saves)
        os.killpg(process.pid, signal.SIGKILL)
    assert not json.loads((tmp_path / "cut" / config.name / "config.json").read_text())["finished"]
    again = run_experiment(config, catalog, tmp_path / "cut", num_workers=then)
    assert again.finished
    assert same(whole, again)


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_finishes_the_step_saves_and_has_its_own_exit_status(catalog, tmp_path, workers):
    whole = run_experiment(SCRATCH, catalog, tmp_path / "whole")
    with train(catalog, tmp_path / "cut", SCRATCH, workers=workers) as process:
        saved(process, 1)
        os.killpg(process.pid, signal.SIGTERM)  # to the processes that read photos as well
        assert process.wait(60) == 75
    assert (tmp_path / "cut" / SCRATCH.name / "last.safetensors").exists()
    assert same(whole, run_experiment(SCRATCH, catalog, tmp_path / "cut"))


def test_two_trainings_in_one_folder_are_refused_and_a_dead_one_blocks_nothing(catalog, tmp_path):
    with train(catalog, tmp_path, SCRATCH) as process:
        saved(process, 1)
        process.send_signal(signal.SIGSTOP)
        try:
            assert is_locked(tmp_path / SCRATCH.name)
            with pytest.raises(BlockingIOError, match="another process trains in it"):
                run_experiment(SCRATCH, catalog, tmp_path)
        finally:  # a stopped process would be waited for without end
            os.killpg(process.pid, signal.SIGKILL)
    assert not is_locked(tmp_path / SCRATCH.name)
    assert run_experiment(SCRATCH, catalog, tmp_path).finished


def test_a_look_at_the_lock_refuses_no_run_that_starts_meanwhile(catalog, tmp_path):
    config = Config("mobilenet_v3_small", None, "feature_extraction", resolution=64)
    (tmp_path / config.name).mkdir()
    look = FileLock(tmp_path / config.name / LOCK, thread_local=False)
    look.acquire()
    threading.Timer(0.3, look.release).start()
    assert run_experiment(config, catalog, tmp_path).finished


def test_ctrl_c_returns_what_there_is_and_the_next_call_goes_on(catalog, tmp_path, monkeypatch):
    whole = run_experiment(SCRATCH, catalog, tmp_path / "whole")
    evaluate, calls = cropkit.training.loop.evaluate, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:  # of the second epoch
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(cropkit.training.loop, "evaluate", interrupted)
    before = children()  # earlier tests in this process may have left some
    run = run_experiment(SCRATCH, catalog, tmp_path / "cut", num_workers=2)
    assert not run.finished
    assert run.history["epoch"].tolist() == [0, 1]
    assert load_model(run.folder / "best.safetensors").metrics["epoch"] in (0, 1)
    assert no_new_children(before)
    assert same(whole, run_experiment(SCRATCH, catalog, tmp_path / "cut"))


@pytest.mark.parametrize("parts", [{"train", "val", "test"}, {"train", "test"}])
def test_ctrl_c_before_the_first_epoch_is_done_finishes_nothing(catalog, tmp_path, monkeypatch, parts):
    some = catalog[catalog["split"].isin(parts)]
    with monkeypatch.context() as patch:
        patch.setattr(cropkit.training.loop, "evaluate" if "val" in parts else "train_one_epoch", interrupted)
        run = run_experiment(SCRATCH, some, tmp_path)
    assert not run.finished and run.history.empty
    assert run_experiment(SCRATCH, some, tmp_path).history["epoch"].max() == 2


def children():
    import psutil

    return {child.pid for child in psutil.Process().children()}


def no_new_children(before):
    """Whether no process is left but those from before; a moment is given to those that are ending."""
    deadline = time.monotonic() + 10
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    return not children() - before


def test_a_folder_that_cannot_be_written_is_found_before_the_first_epoch(catalog, tmp_path, monkeypatch):
    (tmp_path / "runs").write_text("a file where a folder should be")
    monkeypatch.setattr(cropkit.experiments, "create_model", None)
    with pytest.raises(OSError, match="runs"):
        run_experiment(SCRATCH, catalog, tmp_path / "runs")


def test_a_full_disk_keeps_what_was_saved_and_the_next_call_goes_on(catalog, tmp_path, monkeypatch):
    whole = run_experiment(SCRATCH, catalog, tmp_path / "whole")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
    monkeypatch.setitem(globals(), "TRAIN", limit + TRAIN)
    with train(catalog, tmp_path / "cut", SCRATCH) as process:
        _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "disk full" in error
    assert same(whole, run_experiment(SCRATCH, catalog, tmp_path / "cut"))


HEAD = Config(method="feature_extraction", recipe="sgd_step", **TINY)


def test_a_grid_runs_every_combination_and_repeats_none(catalog, tmp_path):
    runs = run_grid(HEAD, catalog, tmp_path, method=["feature_extraction", "from_scratch"], seed=range(2))
    methods = [(run.config.method, run.config.recipe, run.config.seed) for run in runs]
    first, second = ("feature_extraction", "sgd_step"), ("from_scratch", "sgd_step")
    assert methods == [(*first, 0), (*first, 1), (*second, 0), (*second, 1)]
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/*.safetensors"))]
    again = run_grid(HEAD, catalog, tmp_path, method=["feature_extraction", "from_scratch"], seed=range(2))
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/*.safetensors"))] == times
    assert all(same(one, other) for one, other in zip(runs, again, strict=True))


def test_a_field_that_cannot_be_is_found_before_a_grid_trains(catalog, tmp_path):
    with pytest.raises(ValueError, match="epochs is 0"):
        run_grid(HEAD, catalog, tmp_path, epochs=[1, 0])
    assert not any(tmp_path.glob("*/config.json"))


def test_a_grid_stops_where_it_is_interrupted_and_goes_on(catalog, tmp_path, monkeypatch):
    monkeypatch.setattr(cropkit.experiments, "predict", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    runs = run_grid(HEAD, catalog, tmp_path, seed=range(3))
    assert [run.finished for run in runs] == [False]
    monkeypatch.undo()
    assert compare_runs(tmp_path)["test_accuracy"].isna().all()
    runs = run_grid(HEAD, catalog, tmp_path, seed=range(3))
    assert [run.finished for run in runs] == [True] * 3


def test_runs_are_compared_by_val_with_what_they_differ_in(catalog, tmp_path):
    runs = run_grid(HEAD, catalog, tmp_path, learning_rate=[1e-6, 0.5], epochs=[2])
    table = compare_runs(tmp_path)
    scores = ["val_accuracy", "test_accuracy", "low", "high", "weighted_precision", "lowest_f1", "seconds"]
    assert list(table) == ["method", "learning_rate", *scores]
    assert table["val_accuracy"].is_monotonic_decreasing
    for run in runs:
        row = table.loc[run.folder.name]
        assert row["learning_rate"] == run.config.learning_rate
        assert row["test_accuracy"] == run.metrics["test_accuracy"]
        test = run.predictions[run.predictions["split"] == "test"]
        assert (row["low"], row["high"]) == cropkit.evaluation.bootstrap_interval(test)
        assert row["weighted_precision"] == cropkit.evaluation.weighted_precision(test)
        assert row["lowest_f1"] == cropkit.evaluation.lowest_f1(test)
        assert row["seconds"] == run.seconds >= run.history["seconds"].sum()
    read = read_runs(tmp_path)
    assert {run.folder.name: run.config for run in read} == {run.folder.name: run.config for run in runs}
    assert all(same(run, {r.folder: r for r in read}[run.folder]) for run in runs)


def test_a_grid_from_scratch_has_weights_for_the_other_methods(catalog, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cropkit.experiments, "run_experiment", lambda config, *_, **__: asked.append(config) or first)
    first = read_runs(run_experiment(HEAD, catalog, tmp_path).folder.parent)[0]
    run_grid(Config(method="from_scratch"), catalog, tmp_path, method=["from_scratch", "fine_tuning"])
    assert [config.resolved().weights for config in asked] == [None, "imagenet"]
    with pytest.raises(ValueError, match=r"a grid needs a list of values: seed=\[3\]"):
        run_grid(SCRATCH, catalog, tmp_path, seed=3)


def test_runs_on_other_photos_are_not_compared(catalog, tmp_path):
    run_experiment(HEAD, catalog, tmp_path)
    fewer = catalog[catalog["path"] != catalog.loc[catalog["split"] == "test", "path"].iloc[0]]
    run_experiment(replace(HEAD, seed=1), fewer, tmp_path)
    with pytest.raises(ValueError, match="saw other photos, or another split"):
        compare_runs(tmp_path)


@pytest.mark.parametrize("content", ['{"model_type": "bert"}', "[1]", '{"config": {"lr": 1}}', '{"config": {}}', "{"])
def test_a_folder_that_is_no_run_is_named(catalog, tmp_path, content):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text(content)
    with pytest.raises(ValueError, match="foreign"):
        read_runs(tmp_path)


def test_a_run_that_lost_its_predictions_is_named(catalog, tmp_path):
    run = run_experiment(HEAD, catalog, tmp_path)
    (run.folder / "predictions.csv").unlink()
    with pytest.raises(ValueError, match=r"its predictions\.csv is gone"):
        compare_runs(tmp_path)


def test_photos_that_moved_are_found_when_the_run_is_asked_for_again(catalog, tmp_path):
    run_experiment(HEAD, catalog, tmp_path / "runs")
    root = Path(catalog["root"].iloc[0])
    moved = root.rename(root.with_name("moved"))
    run_experiment(HEAD, catalog.assign(root=str(moved)), tmp_path / "runs")
    assert set(read_runs(tmp_path / "runs")[0].predictions["root"]) == {str(moved)}


def test_a_folder_without_runs_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        compare_runs(tmp_path)


def test_predictions_of_a_run_know_their_photos(catalog, tmp_path):
    run = run_experiment(HEAD, catalog, tmp_path)
    for predictions in (run.predictions, read_runs(tmp_path)[0].predictions):
        assert cropkit.explore(predictions).html.count("max-width:160px") == len(predictions)


def test_precision_is_resolved_by_rule_recorded_and_travels_with_the_model(catalog, tmp_path, monkeypatch):
    config = Config(method="feature_extraction", precision="bfloat16", resolution=SIDE)
    run = run_experiment(config, catalog, tmp_path)
    record = json.loads((run.folder / "config.json").read_text())
    assert record["precision"] == {"features": "bfloat16", "training": "bfloat16"}
    model = load_model(run.folder)
    assert model.precision == "bfloat16"
    loader = make_loaders(catalog, model)["test"]
    kept = run.predictions[run.predictions["split"] == "test"].astype(dict.fromkeys(["p_apple", "p_pear"], "float32"))
    again = predict(model, loader)
    assert np.array_equal(kept.filter(like="p_"), again.filter(like="p_"))
    model.precision = "float32"  # what the head was not fitted in
    assert not np.array_equal(predict(model, loader).filter(like="p_"), again.filter(like="p_"))
    monkeypatch.setenv("CROPKIT_PRECISION", "bfloat16")
    assert resolve_precision("auto", model, training=True) == "bfloat16"
    assert resolve_precision("float32", model, training=True) == "float32"
    monkeypatch.delenv("CROPKIT_PRECISION")
    for native in (True, False):
        monkeypatch.setattr(precision, "_cpu_computes_bfloat16", lambda native=native: native)
        depthwise, dense = model, cropkit.create_model("resnet18", weights=None)
        assert resolve_precision("auto", depthwise, training=True) == "float32"
        assert resolve_precision("auto", depthwise, training=False) == ("bfloat16" if native else "float32")
        assert resolve_precision("auto", dense, training=True) == ("bfloat16" if native else "float32")


def test_seconds_include_what_came_before_an_interruption(catalog, tmp_path, monkeypatch):
    train_one_epoch = cropkit.training.loop.train_one_epoch

    def slow(*args, **kwargs):
        if kwargs["state"].epoch == 2:
            time.sleep(4)  # after the last saving
            raise KeyboardInterrupt
        return train_one_epoch(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(cropkit.training.loop, "train_one_epoch", slow)
        before = time.monotonic()
        assert not run_experiment(SCRATCH, catalog, tmp_path).finished
    run = run_experiment(SCRATCH, catalog, tmp_path)
    assert run.seconds > time.monotonic() - before - 2  # both calls, but for what comes before the training


def test_seconds_survive_a_kill(catalog, tmp_path):
    with train(catalog, tmp_path, SCRATCH) as process:
        saved(process, 2)
        os.killpg(process.pid, signal.SIGKILL)
    keeper = checkpoints.Checkpoint(tmp_path / SCRATCH.name, ["apple", "pear"])
    _, facts = read_sealed(keeper.last)
    assert facts["batch_size"] == 4
    before = time.monotonic()
    run = run_experiment(SCRATCH, catalog, tmp_path)
    assert run.seconds > time.monotonic() - before  # more than this call alone took


def test_a_method_can_be_replaced_without_keeping_what_belonged_to_the_other():
    scratch = Config(method="from_scratch")
    assert scratch.resolved().weights is None
    tuned = replace(scratch, method="fine_tuning")
    assert tuned.name == Config().name and tuned.resolved().weights == "imagenet"
    assert replace(Config(), method="feature_extraction").resolved().recipe == "logistic"
    assert Config(weights=None, method="from_scratch").name == scratch.name


@pytest.mark.parametrize(
    ("fields", "side", "mirror"),
    [
        ({"method": "feature_extraction", "resolution": "auto"}, 256, False),
        ({"method": "feature_extraction", "recipe": "sgd_step", "resolution": "auto", "mirror": True}, 224, True),
        ({"method": "feature_extraction", "resolution": None, "mirror": True}, 224, True),
        ({"method": "fine_tuning", "resolution": 128, "mirror": True}, 128, True),
        ({"method": "fine_tuning", "resolution": "auto"}, 224, False),
    ],
)
def test_resolution_and_mirror_are_recorded_and_travel_with_the_model(catalog, tmp_path, fields, side, mirror):
    run = run_experiment(Config(**(TINY | fields | {"epochs": 1})), catalog, tmp_path)
    model = load_model(run.folder)
    assert (model.preprocessing["crop_size"], model.mirror) == (side, mirror)
    assert json.loads((run.folder / "config.json").read_text())["preprocessing"] == model.preprocessing
    test = run.predictions[run.predictions["split"] == "test"].reset_index(drop=True)
    again = predict(model, Path(catalog["root"].iloc[0])).set_index("path").loc[test["path"]]
    assert again["predicted"].tolist() == test["predicted"].tolist()
    assert np.allclose(again["probability"], test["probability"], atol=1e-6)


def test_a_network_for_pictures_of_one_size_keeps_it_where_nobody_chose(catalog):
    config = Config(arch="vit_b_32", weights=None, method="feature_extraction").resolved()
    assert config.resolution == "auto"
    assert cropkit.experiments._create(config, 2).preprocessing["crop_size"] == 224
    with pytest.raises(ValueError, match="could not classify one blank photo"):
        cropkit.experiments._create(replace(config, resolution=256), 2)


def test_a_run_passes_at_most_two_blank_photos_through_the_model(catalog, tmp_path, monkeypatch):
    blank, passes = surgery._try_forward, []
    monkeypatch.setattr(surgery, "_try_forward", lambda model: passes.append(1) or blank(model))
    run_experiment(Config(**TINY), catalog, tmp_path)
    assert len(passes) <= 2


@pytest.fixture
def with_crosshairs(tmp_path):
    """Photos of noise with a bright square for apple, a dark one for pear, at the crosshair; and the table of these."""
    rng, rows = np.random.default_rng(0), ["Img,target_x,target_y"]
    for crop, value in (("apple", 255), ("pear", 0)):
        (tmp_path / "photos" / crop).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(100, 156, (120, 160, 3), dtype=np.uint8)
            column, row = int(rng.integers(20, 140)), int(rng.integers(20, 100))
            pixels[row - 15 : row + 15, column - 15 : column + 15] = value
            name = f"{crop}{number}.png"
            Image.fromarray(pixels).save(tmp_path / "photos" / crop / name)
            rows.append(f"{name},{column - 80},{60 - row}")
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    return tmp_path / "photos", tmp_path / "tags.csv"


def test_a_run_that_looks_round_the_crosshair_predicts_so_from_loader_folder_and_saved_model(with_crosshairs, tmp_path):
    root, tags = with_crosshairs
    catalog, _ = cropkit.prepare(root, metadata=tags)
    config = Config("mobilenet_v3_small", None, "feature_extraction", resolution=SIDE, cut=0.25, around="crosshair")
    run = run_experiment(config, catalog, tmp_path / "runs")
    model = load_model(run.folder)
    loaders = make_loaders(catalog, model)
    assert loaders["val"].dataset[0][0].flatten(1).std(dim=1).max() < 0.02  # nothing but the square, of one colour
    expected = run.predictions.query("split == 'test'").set_index("path")
    by_loader = predict(model, loaders["test"]).set_index("path")
    by_folder = predict(model, root, metadata=tags).set_index("path").loc[expected.index]
    for table in (by_loader, by_folder):
        assert np.allclose(table["p_apple"], expected["p_apple"], atol=1e-6)
    unseen = experiments.predict_unseen(run.folder, root, metadata=tags).set_index("path").loc[expected.index]
    assert np.allclose(unseen["p_apple"], expected["p_apple"], atol=1e-6)
    with pytest.raises(ValueError, match=r"looks round the crosshair.*metadata="):
        predict(model, root)
    other = catalog.assign(target_x=catalog["target_x"].iloc[::-1].to_numpy())
    with pytest.raises(ValueError, match="crosshairs"):  # the same photos, but another table of targets
        run_experiment(config, other, tmp_path / "runs")
    with pytest.raises(ValueError, match=r"no column target_x and no target_y"):
        run_experiment(config, catalog.drop(columns=["target_x", "target_y"]), tmp_path / "runs")


def test_a_cut_at_the_centre_needs_no_table_and_is_another_picture(catalog, tmp_path):
    whole = Config("mobilenet_v3_small", None, "feature_extraction", resolution=SIDE)
    runs = [run_experiment(replace(whole, cut=cut), catalog, tmp_path) for cut in (1.0, 0.6)]
    assert runs[0].folder != runs[1].folder
    models = [load_model(run.folder) for run in runs]
    photos = [make_loaders(catalog, model)["val"].dataset[0][0] for model in models]
    assert photos[0].shape == photos[1].shape and not torch.equal(*photos)
    assert "cut" not in models[0].preprocessing
    file = make_loaders(catalog, models[1])["val"].dataset.file(0)
    assert torch.allclose(cropkit.data.transforms_for(models[1])(cropkit.open_photo(file)), photos[1], atol=0.1)
    assert predict(models[1], catalog["root"][0])["path"].is_unique


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cut": 0}, "cut is 0, but must be from 0.1 to 1"),
        ({"cut": None}, "cut is None"),
        ({"cut": 0.5, "around": "middle"}, "around is 'middle'"),
        ({"around": "crosshair"}, "a cut of 1 takes the whole photo"),
    ],
)
def test_a_cut_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Config(**wrong)
