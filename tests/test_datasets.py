import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cropkit import CropDataset, class_names, create_model, make_loaders, scan, split, transforms_for


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


def test_only_training_photos_vary(model, catalog):
    loaders = make_loaders(catalog, model)
    for part in ("train", "val", "test"):
        one, two = loaders[part].dataset[0][0], loaders[part].dataset[0][0]
        assert torch.equal(one, two) == (part != "train")


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
        CropDataset(catalog, ["apple", "plum"], np.asarray)


def test_bad_photos_never_reach_a_loader(model, make_photos):
    root = make_photos({"apple": 4, "pear": 4})
    (root / "pear" / "broken.jpg").write_text("no photo")
    catalog = split(scan(root))
    loaders = make_loaders(catalog, model)
    assert sum(len(loader.dataset) for loader in loaders.values()) == 8
    assert class_names(catalog) == ["apple", "pear"]
