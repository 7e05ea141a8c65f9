import copy
import math
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, Subset, TensorDataset

from cropkit import (
    create_model,
    evaluate,
    extract_features,
    fine_tune,
    fit,
    fit_head,
    freeze_backbone,
    make_loaders,
    predict,
    reset_classifier,
    scan,
    split,
)
from cropkit.models.surgery import HeadMismatch
from cropkit.training import recipes, resolve_precision
from cropkit.training.features import features_for_head


def points(count=60, seed=0):
    """Three classes of points on a plane, well apart."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 3
    centres = torch.tensor([[0.0, 4.0], [4.0, -4.0], [-4.0, -4.0]])
    return TensorDataset(centres[targets] + torch.randn(count, 2, generator=generator), targets)


@pytest.fixture
def loaders():
    torch.manual_seed(0)
    return {"train": DataLoader(points(), 8, shuffle=True), "val": DataLoader(points(30, 1), 8)}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))


def test_fit_learns_and_reports_one_row_an_epoch(loaders):
    model = network()
    history = fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=5)
    assert history["epoch"].tolist() == [0, 1, 2, 3, 4, 5]
    assert history["val_accuracy"].max() > 0.9
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[1]
    assert history.loc[0, ["learning_rate", "train_loss", "train_accuracy"]].isna().all()


def test_a_training_that_only_makes_it_worse_leaves_the_model_as_it_came(loaders):
    model = network()
    fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=8)
    before, start = copy.deepcopy(model.state_dict()), evaluate(model, loaders["val"])
    history = fit(model, loaders, optim.SGD(model.parameters(), lr=20.0), epochs=2)
    assert history["val_accuracy"][1:].max() < start[1]
    assert (history["val_loss"][0], history["val_accuracy"][0]) == start
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fit_leaves_the_best_weights_not_the_last(loaders):
    model = network()
    history = fit(model, loaders, optim.SGD(model.parameters(), lr=3.0, momentum=0.9), epochs=8)
    assert history["val_accuracy"].iloc[-1] < history["val_accuracy"].max()  # it did get worse again
    assert evaluate(model, loaders["val"])[1] == history["val_accuracy"].max()


def test_of_epochs_of_one_accuracy_the_one_of_least_loss_is_the_best(loaders):
    model = network()
    history = fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=20)
    best = history[history["val_accuracy"] == history["val_accuracy"].max()]
    assert len(best) > 1 and best["val_loss"].idxmin() != best.index[0]
    assert evaluate(model, loaders["val"])[0] == best["val_loss"].min()


def test_learning_rate_follows_the_diarys_schedule(loaders):
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    history = fit(model, loaders, optimizer, scheduler=optim.lr_scheduler.StepLR(optimizer, 7, 0.1), epochs=25)
    rates = history["learning_rate"][1:]  # after epoch 0, the model as it came
    assert rates.round(9).tolist() == [1e-3] * 7 + [1e-4] * 7 + [1e-5] * 7 + [1e-6] * 4


def test_fit_without_a_val_loader_keeps_the_last_epoch(loaders):
    model = network()
    history = fit(model, {"train": loaders["train"]}, optim.SGD(model.parameters(), lr=0.1), epochs=2)
    assert history["val_accuracy"].isna().all()
    assert len(history) == 2


def test_loss_does_not_depend_on_the_batch_size():
    data, model = points(25), network()
    losses = [evaluate(model, DataLoader(data, size)) for size in (1, 8, 25)]
    assert max(loss for loss, _ in losses) - min(loss for loss, _ in losses) < 1e-6
    assert len({accuracy for _, accuracy in losses}) == 1


def test_training_loss_counts_every_photo_once():
    data, model = points(9), network()
    model[1], model[2] = nn.Identity(), nn.Identity()  # without BatchNorm and dropout, training and evaluation agree
    model[:-1].requires_grad_(False)
    expected, _ = evaluate(model, DataLoader(data, 9))
    history = fit(model, {"train": DataLoader(data, 4)}, optim.SGD(model[-1].parameters(), lr=0.0), epochs=1)
    assert math.isclose(history["train_loss"].iloc[0], expected, rel_tol=1e-6)


def test_evaluate_uses_eval_mode_and_leaves_every_mode_as_it_was(loaders):
    model = network().train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    assert evaluate(model, loaders["val"]) == evaluate(model, loaders["val"])
    assert model.training and not model[1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_infinite_loss_stops_and_names_the_learning_rate(loaders):
    model = network()
    with pytest.raises(FloatingPointError, match=r"learning rate 1e\+30"):
        fit(model, loaders, optim.SGD(model.parameters(), lr=1e30), epochs=3)


@pytest.fixture
def photos(make_photos):
    return split(scan(make_photos({"apple": 8, "pear": 8})))


@pytest.fixture(scope="module")
def resnet():
    return create_model("resnet18", weights=None, resolution=64)  # small photos, so that it is fast


def test_head_is_checked_before_the_first_step(resnet, photos):
    loaders = make_loaders(photos, resnet)
    before = copy.deepcopy(resnet.state_dict())
    for call in (
        lambda: fit(resnet, loaders, optim.SGD(resnet.parameters(), lr=0.1), epochs=1),
        lambda: predict(resnet, loaders["test"]),
    ):
        with pytest.raises(HeadMismatch, match="1000 outputs"):
            call()
    assert all(torch.equal(tensor, before[name]) for name, tensor in resnet.state_dict().items())


def test_optimiser_of_other_weights_is_refused(resnet, photos):
    model = copy.deepcopy(resnet)
    stale = optim.SGD(model.parameters(), lr=0.1)
    reset_classifier(model, 2)
    loaders = make_loaders(photos, model)
    with pytest.raises(ValueError, match=r"lacks 2 trainable weights of the model \(fc\.weight, fc\.bias\)"):
        fit(model, loaders, stale, epochs=1)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="all are frozen"):
        fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=1)


def test_fit_moves_only_the_head_of_a_frozen_model(resnet, photos):
    model = copy.deepcopy(resnet)
    head = reset_classifier(model, 2)
    freeze_backbone(model)
    before = copy.deepcopy(model.state_dict())
    loaders = {"train": make_loaders(photos, model)["train"]}  # without val the last epoch stays, whatever it is worth
    fit(model, loaders, optim.SGD(head.parameters(), lr=0.1), epochs=1)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved == ["fc.weight", "fc.bias"]


def test_predict_describes_every_photo_in_order_even_of_a_shuffled_loader(resnet, photos):
    model = copy.deepcopy(resnet)
    reset_classifier(model, 2)
    loader = make_loaders(photos, model, batch_size=4, augment=False)["train"]
    table = predict(model, loader)
    assert table["path"].tolist() == loader.dataset.paths
    assert table["target"].tolist() == [path.split("/")[0] for path in table["path"]]
    assert table[["p_apple", "p_pear"]].sum(axis=1).sub(1).abs().max() < 1e-5
    assert (table["probability"] == table[["p_apple", "p_pear"]].max(axis=1)).all()
    loss, accuracy = evaluate(model, loader)
    assert math.isclose(table["loss"].mean(), loss, rel_tol=1e-4)
    assert (table["target"] == table["predicted"]).mean() == accuracy


FREED = """
import resource, sys, torch
threads = torch.get_num_threads()
import cropkit, cropkit.course
assert torch.get_num_threads() == threads
from cropkit.training.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_reused_once_it_is_asked_for_and_not_by_importing():
    def faults(how):
        done = subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert 20 * faults("kept") < faults("as it comes")


def test_subsets_are_checked_too_and_predict_says_what_it_needs(resnet, photos):
    loaders = make_loaders(photos, resnet)
    part = DataLoader(Subset(loaders["train"].dataset, range(4)), 2)
    with pytest.raises(HeadMismatch):
        fit(resnet, {"train": part}, optim.SGD(resnet.parameters(), lr=0.1), epochs=1)
    with pytest.raises(ValueError, match=r"make_loaders.*not a Subset"):
        predict(resnet, part)


def test_schedulers_that_fit_cannot_step_are_refused_before_the_first_epoch(loaders):
    model = network()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    other = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="drives another optimiser"):
        fit(model, loaders, optimizer, scheduler=optim.lr_scheduler.StepLR(other, 7), epochs=1)
    with pytest.raises(ValueError, match="plateau"):
        fit(model, loaders, optimizer, scheduler=optim.lr_scheduler.ReduceLROnPlateau(optimizer), epochs=1)
    with pytest.raises(ValueError, match="epochs is 0"):
        fit(model, loaders, optimizer, epochs=0)


def test_a_last_step_that_ruins_the_weights_is_noticed(loaders):
    model = network()
    one = {"train": [next(iter(loaders["train"]))]}  # no second batch whose loss would show it
    one["train"] = DataLoader(TensorDataset(*one["train"][0]), 1000)
    with pytest.raises(FloatingPointError, match="finite after epoch 1"):
        fit(model, one, optim.SGD(model.parameters(), lr=float("inf")), epochs=1)


def test_a_single_last_photo_is_not_a_batch(resnet, make_photos, tmp_path):
    root = make_photos({"train/apple": 5, "train/pear": 4, "val/apple": 9}, tmp_path / "nine")
    loaders = make_loaders(scan(root), resnet, batch_size=4)
    assert [len(targets) for _, targets in loaders["train"]] == [4, 4]
    assert [len(targets) for _, targets in loaders["val"]] == [4, 4, 1]


def test_a_catalog_without_its_folder_says_so(resnet, photos):
    with pytest.raises(ValueError, match="has no column 'root'"):
        make_loaders(photos.drop(columns="root"), resnet)


def test_fine_tune_diary_is_the_diarys_recipe(photos, resnet, monkeypatch):
    model = copy.deepcopy(resnet)
    reset_classifier(model, 2)
    loaders = make_loaders(photos, model, batch_size=8)
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    history = fine_tune(model, loaders, epochs=8, recipe="sgd_step")
    assert history["learning_rate"][1:].round(9).tolist() == [0.001] * 7 + [0.0001]
    loaders = make_loaders(photos, twin, batch_size=8)
    optimizer = optim.SGD(twin.parameters(), lr=0.001, momentum=0.9)
    torch.manual_seed(0)
    fit(twin, loaders, optimizer, scheduler=optim.lr_scheduler.StepLR(optimizer, 7, 0.1), epochs=8)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_fine_tune_lp_ft_starts_from_a_fitted_head_and_leaves_batchnorm_alone(photos, resnet):
    model = copy.deepcopy(resnet)
    reset_classifier(model, 2)
    loaders = make_loaders(photos, model, batch_size=4)
    fitted, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    fit_head(fitted, features_for_head(fitted, loaders, mirror=True))
    history = fine_tune(model, loaders, epochs=2, mirror=True)
    assert history["epoch"].tolist() == [0, 1, 2]
    assert (history["val_loss"][0], history["val_accuracy"][0]) == evaluate(fitted, loaders["val"])
    assert evaluate(model, loaders["val"])[1] >= history["val_accuracy"][0]
    assert model.precision == resolve_precision("auto", model, training=True)
    fine_tune(model, {"train": loaders["train"]}, epochs=1)  # without val what was learned stays
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not any("running_" in name for name in moved)
    assert {"conv1.weight", "fc.weight"} <= moved


def test_lp_fts_rate_grows_with_its_steps_up_to_a_limit(photos, resnet, monkeypatch):
    model = copy.deepcopy(resnet)
    reset_classifier(model, 2)
    loader = make_loaders(photos, model, batch_size=4)["train"]
    for epochs, limit in ((1, 1), (2, 1), (1, 1e-6)):
        monkeypatch.setattr(recipes, "HIGHEST_RATE", limit)
        first = fine_tune(model, {"train": loader}, epochs=epochs)["learning_rate"][0]
        # The head's, three times that of the backbone; a one-cycle schedule begins with a 25th of its peak.
        assert first == pytest.approx(3 * min(5e-6 * epochs * len(loader), limit) / 25)


def test_fine_tune_refuses_an_unknown_recipe_and_a_wrong_head(photos, resnet):
    loaders = make_loaders(photos, resnet)
    with pytest.raises(ValueError, match="'lp_ft' and 'sgd_step'"):
        fine_tune(resnet, loaders, epochs=1, recipe="magic")
    with pytest.raises(HeadMismatch):
        fine_tune(resnet, loaders, epochs=1)


def test_a_model_of_other_classes_is_refused_by_name_not_by_number(resnet, photos, make_photos, tmp_path):
    model = copy.deepcopy(resnet)
    reset_classifier(model, 2)
    fit(model, make_loaders(photos, model), optim.SGD(model.parameters(), lr=0.001), epochs=1)
    assert model.class_names == ["apple", "pear"]
    others = scan(make_photos({"train/pear": 4, "train/plum": 4, "test/plum": 2}, tmp_path / "others"))
    with pytest.raises(ValueError, match="its label 'plum' is not among the 2 classes"):
        make_loaders(others, model)
    loaders = make_loaders(others, copy.deepcopy(resnet))  # as many classes, other names
    for call in (
        lambda: predict(model, loaders["test"]),
        lambda: evaluate(model, loaders["test"]),
        lambda: fit(model, loaders, optim.SGD(model.parameters(), lr=0.1), epochs=1),
        lambda: fit_head(model, {"train": extract_features(model, loaders["train"])}),
    ):
        with pytest.raises(HeadMismatch, match="output 0 means 'apple' to the model and 'pear' to the data"):
            call()
    reset_classifier(model, 2)  # a new head knows no classes
    assert predict(model, loaders["test"])["target"].tolist() == ["plum", "plum"]


def test_a_training_loader_is_evaluated_and_predicted_as_the_photos_are(resnet, photos):
    model = copy.deepcopy(resnet)
    reset_classifier(model, 2)
    loader, plain = (make_loaders(photos, model, augment=augment)["train"] for augment in (True, False))
    assert evaluate(model, loader) == evaluate(model, loader) == evaluate(model, plain)
    assert predict(model, loader).equals(predict(model, plain))
    assert loader.sampler.epoch == 1  # the next training begins where it would have begun


def test_val_loss_is_cross_entropy_whatever_the_training_minimises(loaders):
    model = network()
    smooth = nn.CrossEntropyLoss(label_smoothing=0.3)
    history = fit(model, loaders, optim.SGD(model.parameters(), lr=0.01), epochs=1, criterion=smooth)
    best = history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
    assert best["val_loss"] == evaluate(model, loaders["val"])[0] != evaluate(model, loaders["val"], smooth)[0]


def test_two_trainings_on_the_same_loaders_see_other_orders(resnet, photos):
    model = copy.deepcopy(resnet)
    reset_classifier(model, 2)
    loaders = {"train": make_loaders(photos, model)["train"]}
    orders, take = [], loaders["train"].sampler.order
    loaders["train"].sampler.order = lambda epoch: orders.append(take(epoch)) or orders[-1]
    for _ in range(2):
        fit(model, loaders, optim.SGD(model.parameters(), lr=0.001), epochs=1)
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_an_empty_loader_says_so():
    with pytest.raises(ValueError, match="has no photos"):
        evaluate(network(), DataLoader(TensorDataset(torch.empty(0, 2), torch.empty(0, dtype=torch.long)), 4))


def test_predict_says_what_is_wrong_with_a_folder_or_a_model(resnet, tmp_path):
    model = copy.deepcopy(resnet)
    with pytest.raises(ValueError, match="does not know its classes"):
        predict(model, tmp_path)
    reset_classifier(model, 2)
    model.class_names = ["apple", "pear"]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        predict(model, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no photos"):
        predict(model, tmp_path)
    (tmp_path / "a.jpg").write_text("ripe")
    table = predict(model, tmp_path)
    assert table[["path", "predicted", "problem"]].to_numpy().tolist() == [["a.jpg", "", "is text"]]
    assert table["probability"].isna().all()


def test_photos_made_ready_for_another_model_are_refused_for_training_and_else_read_anew(resnet, photos):
    model = copy.deepcopy(resnet)
    reset_classifier(model, 2)
    lite, own = make_loaders(photos, create_model("efficientnet_lite0", weights=None)), make_loaders(photos, model)
    with pytest.raises(ValueError, match=r"made ready for another model .*mean: "):
        fit(model, lite, optim.SGD(model.parameters(), lr=0.1), epochs=1)
    cut = copy.deepcopy(model)
    cut.preprocessing = {**model.preprocessing, "cut": 0.7, "around": "centre"}
    with pytest.raises(ValueError, match=r"made ready for another model \(cut: 0.7 given, None expected"):
        fit(model, make_loaders(photos, cut), optim.SGD(model.parameters(), lr=0.1), epochs=1)
    assert evaluate(model, lite["val"]) == evaluate(model, own["val"])
    assert predict(model, lite["val"]).equals(predict(model, own["val"]))
