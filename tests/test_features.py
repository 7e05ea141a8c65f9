import copy

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from cropkit import create_model, evaluate, extract_features, fit_head, load_model, make_loaders, predict, scan, split
from cropkit.training import Features, features, save_model
from cropkit.training.inference import BATCH, answers


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("efficientnet_lite0", num_classes=2)


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """Where a test names no precision: "auto" is another one on another processor, and has other features."""
    monkeypatch.setenv("CROPKIT_PRECISION", "float32")


@pytest.fixture
def loaders(make_photos, model):
    return make_loaders(split(scan(make_photos({"apple": 12, "pear": 12}))), model, augment=False)


def computed(monkeypatch):
    """A list to which the number of photos of each batch is added that is computed from now on."""
    counts, answers = [], features.answers

    def counted(*args, **kwargs):
        for batch, targets in answers(*args, **kwargs):
            counts.append(len(batch))
            yield batch, targets

    monkeypatch.setattr(features, "answers", counted)
    return counts


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_features_are_what_the_head_receives(model, loaders, precision, tolerance):
    data = extract_features(model, loaders["train"], precision=precision)
    vectors, targets = data.tensors
    assert targets.tolist() == loaders["train"].dataset.targets
    photos = torch.stack([photo for photo, _ in loaders["train"].dataset])
    with torch.no_grad():
        direct = model.eval()(photos)
        through_head = model.classifier(vectors)
    assert vectors.shape == (len(photos), 1280)
    assert ((direct - through_head).norm(dim=1) / direct.norm(dim=1)).max() < tolerance


def test_augmentation_is_left_out(model, make_photos):
    catalog = split(scan(make_photos({"apple": 6, "pear": 6})))
    varied = extract_features(model, make_loaders(catalog, model)["train"], precision="float32")
    plain = extract_features(model, make_loaders(catalog, model, augment=False)["train"], precision="float32")
    assert torch.equal(varied.tensors[0], plain.tensors[0])


def test_a_cache_computes_nothing_twice(model, loaders, tmp_path, monkeypatch):
    counts = computed(monkeypatch)
    first = extract_features(model, loaders["train"], cache=tmp_path, precision="float32")
    assert sum(counts) == len(first)
    again = extract_features(model, loaders["train"], cache=tmp_path)
    assert sum(counts) == len(first)
    assert torch.equal(first.tensors[0], again.tensors[0])


def test_a_changed_photo_is_computed_alone(model, loaders, tmp_path, monkeypatch):
    first = extract_features(model, loaders["train"], cache=tmp_path)
    dataset = loaders["train"].dataset
    Image.new("RGB", (80, 60), "blue").save(dataset.file(3))
    counts = computed(monkeypatch)
    again = extract_features(model, loaders["train"], cache=tmp_path)
    assert counts == [1]
    same = (first.tensors[0] == again.tensors[0]).all(dim=1)
    assert same.tolist() == [index != 3 for index in range(len(first))]


def test_other_weights_and_another_transform_use_nothing_that_is_kept(model, loaders, tmp_path, monkeypatch):
    extract_features(model, loaders["train"], cache=tmp_path)
    counts = computed(monkeypatch)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    extract_features(other, loaders["train"], cache=tmp_path, precision="float32")
    assert sum(counts) == len(loaders["train"].dataset)
    smaller = copy.deepcopy(model)
    smaller.preprocessing = model.preprocessing | {"crop_size": 192}
    extract_features(smaller, loaders["train"], cache=tmp_path, precision="float32")
    assert sum(counts) == 2 * len(loaders["train"].dataset)
    statistics = copy.deepcopy(model)
    statistics.bn1.running_mean.add_(0.1)
    extract_features(statistics, loaders["train"], cache=tmp_path, precision="float32")
    assert sum(counts) == 3 * len(loaders["train"].dataset)


def test_another_head_shares_the_features(model, loaders, tmp_path, monkeypatch):
    extract_features(model, loaders["train"], cache=tmp_path)
    counts = computed(monkeypatch)
    other = copy.deepcopy(model)
    nn.init.normal_(other.classifier.weight)
    extract_features(other, loaders["train"], cache=tmp_path, precision="float32")
    assert counts == []


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_file_is_computed_anew(model, loaders, tmp_path, damage, monkeypatch):
    first = extract_features(model, loaders["train"], cache=tmp_path)
    (shard,) = tmp_path.rglob("*.safetensors")
    good = shard.read_bytes()
    flipped = bytearray(good)
    flipped[-100] ^= 0x10
    shard.write_bytes({"truncate": good[:-50], "flip": bytes(flipped), "empty": b"", "text": b"ripe"}[damage])
    counts = computed(monkeypatch)
    again = extract_features(model, loaders["train"], cache=tmp_path)
    assert sum(counts) == len(first)
    assert torch.equal(first.tensors[0], again.tensors[0])


def test_a_call_that_is_cut_off_keeps_its_whole_shards(model, make_photos, tmp_path, monkeypatch):
    loader = make_loaders(split(scan(make_photos({"apple": 60, "pear": 60})), fractions=(1, 0, 0)), model)["train"]
    whole = extract_features(model, loader)
    answers, batches = features.answers, []

    def cut_off(*args, **kwargs):
        for batch in answers(*args, **kwargs):
            batches.append(1)
            if len(batches) == 7:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(features, "answers", cut_off)
        with pytest.raises(KeyboardInterrupt):
            extract_features(model, loader, cache=tmp_path)
    counts = computed(monkeypatch)
    resumed = extract_features(model, loader, cache=tmp_path)
    assert sum(counts) == len(whole) - 64
    assert torch.equal(resumed.tensors[0], whole.tensors[0])


def test_a_photo_has_the_same_features_whatever_else_is_computed_with_it(model, make_photos, tmp_path):
    catalog = split(scan(make_photos({"apple": 20, "pear": 21})), fractions=(1, 0, 0))
    whole = extract_features(model, make_loaders(catalog, model)["train"], precision="float32").tensors[0]
    some = pd.concat([catalog.iloc[:5], catalog.iloc[-2:]])  # another batch, another place in it
    alone = extract_features(model, make_loaders(some, model)["train"], cache=tmp_path, precision="float32").tensors[0]
    assert torch.equal(alone, torch.cat([whole[:5], whole[-2:]]))
    shared = extract_features(model, make_loaders(catalog, model)["train"], cache=tmp_path, precision="float32")
    assert torch.equal(shared.tensors[0], whole)  # also where another catalog left some of them in the cache


def test_a_last_batch_is_filled_up_so_that_a_photo_has_the_same_logits_in_any_batch(model, make_photos):
    catalog = split(scan(make_photos({"apple": 10, "pear": 11})), fractions=(1, 0, 0))
    sizes = []
    hook = model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))

    def logits(photos):
        return torch.cat([batch for batch, _ in answers(model, make_loaders(photos, model)["train"], "float32", "")])

    whole, some = logits(catalog), logits(pd.concat([catalog.iloc[:4], catalog.iloc[-1:]]))
    hook.remove()
    assert torch.equal(some, torch.cat([whole[:4], whole[-1:]]))
    # Some kernels round otherwise for a batch of another size; which ones depends on the processor.
    assert sizes == [BATCH] * 3


def test_a_cache_that_cannot_be_written_only_warns(model, loaders, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="the cache cannot be written .*going on without it"):
        found = extract_features(model, loaders["train"], cache=tmp_path / "cache")
    assert torch.equal(found.tensors[0], extract_features(model, loaders["train"]).tensors[0])


@pytest.mark.parametrize("classes", [2, 3])
def test_the_fitted_head_is_the_models_own(make_photos, tmp_path, classes):
    root = make_photos({f"crop{number}": 10 for number in range(classes)})
    for number in range(classes):  # something to learn: each crop has its colour
        for path in (root / f"crop{number}").iterdir():
            tint = Image.new("RGB", (80, 60), [(200, 40, 40), (40, 200, 40), (40, 40, 200)][number])
            Image.blend(Image.open(path), tint, 0.6).save(path)
    torch.manual_seed(0)
    model = create_model("efficientnet_lite0", num_classes=classes)
    loaders = make_loaders(split(scan(root)), model)
    data = {part: extract_features(model, loader, precision="float32") for part, loader in loaders.items()}
    table = fit_head(model, data)
    assert table["chosen"].sum() == 1
    assert table.loc[table["chosen"], "val_accuracy"].item() == table["val_accuracy"].max()
    equals = table[table["val_accuracy"] == table["val_accuracy"].max()]
    assert len(equals) > 1 and table.loc[table["chosen"], "val_loss"].item() == equals["val_loss"].min()
    _, accuracy = evaluate(model, loaders["val"])
    assert abs(accuracy - table["val_accuracy"].max()) < 1e-6
    predictions = predict(model, loaders["test"])
    assert (predictions["predicted"] == predictions["target"]).mean() == 1.0
    with torch.no_grad():
        probability = model.classifier(data["test"].tensors[0]).softmax(dim=1).max(dim=1).values
    assert np.allclose(probability, predictions["probability"], atol=1e-3)


def test_a_class_without_training_photos_cannot_be_fitted(model):
    data = torch.utils.data.TensorDataset(torch.rand(4, 1280), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match=r"classes \[1\] have no training photos"):
        fit_head(copy.deepcopy(model), {"train": data})


def test_a_loader_of_any_batch_size_gives_the_same_features(model, loaders):
    dataset = loaders["train"].dataset
    one = extract_features(model, DataLoader(dataset, 1), precision="float32")
    many = extract_features(model, DataLoader(dataset, 64, shuffle=True), precision="float32")
    assert torch.equal(one.tensors[0], many.tensors[0])


def test_a_photo_that_is_there_twice_is_computed_once(model, loaders, tmp_path, monkeypatch):
    dataset = copy.copy(loaders["train"].dataset)
    dataset.paths, dataset.roots, dataset.targets = dataset.paths * 2, dataset.roots * 2, dataset.targets * 2
    twice = DataLoader(dataset, 8)
    extract_features(model, loaders["train"], cache=tmp_path, precision="float32")
    counts = computed(monkeypatch)
    vectors, _ = extract_features(model, twice, cache=tmp_path).tensors
    assert counts == []
    assert torch.equal(vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :])


def test_a_photo_replaced_while_it_is_read_is_computed_anew(model, loaders, tmp_path, monkeypatch):
    dataset = loaders["train"].dataset
    answers = features.answers

    def replaced(*args, **kwargs):
        Image.new("RGB", (80, 60), "blue").save(dataset.file(3))
        yield from answers(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(features, "answers", replaced)
        extract_features(model, loaders["train"], cache=tmp_path, precision="float32")
    counts = computed(monkeypatch)
    extract_features(model, loaders["train"], cache=tmp_path)
    assert counts == [1]


def test_the_same_weights_used_in_another_way_share_nothing(model, loaders, tmp_path, monkeypatch):
    extract_features(model, loaders["train"], cache=tmp_path, precision="float32")
    other = copy.deepcopy(model)
    other.bn1.eps = 1.0
    counts = computed(monkeypatch)
    extract_features(other, loaders["train"], cache=tmp_path, precision="float32")
    assert sum(counts) == len(loaders["train"].dataset)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_without_bias_is_fitted_too(model, classes):
    bare = copy.deepcopy(model)
    bare.classifier = nn.Linear(1280, classes, bias=False)
    targets = torch.arange(30) % classes
    vectors = torch.nn.functional.one_hot(targets, 1280).float()
    data = Features(vectors, targets, [f"class {k}" for k in range(classes)], "float32")
    fit_head(bare, {"train": data, "val": data})
    assert torch.equal(bare.classifier(vectors).argmax(dim=1), targets)


def test_mirror_images_double_the_features_and_a_models_answer_is_the_mean_of_both(model, make_photos, tmp_path):
    catalog = split(scan(make_photos({"apple": 12, "pear": 12})))
    mine = copy.deepcopy(model)
    loaders = make_loaders(catalog, mine)
    data = {s: extract_features(mine, loaders[s], cache=tmp_path, mirror=True) for s in ("train", "val")}
    plain = extract_features(mine, loaders["val"], cache=tmp_path)
    count = len(plain)
    vectors, targets = data["val"].tensors
    assert torch.equal(vectors[:count], plain.tensors[0]) and torch.equal(targets[:count], targets[count:])
    photos = torch.stack([photo.flip(2) for photo, _ in loaders["val"].dataset])
    with torch.no_grad():
        logits = mine.eval()(photos)
        assert torch.allclose(mine.classifier(vectors[count:]), logits, atol=1e-3)
    one = data["val"].one_a_photo()
    assert torch.equal(one.tensors[0], (vectors[:count] + vectors[count:]) / 2) and not one.mirror
    history = fit_head(mine, data)
    assert mine.mirror and mine.preprocessing == model.preprocessing
    accuracy = history.loc[history["chosen"], "val_accuracy"].item()
    assert evaluate(mine, loaders["val"])[1] == pytest.approx(accuracy)
    once, both = predict(mine, loaders["val"], mirror=False), predict(mine, loaders["val"])
    assert not np.allclose(once["loss"], both["loss"])
    assert evaluate(mine, loaders["val"])[0] == pytest.approx(both["loss"].mean())
    alone = nn.Linear(1280, 2)  # a head alone, which gets no photos that could be mirrored
    fit_head(alone, data)
    assert evaluate(alone, DataLoader(data["val"].one_a_photo()))[1] == pytest.approx(accuracy)


def test_features_of_anything_but_photos_are_refused(model, loaders):
    part = torch.utils.data.Subset(loaders["train"].dataset, [0, 1])
    with pytest.raises(ValueError, match="not of a Subset"):
        extract_features(model, DataLoader(part))


def test_a_heads_resolution_travels_with_the_model(model, make_photos, tmp_path):
    catalog = split(scan(make_photos({"apple": 12, "pear": 12})))
    mine = copy.deepcopy(model)
    loaders = make_loaders(catalog, mine)  # at 224, as the weights were pretrained
    data = {s: extract_features(mine, loaders[s], resolution=256) for s in ("train", "val")}
    fit_head(mine, data)
    assert mine.preprocessing == model.preprocessing | {"crop_size": 256, "resize_size": 293}
    save_model(mine, tmp_path / "mine.safetensors", mine.class_names)
    saved = load_model(tmp_path / "mine.safetensors")
    made = create_model("efficientnet_lite0", num_classes=2, resolution=256)
    assert saved.preprocessing == mine.preprocessing == made.preprocessing
    found = predict(saved, loaders["val"])
    assert found.equals(predict(saved, make_loaders(catalog, made)["val"]))
    assert not found.equals(predict(saved, loaders["val"], resolution=224))
    direct = mine.classifier(data["val"].tensors[0]).softmax(dim=1).detach().numpy()
    assert np.allclose(found[["p_apple", "p_pear"]], direct, atol=1e-5)


def test_a_network_for_pictures_of_one_size_says_so(make_photos):
    with pytest.raises(ValueError, match=r"could not classify one blank photo of shape \(1, 3, 256, 256\)"):
        create_model("vit_b_32", weights=None, resolution=256)
    vit = create_model("vit_b_32", weights=None, num_classes=2)
    vit.class_names = ["apple", "pear"]
    loaders = make_loaders(split(scan(make_photos({"apple": 5, "pear": 5}))), vit)
    for call in (extract_features, predict):
        with pytest.raises(ValueError, match="could not classify one blank photo"):
            call(vit, loaders["val"], resolution=256)
        assert vit.preprocessing["crop_size"] == 224
    with pytest.raises(ValueError, match="resolution is 8, but must be at least 32"):
        create_model("resnet18", weights=None, resolution=8)


@pytest.mark.parametrize(("precision", "mirror"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_predictions_from_kept_features_are_those_of_the_model(make_photos, tmp_path, monkeypatch, precision, mirror):
    torch.manual_seed(0)
    model = create_model("efficientnet_lite0", num_classes=2)
    model.precision, model.mirror, model.class_names = precision, mirror, ["apple", "pear"]
    loader = make_loaders(split(scan(make_photos({"apple": 12, "pear": 12}))), model)["train"]
    wanted = predict(model, loader)
    counts = computed(monkeypatch)
    first = predict(model, loader, cache=tmp_path)
    assert sum(counts) == len(wanted) * (1 + mirror)
    again = predict(model, loader, cache=tmp_path)
    assert sum(counts) == len(wanted) * (1 + mirror), "a photo was computed again"
    assert first.equals(again)
    if not mirror:  # the mean of features rounds otherwise than the mean of answers
        assert first.equals(wanted)
    pd.testing.assert_frame_equal(first, wanted, rtol=1e-4, atol=1e-5)
