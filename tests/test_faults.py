"""What can go wrong while a model trains: each test really does it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset, TensorDataset

from cropkit import create_model, evaluate, fit, load_model, make_loaders, predict, scan, split
from cropkit.data import BadPhoto
from cropkit.training import Checkpoint, train_one_epoch

NAMES = ["apple", "pear"]


@pytest.fixture
def catalog(make_photos):
    return split(scan(make_photos({"apple": 10, "pear": 10})))


def network():
    torch.manual_seed(0)
    return create_model("mobilenet_v3_small", weights=None, num_classes=2, resolution=64)


def loaders_of(targets):
    photos = torch.randn(len(targets), 2, generator=torch.Generator().manual_seed(0))
    return {"train": DataLoader(TensorDataset(photos, torch.tensor(targets)), 4)}


@pytest.mark.parametrize("target", [-100, -1, 3])
def test_a_class_index_that_the_model_lacks_is_refused(target):
    loaders, model = loaders_of([0, 1, 2, 0, 1, target]), nn.Linear(2, 3)
    with pytest.raises(ValueError, match=f"class index {target} is out of range.*0 to 2"):
        fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=1)
    with pytest.raises(ValueError, match=f"class index {target} is out of range"):
        evaluate(model, loaders["train"])


def test_a_loss_that_is_no_number_names_step_rate_and_photos_and_the_best_weights_stay(catalog, tmp_path):
    model = network()
    loaders = make_loaders(catalog, model, batch_size=4)
    keeper, calls = Checkpoint(tmp_path, NAMES), []

    def criterion(logits, targets):
        calls.append(len(targets))
        ruined = len([size for size in calls if size == 4]) == 6  # a step of the second epoch
        return nn.functional.cross_entropy(logits, targets) * (float("nan") if ruined else 1.0)

    optimizer = optim.SGD(model.parameters(), lr=0.25)
    with pytest.raises(
        FloatingPointError, match=r"nan in step \d of epoch 2 at learning rate 0\.25, on .*\.jpg"
    ) as told:
        fit(model, loaders, optimizer, epochs=3, criterion=criterion, checkpoint=keeper)
    order = loaders["train"].sampler.order(2)
    step = int(str(told.value).split("in step ")[1].split()[0])
    named = [loaders["train"].dataset.paths[index] for index in order[4 * step - 4 : 4 * step]]
    assert all(path in str(told.value) for path in named)
    assert load_model(keeper.best).metrics["epoch"] in (0, 1)  # before the epoch that ruined it


def test_a_batch_that_does_not_fit_into_memory_says_so_and_the_process_goes_on():
    class Greedy(nn.Linear):
        def forward(self, inputs):
            if self.training:
                torch.empty(10**15)  # a petabyte and more
            return super().forward(inputs)

    loaders, model = loaders_of([0, 1, 0, 1]), Greedy(2, 2)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(MemoryError, match=r"a batch of 4 photos does not fit.*batch_size, such as 2"):
        fit(model, loaders, optimizer, epochs=1)
    assert evaluate(model, loaders["train"])[0] > 0


class Broken(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        raise BadPhoto("apple/0.jpg", "is damaged")


def test_a_bad_photo_in_a_loader_process_is_not_taken_for_a_kill():
    model = network()
    with pytest.raises(RuntimeError, match=r"apple/0\.jpg: is damaged") as told:
        evaluate(model, DataLoader(Broken(), 2, num_workers=1))
    assert "num_workers=0" not in str(told.value)


class Killed(Dataset):
    """Ends the process that reads its sixth item, as the kernel does where memory runs out."""

    class_names, targets, paths = NAMES, [0] * 8, [f"{number}.jpg" for number in range(8)]
    roots = [""] * 8

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 224, 224), 0


@pytest.mark.parametrize(
    "use",
    [
        lambda model, loader: train_one_epoch(
            model, loader, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
        ),
        evaluate,
        predict,
    ],
    ids=["train", "evaluate", "predict"],
)
def test_a_killed_loader_process_is_an_error_with_its_cure(use):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"a process that reads photos was killed.*num_workers=0"):
        use(network(), DataLoader(Killed(), 2, num_workers=2))
    assert time.monotonic() - start < 60


def test_a_loader_process_killed_while_it_hands_over_a_batch_says_the_same():
    class Torn(Killed):
        def __getitem__(self, index):
            raise ConnectionResetError("Connection reset by peer")

    with pytest.raises(RuntimeError, match=r"(?s)a process that reads photos was killed.*num_workers=0"):
        evaluate(network(), DataLoader(Torn(), 2, num_workers=1))
    with pytest.raises(ConnectionResetError):  # no process that reads, so none that was killed
        evaluate(network(), DataLoader(Torn(), 2))


def test_ctrl_c_leaves_the_best_epoch_in_the_model_and_no_process(catalog):
    import psutil

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started this in the background
    model = network()
    loaders = make_loaders(catalog, model, batch_size=4, num_workers=2)
    others = set(psutil.Process().children())  # what earlier tests left in this process is not this one's
    seen = []

    def criterion(logits, targets):
        seen.append(len(targets))
        if len(seen) == 6:  # in the second epoch
            threading.Timer(0.0, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(5)  # here the signal arrives
        return nn.functional.cross_entropy(logits, targets)

    history = fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=50, criterion=criterion)
    assert history["epoch"].tolist() == [0, 1]
    assert evaluate(model, loaders["val"])[1] == history["val_accuracy"].max()
    end = time.monotonic() + 10
    while set(psutil.Process().children()) - others and time.monotonic() < end:
        time.sleep(0.1)
    assert not set(psutil.Process().children()) - others
    again = fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=1)
    assert again["epoch"].tolist() == [0, 1]


SPAWN = """
import sys, torch
from torch import multiprocessing, nn, optim
from cropkit import create_model, fit, make_loaders, scan, split
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    for workers in (0, 2):
        torch.manual_seed(0)
        model = create_model("mobilenet_v3_small", weights=None, num_classes=2, resolution=64)
        loaders = make_loaders(split(scan(sys.argv[1])), model, batch_size=4, num_workers=workers)
        history = fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=1)
        print(history["train_loss"][1], history["val_loss"][1])
"""


@pytest.mark.slow
def test_processes_that_are_spawned_give_the_same(catalog, tmp_path):
    (tmp_path / "train.py").write_text(SPAWN)
    command = [sys.executable, str(tmp_path / "train.py"), catalog["root"].iloc[0]]
    one, other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert one == other
