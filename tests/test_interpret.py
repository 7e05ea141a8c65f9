import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import metrics
from torch import nn

from cropkit import (
    accuracy,
    bootstrap_interval,
    classification_report,
    confusion_matrix,
    create_model,
    expected_calibration_error,
    freeze_backbone,
    grad_cam,
    mcnemar,
    most_confused,
    reliability,
    top_losses,
    weighted_precision,
)
from cropkit.interpret import similarity_order


def table(true, said, names="abc", probability=0.5):
    """Predictions as `predict` makes them, by hand."""
    true, said = list(true), list(said)
    predictions = pd.DataFrame({"path": [f"{k}.jpg" for k in range(len(true))], "target": true, "predicted": said})
    predictions["probability"] = probability
    predictions["loss"] = np.arange(len(true), dtype=float)
    for name in names:
        predictions[f"p_{name}"] = [0.8 if name == one else 0.1 for one in said]
    return predictions


def test_rows_of_the_confusion_matrix_are_the_true_class():
    true, said = ["a", "a", "a", "b", "c"], ["b", "b", "a", "b", "a"]
    matrix = confusion_matrix(table(true, said))
    assert matrix.loc["a", "b"] == 2
    assert (matrix.to_numpy() == metrics.confusion_matrix(true, said)).all()
    assert most_confused(table(true, said)).to_numpy().tolist() == [["a", "b", 2], ["c", "a", 1]]


def test_the_matrix_is_divided_by_row_or_by_column():
    predictions = table("aaabbc", "aabbba")
    by_row, by_column = (confusion_matrix(predictions, normalize=how) for how in ("true", "predicted"))
    assert by_row.sum(axis=1).tolist() == [1, 1, 1]
    assert by_row.loc["a", "b"] == pytest.approx(1 / 3)
    assert by_column.sum(axis=0).tolist() == [1, 1, 0]  # c was never predicted
    assert by_column.loc["c", "a"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"'true' \(by row\) or 'predicted'"):
        confusion_matrix(predictions, normalize="rows")


def test_scores_of_each_class_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    true, said = rng.choice(list("abc"), 200), rng.choice(list("abc"), 200)
    report = classification_report(table(true, said))
    expected = metrics.classification_report(true, said, output_dict=True)
    for name in "abc":
        assert report.loc[name, "recall"] == pytest.approx(expected[name]["recall"])
        assert report.loc[name, "precision"] == pytest.approx(expected[name]["precision"])
        assert report.loc[name, "f1"] == pytest.approx(expected[name]["f1-score"])
        assert report.loc[name, "support"] == expected[name]["support"]
    assert weighted_precision(table(true, said)) == pytest.approx(expected["weighted avg"]["precision"])


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # other tests' rubbish
def test_a_class_that_is_never_predicted_has_earned_no_precision():
    predictions = table("aabc", "aaba")
    assert classification_report(predictions).loc["c"].tolist() == [0, 0, 0, 1]
    assert weighted_precision(predictions) == pytest.approx((2 * 2 / 3 + 1 + 0) / 4)


def test_the_gate_drops_weak_classes_and_keeps_those_on_it():
    predictions = table("aaaabbbb", "aaaabaaa")  # F1: a 8/11, b 2/5
    assert weighted_precision(predictions) == pytest.approx((4 / 7 + 1) / 2)
    assert weighted_precision(predictions, gate=0.7) == pytest.approx(4 / 7 / 2)
    assert weighted_precision(predictions, gate=2 / 5) == weighted_precision(predictions)


def test_top_losses_are_the_largest():
    predictions = table("abcab", "abcab")
    assert top_losses(predictions, 2)["loss"].tolist() == [4, 3]
    predictions.loc[1, "loss"] = np.nan  # worse than any number
    assert top_losses(predictions, 2).index.tolist() == [1, 4]


def test_reliability_by_hand():
    predictions = table("aaaaaa", "aabbab", probability=[0.05, 0.95, 0.95, 0.8, 0.8, 1.0])
    found = reliability(predictions, bins=10)
    assert found["photos"].tolist() == [1, 0, 0, 0, 0, 0, 0, 2, 0, 3]  # 0.8 is the end of its step, 1.0 in the last
    assert found.loc[9, "confidence"] == pytest.approx(2.9 / 3)
    assert found.loc[9, "accuracy"] == pytest.approx(1 / 3)
    expected = (1 * 0.95 + 2 * 0.3 + 3 * (2.9 / 3 - 1 / 3)) / 6
    assert expected_calibration_error(predictions, bins=10) == pytest.approx(expected)


def test_a_model_as_sure_as_right_has_no_calibration_error():
    predictions = table("aaaa", "aaab", probability=0.75)
    assert expected_calibration_error(predictions) == pytest.approx(0)


def test_the_interval_holds_the_score_and_shrinks_with_more_photos():
    few, many = (table("ab" * n, "aa" * n) for n in (20, 500))
    (low, high), (low_many, high_many) = bootstrap_interval(few), bootstrap_interval(many)
    assert low < accuracy(few) < high
    # Of 1000 photos half right: 0.5 +- 1.96 * sqrt(0.25 / 1000).
    assert (low_many, high_many) == pytest.approx((0.469, 0.531), abs=0.006)
    assert high_many - low_many < (high - low) / 3
    assert bootstrap_interval(few) == (low, high)  # of the same seed
    assert bootstrap_interval(many, seed=1, resamples=99) != bootstrap_interval(many, resamples=99)
    assert bootstrap_interval(few, weighted_precision)[1] <= 1
    assert bootstrap_interval(few, level=0.5)[0] > low


def test_mcnemar_counts_what_only_one_has_right():
    one = table("a" * 20, "a" * 12 + "b" * 8)
    other = table("a" * 20, "a" * 4 + "b" * 14 + "a" * 2)
    result = mcnemar(one, other.iloc[::-1])  # in any order
    assert (result["only_one"], result["only_other"]) == (8, 2)
    assert result["p_value"] == pytest.approx(2 * (1 + 10 + 45) / 1024)  # two-sided, exact
    assert mcnemar(one, one) == {"only_one": 0, "only_other": 0, "p_value": 1.0}


def test_mcnemar_refuses_what_cannot_be_compared():
    one = table("aab", "aab")
    with pytest.raises(ValueError, match=r"1 photos are in one table only, such as 2\.jpg"):
        mcnemar(one, one.head(2))
    with pytest.raises(ValueError, match=r"1\.jpg has another true class"):
        mcnemar(one, table("abb", "aab"))
    with pytest.raises(ValueError, match=r"0\.jpg is there twice"):
        mcnemar(pd.concat([one, one]), one)


def test_alike_classes_stand_side_by_side():
    predictions = table("abcd" * 5, "cdab" * 5, names="abcde")  # a goes with c, b with d; e has no photos
    order = similarity_order(predictions)
    assert sorted(order) == list("abcde") and order[-1] == "e"
    assert abs(order.index("a") - order.index("c")) == 1
    assert abs(order.index("b") - order.index("d")) == 1


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
def test_grad_cam_points_at_what_decides(last):
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
    assert heat.max() == 1 or arch != "efficientnet_lite0"  # random weights may have nothing to say for a class
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_grad_cam_refuses_a_network_of_tokens(make_photos):
    with pytest.raises(ValueError, match="vit_b_32 has no feature map"):
        grad_cam(create_model("vit_b_32", num_classes=3, weights=None), Image.new("RGB", (300, 300)))


def test_a_table_that_lacks_what_is_needed_is_refused():
    with pytest.raises(ValueError, match="no columns p_<class>"):
        classification_report(table("ab", "ab", names=""))
    with pytest.raises(ValueError, match=r"0\.jpg is 'x', taken for 'a'"):
        confusion_matrix(table("xa", "aa"))
    with pytest.raises(ValueError, match="needs photos and a level between 0 and 1, not 2 and 95"):
        bootstrap_interval(table("ab", "ab"), level=95)


@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")  # other tests' rubbish
def test_no_photos_are_no_error_where_they_can_be_counted():
    nothing = table("", "")
    assert confusion_matrix(nothing).to_numpy().sum() == 0
    assert classification_report(nothing)["support"].sum() == 0
    assert np.isnan(expected_calibration_error(nothing)) and np.isnan(accuracy(nothing))


def test_a_confidence_on_an_edge_counts_alike_from_memory_and_from_a_file():
    steps = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9], dtype="float32")
    tables = [table("aaaaaa", "aaaaaa", probability=p) for p in (steps, steps.astype(str).astype(float))]
    assert reliability(tables[0])["photos"].tolist() == reliability(tables[1])["photos"].tolist()
