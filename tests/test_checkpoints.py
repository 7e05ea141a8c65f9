import contextlib
import io
import os
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader

import cropkit.training.checkpoints as checkpoints
from cropkit import create_model, load_model, make_loaders, predict, scan, split
from cropkit.data import DamagedCheckpoint, files
from cropkit.models.surgery import HeadMismatch
from cropkit.training import save_model

NAMES = ["apple", "pear"]


def save(path, data):
    content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    files.replace_file(path, files.seal({"state": content}, {}), durable=True, keep_previous=True)


def load(path):
    return checkpoints._read_or_offer(path)[0]["state"].numpy().tobytes()


@pytest.fixture
def model():
    return create_model("mobilenet_v3_small", weights=None, num_classes=2)


def test_a_saved_model_predicts_the_same_with_nothing_else(model, tmp_path, make_photos):
    (tmp_path / "there").mkdir()
    save_model(model, tmp_path / "best.safetensors", NAMES, {"val_accuracy": 0.5})
    (tmp_path / "best.safetensors").rename(tmp_path / "there" / "mine.safetensors")
    again = load_model(tmp_path / "there" / "mine.safetensors")
    assert (again.arch, again.class_names, again.metrics) == ("mobilenet_v3_small", NAMES, {"val_accuracy": 0.5})
    assert again.preprocessing == model.preprocessing
    loader = make_loaders(split(scan(make_photos({"apple": 5, "pear": 5}))), again)["train"]
    assert predict(again, loader).equals(predict(model, loader))


def test_what_cannot_be_rebuilt_is_not_saved(model, tmp_path):
    with pytest.raises(HeadMismatch):
        save_model(model, tmp_path / "best.safetensors", ["apple", "pear", "plum"])
    with pytest.raises(ValueError, match="does not say what it is"):
        save_model(nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 2)), tmp_path / "best.safetensors", NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(tmp_path, damage):
    path = tmp_path / "last.safetensors"
    save(path, b"first " * 100)
    save(path, b"second" * 100)
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:50])
    with pytest.raises(DamagedCheckpoint, match=r"rename last\.safetensors\.previous to last\.safetensors"):
        load(path)
    os.replace(tmp_path / "last.safetensors.previous", path)
    assert load(path) == b"first " * 100


def test_without_a_whole_one_before_none_is_offered(tmp_path):
    save(tmp_path / "last.safetensors", b"first")
    (tmp_path / "last.safetensors").write_bytes(b"other")
    with pytest.raises(DamagedCheckpoint, match="Start anew"):
        load(tmp_path / "last.safetensors")


def test_a_model_file_of_another_make_is_refused(tmp_path):
    for content in (b"junk", safetensors.torch.save({"a": torch.zeros(1)})):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match=r"x\.safetensors: is damaged, or no file of cropkit's"):
            load_model(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(files.seal({"a": torch.zeros(1)}, {}))
    with pytest.raises(DamagedCheckpoint, match="no model that this version saved"):
        load_model(tmp_path / "x.safetensors")


SAVE = """
import sys
from pathlib import Path
import torch
from cropkit.data import files
for number in range(10**6):
    content = torch.full((2_000_000,), number % 256, dtype=torch.uint8)
    files.replace_file(Path(sys.argv[1]), files.seal({"state": content}, {}), durable=True, keep_previous=True)
    print(number, flush=True)
"""


def test_after_a_kill_in_the_middle_of_saving_a_whole_one_can_be_loaded(tmp_path):
    path = tmp_path / "last.safetensors"
    for delay in (0.0, 0.006, 0.015, 0.04):
        with subprocess.Popen([sys.executable, "-c", SAVE, str(path)], stdout=subprocess.PIPE) as process:
            process.stdout.readline()  # it saves now
            time.sleep(delay)
            process.kill()
        content = load(path)
        assert len(content) == 2_000_000
        assert len(set(content)) == 1


@pytest.mark.parametrize("cut", ["replace", "_sync"])
def test_a_kill_at_either_renaming_loses_nothing(tmp_path, monkeypatch, cut):
    """Every place between the steps of a saving, one after the other."""
    path = tmp_path / "last.safetensors"
    owner = os if cut == "replace" else files
    real = getattr(owner, cut)
    for place in range(4):
        save(path, b"old")
        calls = []

        def killed(*args, calls=calls, place=place):
            calls.append(args)
            if len(calls) > place:
                raise KeyboardInterrupt  # as a kill: nothing of the saving runs after it
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, cut, killed)
            with contextlib.suppress(KeyboardInterrupt):
                save(path, b"new")
        assert load(path) in (b"old", b"new")


def test_a_text_file_is_there_at_every_moment(tmp_path, monkeypatch):
    files.replace_text(tmp_path / "config.json", "old")
    real, seen = os.replace, []
    monkeypatch.setattr(os, "replace", lambda *args: seen.append((tmp_path / "config.json").exists()) or real(*args))
    files.replace_text(tmp_path / "config.json", "new")
    assert seen == [True] and [path.name for path in tmp_path.iterdir()] == ["config.json"]


FILL = """
import resource, sys
from pathlib import Path
from cropkit.data import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel refuses to write more
files.replace_file(Path(sys.argv[1]), b"new" * 1000, durable=True, keep_previous=True)
"""


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, b"old")
    ended = subprocess.run([sys.executable, "-c", FILL, str(path)], capture_output=True, text=True)
    assert ended.returncode == 1
    assert f"disk full: {path}" in ended.stderr
    assert load(path) == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]


def test_who_reads_while_another_saves_changes_nothing(tmp_path):
    path = tmp_path / "last.safetensors"
    save(path, b"old")
    save(path, b"new")
    path.rename(tmp_path / "aside")  # the writer is between its two renamings
    assert load(path) == b"old"
    assert not path.exists()


def test_other_batches_photos_or_classes_are_refused_before_the_first_step(tmp_path, make_photos, model):
    catalog = split(scan(make_photos({"apple": 10, "pear": 10})))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keeper = checkpoints.Checkpoint(tmp_path / "new" / "run", NAMES)
    keeper.attach(model, optimizer, None, make_loaders(catalog, model, batch_size=4)["train"])
    keeper.save()
    for change, said in (({"batch_size": 8}, "batch_size: 4 then, 8 now"), ({"seed": 1}, "seed: 0 then, 1 now")):
        loader = make_loaders(catalog, model, **({"batch_size": 4} | change))["train"]
        with pytest.raises(ValueError, match=said):
            keeper.attach(model, optimizer, None, loader)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: (torch.optim.SGD(m.parameters(), lr=0.05), None), r"group 0 lr: 0\.1 then, 0\.05 now"),
        (lambda m: (torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.5), None), r"group 0 momentum: 0\.9 then"),
        (lambda m: (torch.optim.AdamW(m.parameters(), lr=0.1), None), "optimizer: 'SGD' then, 'AdamW' now"),
        (lambda m: step(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), 3), "scheduler: None then"),
    ],
    ids=["rate", "momentum", "optimiser", "schedule"],
)
def test_another_optimiser_rate_or_schedule_is_refused_and_listed(tmp_path, make_photos, model, change, said):
    loader = make_loaders(split(scan(make_photos({"apple": 10, "pear": 10}))), model)["train"]
    keeper = checkpoints.Checkpoint(tmp_path, NAMES)
    keeper.attach(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None, loader)
    keeper.save()
    with pytest.raises(ValueError, match=said):
        keeper.attach(model, *change(model), loader)


def step(optimizer, size):
    return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, size)


def test_another_model_is_refused(tmp_path, make_photos, model):
    loader = make_loaders(split(scan(make_photos({"apple": 10, "pear": 10}))), model)["train"]
    keeper = checkpoints.Checkpoint(tmp_path, NAMES)
    keeper.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), None, loader)
    keeper.save()
    other = create_model("resnet18", weights=None, num_classes=2)
    with pytest.raises(ValueError, match=r"model: \['mobilenet_v3_small'.* then, \['resnet18'"):
        keeper.attach(other, torch.optim.SGD(other.parameters(), lr=0.1), None, loader)


def test_a_pickle_that_would_run_code_does_not(tmp_path, model):
    class Canary:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    packed = io.BytesIO()
    torch.save({"model": Canary()}, packed)
    keeper = checkpoints.Checkpoint(tmp_path / "run", NAMES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keeper.attach(model, optimizer, None, DataLoader([0]))
    content = torch.frombuffer(bytearray(packed.getvalue()), dtype=torch.uint8)
    files.replace_file(keeper.last, files.seal({"state": content}, keeper._facts))
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        keeper.attach(model, optimizer, None, DataLoader([0]))
    assert not (tmp_path / "canary").exists()
