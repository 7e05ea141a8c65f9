import copy

import pytest
import torch
from torch import nn

from cropkit import count_parameters, create_model, freeze_backbone, get_classifier, reset_classifier, unfreeze
from cropkit.models.surgery import HeadMismatch, check_head, freeze_batchnorm

HEADS = {
    "alexnet": ("classifier.6", 135_201),
    "resnet18": ("fc", 16_929),
    "mobilenet_v3_large": ("classifier.3", 42_273),
    "efficientnet_lite0": ("classifier", 42_273),
    "vgg11": ("classifier.6", 135_201),
    "densenet121": ("classifier", 33_825),
    "convnext_tiny": ("classifier.2", 25_377),
    "swin_t": ("head", 25_377),
    "vit_b_32": ("heads.head", 25_377),
    "timm/resnet18": ("fc", 16_929),
}


@pytest.fixture(scope="module")
def resnet():
    return create_model("resnet18", weights=None)


@pytest.mark.parametrize("arch", HEADS)
def test_head_is_found_replaced_and_alone_learns_behind_a_frozen_backbone(arch):
    model = create_model(arch, weights=None)
    name, learns = HEADS[arch]
    assert get_classifier(model)[0] == name
    new = reset_classifier(model, 33)
    assert get_classifier(model) == (name, new)
    freeze_backbone(model)
    assert count_parameters(model, trainable_only=True) == learns
    assert model.eval()(torch.zeros(2, 3, 224, 224)).shape == (2, 33)


def test_models_without_exactly_one_linear_head_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="does not end in a linear layer"):
        get_classifier(create_model("squeezenet1_1", weights=None))
    with pytest.raises(ValueError, match=r"2 linear layers \(head, head_dist\)"):
        get_classifier(create_model("timm/deit_tiny_distilled_patch16_224", weights=None))


def test_decoy_layer_behind_the_head_is_not_taken_for_it(resnet):
    model = copy.deepcopy(resnet)
    model.classifier = nn.Linear(512, 33)  # nobody calls it
    assert get_classifier(model)[0] == "fc"


def test_reset_keeps_dtype_and_mode_and_leaves_the_rest(resnet):
    model = copy.deepcopy(resnet).double().train()
    before = model.conv1.weight.clone()
    new = reset_classifier(model, 5)
    assert new.weight.dtype == torch.float64
    assert new.weight.shape == (5, 512)
    assert model.training
    assert torch.equal(before, model.conv1.weight)
    with pytest.raises(ValueError, match="num_classes is 1"):
        reset_classifier(model, 1)


def test_unknown_architecture_offers_the_nearest_names():
    with pytest.raises(ValueError, match="resnet18"):
        create_model("resnet19")
    with pytest.raises(ValueError, match="timm/resnet18"):
        create_model("timm/resnt18")


def test_frozen_backbone_does_not_move_in_training(resnet):
    model = copy.deepcopy(resnet)
    freeze_backbone(model)
    before = copy.deepcopy(model.state_dict())
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.rand(4, 3, 64, 64)).sum().backward()
    optimizer.step()
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved == ["fc.weight", "fc.bias"]


def test_frozen_dropout_stays_off_and_a_copy_stays_frozen():
    model = create_model("alexnet", weights=None)
    freeze_backbone(model)
    model = copy.deepcopy(model).train()
    assert not any(module.training for module in model.modules() if isinstance(module, nn.Dropout))
    assert model.classifier[6].training


def test_unfreeze_takes_freezing_back(resnet):
    model = copy.deepcopy(resnet)
    freeze_backbone(model)
    freeze_batchnorm(model)
    unfreeze(model)
    model.train()
    assert all(module.training for module in model.modules())
    assert count_parameters(model, trainable_only=True) == count_parameters(model)


def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_weights(resnet):
    model = copy.deepcopy(resnet)
    freeze_batchnorm(model)
    model.train()
    before = model.bn1.running_mean.clone()
    model(torch.rand(2, 3, 64, 64)).sum().backward()
    assert torch.equal(before, model.bn1.running_mean)
    assert model.bn1.weight.grad is not None


def test_check_head_names_layer_outputs_classes_and_the_cure(resnet):
    names = [f"crop{number:02d}" for number in range(33)]
    with pytest.raises(HeadMismatch) as caught:
        check_head(resnet, names)
    assert str(caught.value) == (
        "resnet18 ends in fc with 1000 outputs, but the data has 33 classes (crop00 ... crop32). "
        "Replace it first: reset_classifier(model, 33)."
    )
    assert check_head(create_model("resnet18", weights=None, num_classes=33), names) is None


def test_a_layer_that_only_claims_the_right_width_is_refused():
    model = create_model("resnet18", weights=None)
    model.fc.out_features = 33
    with pytest.raises(HeadMismatch, match="fc with 1000 outputs"):
        check_head(model, [str(k) for k in range(33)])


def test_a_model_without_linear_head_is_accepted_if_its_width_is_right():
    check_head(create_model("squeezenet1_1", weights=None), [str(k) for k in range(1000)])


def test_frozen_modules_of_a_deep_copy_are_the_copys_own():
    model = create_model("resnet18", weights=None)
    freeze_backbone(model)
    twin = copy.deepcopy(model)
    assert twin.layer1.train() is twin.layer1 is not model.layer1
    assert twin.train() is twin
    unfreeze(twin)
    twin.train()
    assert twin.bn1.training and not model.bn1.training


@pytest.mark.parametrize(
    "model", [nn.Flatten(), nn.Conv2d(1, 2, 3), nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), nn.Conv2d(3, 2, 3)]
)
def test_what_is_no_image_classifier_is_refused_in_one_sentence(model):
    with pytest.raises(ValueError, match="could not classify one blank photo"):
        get_classifier(model)
