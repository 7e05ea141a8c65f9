import copy
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model_weights

from cropkit import class_names, create_model, make_loaders, scan, split
from cropkit.data import BadPhoto, CropDataset, transforms_for
from cropkit.data.datasets import in_order, photo_threads


@pytest.fixture(scope="module")
def model():
    return create_model("resnet18", weights=None, num_classes=2)


@pytest.fixture
def catalog(make_photos):
    return split(scan(make_photos({"apple": 10, "pear": 10})))


def test_transform_is_that_of_the_weights():
    grey = Image.new("RGB", (300, 300), (128, 128, 128))
    for arch, mean, std in (("resnet18", 0.485, 0.229), ("efficientnet_lite0", 0.5, 0.5)):
        tensor = transforms_for(create_model(arch, weights=None))(grey)
        assert tensor.shape == (3, 224, 224)
        assert tensor.dtype == torch.float32
        assert abs(tensor[0].mean().item() - (128 / 255 - mean) / std) < 1e-3


def test_model_that_does_not_say_what_it_expects_is_refused():
    with pytest.raises(ValueError, match="create_model"):
        transforms_for(nn.Linear(2, 2))


def test_only_training_photos_vary_and_only_where_an_epoch_is_named(model, catalog):
    loaders = make_loaders(catalog, model)
    plain = make_loaders(catalog, model, augment=False)
    for part in ("train", "val", "test"):
        dataset = loaders[part].dataset
        assert torch.equal(dataset[0][0], dataset[0][0])
        assert torch.equal(dataset[0][0], plain[part].dataset[0][0])
        assert torch.equal(dataset[1, 0][0], dataset[2, 0][0]) == (part != "train")


def test_tensors_are_those_of_torchvisions_transforms():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    for arch in ("resnet18", "mobilenet_v3_large"):
        preset = get_model_weights(arch).DEFAULT.transforms()
        own = transforms_for(create_model(arch, weights=None))(photo)
        assert torch.allclose(own, preset(photo), atol=1e-6)


def test_reading_photos_leaves_torchs_threads_alone(model, catalog):
    threads = torch.get_num_threads()
    for _ in make_loaders(catalog, model)["train"]:
        pass
    assert torch.get_num_threads() == threads
    pool_threads = []
    with photo_threads() as pool:
        list(pool.map(lambda _: pool_threads.append(torch.get_num_threads()), range(4)))
    assert set(pool_threads) == {threads}


def test_a_trained_model_decides_the_classes_and_their_order(model, catalog):
    trained = copy.deepcopy(model)
    trained.class_names = ["pear", "apple", "plum"]
    loaders = make_loaders(catalog, trained)
    assert loaders["val"].dataset.class_names == ["pear", "apple", "plum"]
    assert [loaders["val"].dataset.class_names[t] for t in loaders["val"].dataset.targets] == [
        path.split("/")[0] for path in loaders["val"].dataset.paths
    ]
    trained.class_names = ["apple", "plum"]
    with pytest.raises(ValueError, match="its label 'pear' is not among the 2 classes"):
        make_loaders(catalog, trained)


def test_order_of_training_is_decided_by_the_seed(model, catalog):
    def order(seed):
        return torch.cat([targets for _, targets in make_loaders(catalog, model, seed=seed)["train"]]).tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)


def test_every_part_shares_one_class_list_and_empty_parts_are_absent(model, make_photos):
    catalog = scan(make_photos({"train/apple": 2, "train/pear": 2, "val/pear": 1}))
    loaders = make_loaders(catalog, model)
    assert set(loaders) == {"train", "val"}
    assert loaders["val"].dataset.class_names == ["apple", "pear"]
    assert loaders["val"].dataset.targets == [1]


def test_label_outside_the_class_list_is_named_with_its_photo(catalog):
    with pytest.raises(ValueError, match=r"pear/\d+\.jpg: its label 'pear' is not among the 2 classes"):
        CropDataset(catalog, ["apple", "plum"], create_model("resnet18", weights=None).preprocessing)


def test_bad_photos_never_reach_a_loader(model, make_photos):
    root = make_photos({"apple": 4, "pear": 4})
    (root / "pear" / "broken.jpg").write_text("no photo")
    catalog = split(scan(root))
    loaders = make_loaders(catalog, model)
    assert sum(len(loader.dataset) for loader in loaders.values()) == 8
    assert class_names(catalog) == ["apple", "pear"]


def passes(catalog, **options):
    """Two epochs of training tensors, which leave the training's own random numbers where they were."""
    torch.manual_seed(5)
    loader = make_loaders(catalog, create_model("resnet18", weights=None), batch_size=4, **options)["train"]
    torch.manual_seed(5)
    drawn = [torch.cat([photos for photos, _ in loader]) for _ in range(2)]
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(()))
    return drawn


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_augmentation_is_the_same_for_any_number_of_workers_and_threads(make_photos, monkeypatch):
    catalog = split(scan(make_photos({"apple": 8, "pear": 8})))
    first, second = passes(catalog)
    assert not torch.equal(first, second)  # another epoch, another order and other cuts
    for options in ({"num_workers": 2}, {"num_workers": 4}):
        again, later = passes(catalog, **options)
        assert torch.equal(again, first) and torch.equal(later, second)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert torch.equal(passes(catalog)[1], second)
    assert not torch.equal(passes(catalog, seed=1)[0], first)


def test_an_epoch_can_be_gone_on_with_in_its_middle(make_photos):
    catalog = split(scan(make_photos({"apple": 8, "pear": 8})))
    loader = make_loaders(catalog, create_model("resnet18", weights=None), batch_size=4)["train"]
    first, second = ([photos for photos, _ in loader] for _ in range(2))
    assert sorted(loader.sampler.order(1)) == sorted(loader.sampler.order(2)) != loader.sampler.order(1)
    assert loader.sampler.order(1) != loader.sampler.order(2)
    loader.sampler.epoch, loader.sampler.skip = 2, 4
    rest = [photos for photos, _ in loader]
    assert len(rest) == len(second) - 1
    assert all(torch.equal(a, b) for a, b in zip(rest, second[1:], strict=True))
    loader.sampler.epoch = 1
    assert torch.equal(next(iter(loader))[0], first[0])


def test_parts_of_other_names_are_refused(make_photos):
    catalog = split(scan(make_photos({"apple": 8, "pear": 8})))
    for wrong in (catalog.replace({"split": {"val": "valid"}}), catalog.drop(columns="split")):
        with pytest.raises(ValueError, match=r"other than train, val and test .*split\(catalog\)"):
            make_loaders(wrong, create_model("resnet18", weights=None))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_photo_that_has_vanished_is_named(make_photos, num_workers):
    root = make_photos({"apple": 8, "pear": 8})
    catalog = split(scan(root))
    loader = make_loaders(catalog, create_model("resnet18", weights=None), num_workers=num_workers)["train"]
    gone = catalog.loc[catalog["split"] == "train", "path"].iloc[0]
    (root / gone).unlink()
    # PyTorch brings an error from another process as a RuntimeError that quotes it.
    with pytest.raises(RuntimeError if num_workers else BadPhoto, match=f"{gone}: cannot be read"):
        list(loader)


def test_a_signal_to_all_does_not_end_the_processes_that_read_for_validation(model, catalog):
    loader = in_order(make_loaders(catalog, model, num_workers=1)["val"], 1)
    batches = iter(loader)
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGTERM)
    time.sleep(0.2)
    assert len(list(batches)) == len(loader) - 1
