import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cropkit import create_model, freeze_backbone
from cropkit.evaluation.saliency import grad_cam


class Bright(nn.Module):
    """Class 1 is a bright place, class 0 a dark one; some networks have the channels last."""

    def __init__(self, last=False):
        super().__init__()
        self.turn = Turn() if last else nn.Identity()
        self.preprocessing = create_model("resnet18", weights=None).preprocessing
        self.features = nn.Conv2d(3, 1, 32, stride=32)
        nn.init.constant_(self.features.weight, 1 / 3072)
        nn.init.zeros_(self.features.bias)
        self.head = nn.Linear(1, 2, bias=False)
        self.head.weight.data = torch.tensor([[-1.0], [1.0]])

    def forward(self, photos):
        found = self.turn(self.features(photos))
        return self.head(found.mean(dim=(1, 2) if isinstance(self.turn, Turn) else (2, 3)))


class Turn(nn.Module):
    def forward(self, maps):
        return maps.permute(0, 2, 3, 1)


@pytest.mark.parametrize("last", [False, True])
def test_grad_cam_is_largest_where_the_class_is(last):
    photo = Image.new("RGB", (256, 256))
    photo.paste((255, 255, 255), (176, 48, 240, 112))  # upper right of the crop of 224
    heat = grad_cam(Bright(last), photo.convert("RGBA"), target=1)
    assert heat.shape == (224, 224) and heat.max() == 1 and heat.min() == 0
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 32 <= row <= 96 and 160 <= column <= 224
    assert heat[160:, :64].max() == 0
    with pytest.raises(ValueError, match="target is 7, but the model has 2 outputs"):
        grad_cam(Bright(last), photo, target=7)


@pytest.mark.parametrize("arch", ["alexnet", "resnet18", "mobilenet_v3_large", "efficientnet_lite0", "densenet121"])
def test_grad_cam_leaves_a_frozen_model_as_it_was(arch, make_photos):
    torch.manual_seed(0)
    weights = "imagenet" if arch == "efficientnet_lite0" else None
    model = create_model(arch, num_classes=3, weights=weights)
    freeze_backbone(model)
    model.train()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heat = grad_cam(model, make_photos({"apple": 1}) / "apple" / "0.jpg")
    assert heat.shape == (224, 224) and heat.dtype == np.float32 and 0 <= heat.min() <= heat.max() <= 1
    assert heat.max() == 1 or arch != "efficientnet_lite0"  # with random weights, perhaps no place contributes
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_grad_cam_refuses_a_network_of_tokens(make_photos):
    with pytest.raises(ValueError, match="vit_b_32 has no feature map"):
        grad_cam(create_model("vit_b_32", num_classes=3, weights=None), Image.new("RGB", (300, 300)))
