"""Real processes, started as a user starts them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from cropkit import Config
from cropkit.experiments import read_runs

SCRIPT = """
import sys
from pathlib import Path
import pandas as pd
import torch
from torch import nn, optim
import cropkit
from cropkit.models import freeze_batchnorm
from cropkit.training import processes as distributed
from cropkit.training.inference import answers

root, out = sys.argv[1:]
with distributed.processes():
    catalog = pd.read_pickle(Path(root).parent / "catalog.pkl")
    torch.manual_seed(distributed.rank())  # each process starts from weights of its own: the first one's must win
    model = cropkit.create_model("mobilenet_v3_small", num_classes=2, weights=None, resolution=64)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # each process would drop others
    freeze_batchnorm(model)
    loaders = cropkit.make_loaders(catalog, model, batch_size=8)
    history = cropkit.fit(model, loaders, optim.SGD(model.parameters(), lr=0.01, momentum=0.9), epochs=2)
    features = cropkit.extract_features(model, loaders["val"], cache=out + ".cache", precision="float32").tensors[0]
    again = cropkit.extract_features(model, loaders["val"], cache=out + ".cache", precision="float32").tensors[0]
    assert torch.equal(features, again)
    predictions = cropkit.predict(model, loaders["test"])
    seen = sum(len(targets) for _, targets in answers(model, loaders["test"], "float32", "count"))
    loss, accuracy = cropkit.evaluate(model, loaders["test"])
    # Statistics that move, and start otherwise in each process; photos read by processes of their own.
    moving = cropkit.create_model("mobilenet_v3_small", num_classes=2, weights=None, resolution=64)
    for buffer in moving.buffers():
        buffer.add_(distributed.rank())
    loaders = cropkit.make_loaders(catalog, moving, batch_size=8, num_workers=1)
    # Without val, so that it is the last epoch that stays, not the first one's start.
    cropkit.fit(moving, {"train": loaders["train"]}, optim.SGD(moving.parameters(), lr=0.01), epochs=1)
    moved = cropkit.evaluate(moving, loaders["val"])
    own = cropkit.predict(moving, loaders["val"])["p_apple"].tolist()
    told = (history, predictions, loss, accuracy, features, model.state_dict(), seen, moving.state_dict(), moved, own)
    torch.save(told, f"{out}.{distributed.rank()}")
"""
QUIET = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def torchrun(*arguments, processes=2, nodes=1, node=0, port=0):
    where = ["--standalone"] if nodes == 1 else [f"--nnodes={nodes}", f"--node-rank={node}", "--master-addr=127.0.0.1"]
    where += [] if nodes == 1 else [f"--master-port={port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={processes}", *arguments]
    return subprocess.Popen(command, env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(*running, within=240):
    """What each process wrote to stdout; all must end well."""
    outs = []
    for process in running:
        out, err = process.communicate(timeout=within)
        assert process.returncode == 0, err
        outs.append(out)
    return outs


def free_port():
    with contextlib.closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """21 training, 5 val and 7 test photos of two colours, with a catalog beside them."""
    import numpy as np
    from PIL import Image

    from cropkit import scan

    root, rng = tmp_path_factory.mktemp("ranks") / "photos", np.random.default_rng(0)
    counts = {"train": (11, 10), "val": (2, 3), "test": (4, 3)}
    for part, numbers in counts.items():
        for crop, count, colour in zip(("apple", "pear"), numbers, ("red", "green"), strict=True):
            (root / part / crop).mkdir(parents=True)
            for number in range(count):
                noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60))
                Image.blend(noise, Image.new("RGB", (80, 60), colour), 0.4).save(root / part / crop / f"{number}.jpg")
    scan(root).to_pickle(root.parent / "catalog.pkl")
    return root


@pytest.fixture(scope="module")
def alone(photos):
    """What one process comes to."""
    script, out = photos.parent / "train.py", str(photos.parent / "alone")
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, script, photos, out], env=QUIET, check=True)
    return torch.load(f"{out}.0", weights_only=False)


def check_equal(told, alone):
    history, predictions, loss, accuracy, features, weights, *_ = told
    expected, expected_predictions, expected_loss, expected_accuracy, expected_features, expected_weights, *_ = alone
    columns = ["train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    pd.testing.assert_frame_equal(history[columns], expected[columns], rtol=1e-3, atol=1e-4)
    for name, tensor in weights.items():
        assert torch.allclose(tensor, expected_weights[name], rtol=1e-3, atol=1e-4), name
    assert torch.allclose(features, expected_features, atol=1e-5)
    assert predictions["path"].tolist() == expected_predictions["path"].tolist()  # each once, in order
    assert predictions["predicted"].tolist() == expected_predictions["predicted"].tolist()
    assert (loss, accuracy) == pytest.approx((expected_loss, expected_accuracy), rel=1e-3)


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_several_processes_come_to_what_one_comes_to(photos, alone, processes):
    out = str(photos.parent / f"together{processes}")
    ended(torchrun(str(photos.parent / "train.py"), str(photos), out, processes=processes))
    each = [torch.load(f"{out}.{rank}", weights_only=False) for rank in range(processes)]
    for told in each:
        check_equal(told, alone)
    assert sum(told[6] for told in each) == alone[6] == 7  # every test photo by one process
    for told in each[1:]:
        assert all(torch.equal(tensor, told[7][name]) for name, tensor in each[0][7].items())  # statistics too
        assert told[8:] == each[0][8:]  # one model was evaluated


@pytest.mark.slow
def test_two_nodes_come_to_what_one_process_comes_to(photos, alone):
    out, port = str(photos.parent / "nodes"), free_port()
    script = str(photos.parent / "train.py")
    nodes = [torchrun(script, str(photos), out, processes=1, nodes=2, node=node, port=port) for node in range(2)]
    ended(*nodes)
    for rank in range(2):
        check_equal(torch.load(f"{out}.{rank}", weights_only=False), alone)


def options(photos, out, *more):
    tiny = ["--arch", "mobilenet_v3_small", "--weights", "None", "--batch-size", "8"]
    return ["-m", "cropkit", "train", "--data", str(photos), "--out", str(out), *tiny, *more]


def test_the_command_line_trains_and_predicts_together_and_prints_once(photos, tmp_path):
    method = ["--method", "feature_extraction", "--recipe", "sgd_step", "--epochs", "3", "--resolution", "64"]
    (out,) = ended(torchrun(*options(photos, tmp_path, *method)))
    told = json.loads(out)
    assert told["photos"] == 12  # val and test, each once
    alone = subprocess.run([sys.executable, *options(photos, tmp_path / "alone", *method)], env=QUIET, check=True)
    assert alone.returncode == 0
    tables = [read_runs(folder)[0].predictions for folder in (tmp_path, tmp_path / "alone")]
    assert tables[0]["path"].tolist() == tables[1]["path"].tolist()
    apart = tables[0].filter(like="p_") - tables[1].filter(like="p_")
    assert apart.abs().to_numpy().max() < 1e-3  # also from the second epoch on
    (out,) = ended(torchrun("-m", "cropkit", "predict", "--model", told["run"], "--data", str(photos)))
    assert len(out.splitlines()) == 1 + 33
    (out,) = ended(torchrun("-m", "cropkit", "evaluate", "--model", told["run"], "--data", str(photos), processes=3))
    assert json.loads(out)["photos"] == 7
    assert json.loads(out)["accuracy"] == told["test_accuracy"]


LONG = ["--method", "from_scratch", "--epochs", "40"]


def two_epochs_done(photos, out):
    """A training by two processes that has come so far, and where its epochs are recorded."""
    running = torchrun(*options(photos, out, *LONG))
    config = Config(method="from_scratch", arch="mobilenet_v3_small", batch_size=8, epochs=40)
    lines = out / config.name / "metrics.jsonl"
    wait_for(lambda: lines.exists() and len(lines.read_text().splitlines()) >= 2, running)
    return running, lines


@pytest.mark.slow
def test_where_one_process_is_killed_all_end_and_another_number_goes_on(photos, tmp_path):
    running, lines = two_epochs_done(photos, tmp_path)
    children = subprocess.run(
        ["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    start = time.monotonic()
    running.communicate(timeout=60)
    assert running.returncode != 0 and time.monotonic() - start < 60
    assert subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True).stdout == b""
    done = len(lines.read_text().splitlines())
    again = subprocess.Popen(
        [sys.executable, *options(photos, tmp_path, *LONG)], env=QUIET, stdout=subprocess.PIPE, text=True
    )
    assert json.loads(ended(again)[0])["photos"] == 12
    rows = pd.read_json(lines, lines=True)
    assert rows["epoch"].tolist() == list(range(41)) and done < 40


def test_sigterm_saves_after_the_same_step_in_all_and_goes_on(photos, tmp_path):
    running, lines = two_epochs_done(photos, tmp_path)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[1]), signal.SIGTERM)  # one is told, and all must stop where it stops
    running.communicate(timeout=60)
    assert running.returncode != 0
    assert lines.with_name("last.safetensors").exists()
    (out,) = ended(torchrun(*options(photos, tmp_path, *LONG)))
    assert json.loads(out)["photos"] == 12
    assert len(lines.read_text().splitlines()) == 41  # epoch 0 is the model as it came


OWN_CLOCKS = """
import sys
from cropkit.training import checkpoints, processes
from cropkit.__main__ import main
# Only the second process thinks that it is time to save: the first one's clock decides for all.
checkpoints.EVERY = -1.0 if sys.argv[1] == "first" else 1e9
if int(__import__("os").environ["RANK"]) == 1:
    checkpoints.EVERY = 1e9 if sys.argv[1] == "first" else -1.0
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("hasty", ["first", pytest.param("second", marks=pytest.mark.slow)])
def test_processes_whose_clocks_differ_save_together(photos, tmp_path, hasty):
    (tmp_path / "clocks.py").write_text(OWN_CLOCKS)
    command = options(photos, tmp_path / "runs", "--method", "from_scratch", "--epochs", "2")[2:]
    (out,) = ended(torchrun(str(tmp_path / "clocks.py"), hasty, *command), within=120)
    assert json.loads(out)["photos"] == 12


SLOW_VALIDATION = """
import sys, time
from pathlib import Path
import cropkit.training.loop as loop
from cropkit.__main__ import main
evaluate = loop.evaluate
def slow(*args):
    Path(sys.argv[1]).touch()
    time.sleep(4)
    return evaluate(*args)
loop.evaluate = slow
sys.exit(main(sys.argv[2:]))
"""


def test_sigterm_to_one_process_during_validation_ends_all_and_is_gone_on_with(photos, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_VALIDATION)
    validating, command = tmp_path / "validating", options(photos, tmp_path / "runs", *LONG)[2:]
    running = torchrun(str(tmp_path / "slow.py"), str(validating), *command)
    wait_for(validating.exists, running)
    children = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[1]), signal.SIGTERM)
    running.communicate(timeout=60)  # not the 24 hours for which a process waits for another
    assert running.returncode != 0
    config = Config(method="from_scratch", arch="mobilenet_v3_small", batch_size=8, epochs=40)
    rows = (tmp_path / "runs" / config.name / "metrics.jsonl").read_text().splitlines()
    assert len(rows) >= 1 and (tmp_path / "runs" / config.name / "last.safetensors").exists()


def test_an_error_in_one_process_ends_all(photos, tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "from cropkit.training import processes as distributed\n"
        "with distributed.processes():\n"
        "    if distributed.rank() == 1:\n"
        "        raise ValueError('only here')\n"
        "    distributed.wait_for_all()\n"
    )
    running = torchrun(str(script))
    _, err = running.communicate(timeout=60)
    assert running.returncode != 0 and "only here" in err


def test_more_processes_than_photos_in_a_batch_are_refused(photos, tmp_path):
    running = torchrun(*options(photos, tmp_path, "--method", "from_scratch", "--batch-size", "1"))
    _, err = running.communicate(timeout=120)
    assert running.returncode != 0
    assert "a batch of 1 photos cannot be shared out to 2 processes" in err


def wait_for(condition, running):
    for _ in range(1200):
        assert running.poll() is None, running.communicate()[1]
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it never came")
