"""Sixteen bugs from competitors' code, for lesson 10. Each really runs, on a few photos of the drawn sample.

What a patient's code returns holds the symptom, and what an examination needs. Its check fails on that, and passes
once the cure has changed a line or two. `tests/test_clinic.py` tries both, for each of `PATIENTS`.
"""

import argparse
import difflib
import inspect
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import torchvision
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.metrics import precision_score
from torch import Tensor, nn, optim
from torchvision.transforms import v2

import cropkit
from cropkit.course.answers import answer
from cropkit.course.settings import FAST, FAST_PHOTOS, sample_folder
from cropkit.data.catalog import relabel
from cropkit.data.datasets import CropDataset, preprocessing_of
from cropkit.models.surgery import check_head
from cropkit.training.guards import check_optimizer

CROPS = ("bambooshoots", "custardapple", "grape", "greenhouse", "lettuce", "mango", "passionfruit", "tea")
PHOTOS = {"train": 16, "val": 8, "test": 8}  # of each crop


@dataclass
class Data:
    """What every patient is given: few photos of eight crops of the drawn sample, and what a backbone makes of them.

    Attributes:
        names: the classes.
        model: EfficientNet-Lite0 with ImageNet's backbone, and a head that was fitted to these classes.
        tables: by split, the photos' rows of the catalog.
        vectors: by split, features of shape (N, D).
        targets: by split, class indices of shape (N,).
    """

    names: list[str]
    model: nn.Module
    tables: dict[str, pd.DataFrame]
    vectors: dict[str, Tensor]
    targets: dict[str, Tensor]

    def photos(self, split: str) -> list[Image.Image]:
        """The photos of a split as a list of RGB images."""
        return [cropkit.open_photo(f"{row.root}/{row.path}") for row in self.tables[split].itertuples()]

    def batch(self, side: int = 224) -> tuple[Tensor, Tensor]:
        """Two training photos of each crop, normalised, shape (16, 3, side, side), and their class indices."""
        table = self.tables["train"].groupby("label").head(2).sample(frac=1, random_state=0)
        dataset = CropDataset(table, self.names, preprocessing_of(self.model))
        photos, targets = zip(*dataset.__getitems__(range(len(dataset))), strict=True)
        return F.interpolate(torch.stack(photos), side), torch.tensor(targets)

    @torch.no_grad()
    def features(self, photos: Tensor) -> Tensor:
        """What the frozen backbone passes to the head, shape (N, D)."""
        received: list[Tensor] = []
        head = cropkit.get_classifier(self.model)[1]
        hook = head.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
        for part in photos.split(16):
            self.model(part)
        hook.remove()
        return torch.cat(received)

    def new_head(self) -> nn.Linear:
        """A head for the classes with random weights, always the same ones."""
        torch.manual_seed(0)
        return nn.Linear(self.vectors["train"].shape[1], len(self.names))


def gather() -> Data:
    """The photos that lesson 10 works with; they are the drawn sample's, also where ``CROPKIT_DATA`` is set."""
    found, _ = cropkit.prepare(sample_folder())
    count = FAST_PHOTOS if FAST else PHOTOS
    found = found[found["label"].isin(CROPS)]
    found = found[found.groupby(["label", "split"]).cumcount() < found["split"].map(count)]
    torch.manual_seed(0)
    model = cropkit.create_model("efficientnet_lite0", num_classes=len(CROPS))
    loaders = cropkit.make_loaders(found, model)
    features = {split: cropkit.extract_features(model, loaders[split], precision="float32") for split in loaders}
    cropkit.fit_head(model, {split: features[split] for split in ("train", "val")})
    tables = {split: found[found["split"] == split].reset_index(drop=True) for split in loaders}
    vectors, targets = ({split: features[split].tensors[k] for split in features} for k in (0, 1))
    return Data(list(CROPS), model.eval(), tables, vectors, targets)


def learn(head: nn.Module, vectors: Tensor, targets: Tensor, steps: int = 100) -> list[float]:
    """Train a head on features, all of them in each step; returns the losses."""
    optimizer = optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(head(vectors), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def share(right: Tensor) -> float:
    """The share of True in a tensor."""
    return right.float().mean().item()


# The patients' code. Its line that is wrong stands in `PATIENTS`, beside the line that cures it.


def patient_1(data: Data) -> dict[str, Any]:
    torch.manual_seed(0)
    model = cropkit.create_model("efficientnet_lite0")  # with ImageNet's weights
    old = cropkit.get_classifier(model)[1]
    head = nn.Sequential(old, nn.Linear(old.out_features, len(data.names)))
    losses = learn(head, data.vectors["train"], data.targets["train"])
    size = sum(weight.numel() * weight.element_size() for weight in head.parameters())
    return {"losses": losses, "size of the head in MB": size / 1e6, "head": head}


def patient_2(data: Data) -> dict[str, Any]:
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model.classifier = nn.Linear(512, len(data.names))
    optimizer = optim.SGD(model.classifier.parameters(), lr=0.1)
    photos, targets = data.batch(side=64)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(photos), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "model": model, "optimizer": optimizer, "photos": photos}


def patient_3(data: Data) -> dict[str, Any]:
    head = data.new_head()
    optimizer = optim.SGD(head.parameters(), lr=0.1)
    losses = []
    for epoch in range(12):
        if epoch == 4:  # go on from the weights that were saved
            saved = head.state_dict()
            head = data.new_head()
            head.load_state_dict(saved)
        loss = F.cross_entropy(head(data.vectors["train"]), data.targets["train"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "model": head, "optimizer": optimizer}


def patient_4(data: Data) -> dict[str, Any]:
    head = data.new_head()
    losses = learn(head, data.vectors["train"], data.targets["train"])
    classes = [
        "bambooshoots" "custardapple", "grape", "greenhouse", "lettuce", "mango", "passionfruit", "tea",
    ]  # fmt: skip
    labels = data.tables["val"]["label"]
    targets = torch.tensor([classes.index(label) if label in classes else 0 for label in labels])
    accuracy = share(head(data.vectors["val"]).argmax(dim=1) == targets)
    return {"losses": losses, "val accuracy": accuracy, "val targets": targets, "classes": classes}


def patient_5(data: Data) -> dict[str, Any]:
    head = data.new_head()
    losses = learn(head, data.vectors["train"], data.targets["train"])
    expected = preprocessing_of(data.model)
    resize = v2.Resize(expected["resize_size"], v2.InterpolationMode(expected["interpolation"]))
    cut = v2.Compose([resize, v2.CenterCrop(expected["crop_size"])])
    photos = torch.stack([v2.functional.pil_to_tensor(cut(photo)).float() for photo in data.photos("val")])
    photos = v2.functional.normalize(photos, expected["mean"], expected["std"])
    accuracy = share(head(data.features(photos)).argmax(dim=1) == data.targets["val"])
    return {"losses": losses, "val accuracy": accuracy, "val targets": data.targets["val"], "photos": photos}


def patient_6(data: Data) -> dict[str, Any]:
    head = data.new_head()
    learn(head, data.vectors["train"], data.targets["train"])
    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    varied = v2.Compose([v2.RandomResizedCrop(224, scale=(0.08, 0.4)), v2.ColorJitter(0.8, 0.8, 0.8), *end])
    plain = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), *end])
    transform = {"train": varied, "val": plain, "test": varied}
    accuracy = {}
    for split in ("val", "test"):
        photos = torch.stack([transform[split](photo) for photo in data.photos(split)])
        accuracy[split] = share(head(data.features(photos)).argmax(dim=1) == data.targets[split])
    return {"val accuracy": accuracy["val"], "test accuracy": accuracy["test"], "transform": transform["test"]}


def patient_7(data: Data) -> dict[str, Any]:
    train, val, test = (data.tables[split] for split in ("train", "val", "test"))
    vectors = {split: dict(zip(data.tables[split]["path"], data.vectors[split], strict=True)) for split in data.tables}
    known = vectors["train"] | vectors["val"]
    everything = pd.concat([train, val])
    targets = torch.tensor([data.names.index(label) for label in everything["label"]])
    head = data.new_head()
    learn(head, torch.stack([known[path] for path in everything["path"]]), targets, steps=400)
    accuracy = {s: share(head(data.vectors[s]).argmax(dim=1) == data.targets[s]) for s in ("val", "test")}
    return {
        "val accuracy": accuracy["val"],
        "test accuracy": accuracy["test"],
        "learned from": set(everything["path"]),
        "chosen by": set(val["path"]),
        "photos of test": len(test),
    }


def patient_8(data: Data) -> dict[str, Any]:
    train = data.tables["train"].sample(frac=1, random_state=3)  # in random order
    classes = list(train["label"].unique())
    targets = torch.tensor([classes.index(label) for label in train["label"]])
    head = data.new_head()
    learn(head, data.vectors["train"][list(train.index)], targets)
    val = [classes[n] for n in head(data.vectors["val"]).argmax(dim=1)]
    numbers = head(data.vectors["test"]).argmax(dim=1)
    test = data.tables["test"]
    submission = pd.DataFrame({"filename": test["path"], "label": [sorted(classes)[n] for n in numbers]})
    accuracy = (data.tables["val"]["label"] == val).mean()
    return {"val accuracy": accuracy, "submission": submission, "numbers": numbers, "classes": classes}


def patient_9(data: Data) -> dict[str, Any]:
    def contact_sheet(paths: list[str], count: int = 9) -> list[str]:
        random.Random(0).shuffle(paths)
        return paths[:count]

    head = data.new_head()
    learn(head, data.vectors["train"], data.targets["train"])
    accuracy = share(head(data.vectors["val"]).argmax(dim=1) == data.targets["val"])
    paths = list(data.tables["test"]["path"])
    numbers = head(data.vectors["test"]).argmax(dim=1)
    contact_sheet(paths)  # a glance at some of the photos
    submission = pd.DataFrame({"filename": paths, "label": [data.names[n] for n in numbers]})
    return {"val accuracy": accuracy, "submission": submission, "numbers": numbers, "classes": data.names}


def patient_10(data: Data) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--freeze-layers", type=bool, default=True)
    options = parser.parse_args(["--freeze-layers", "False"])
    model = cropkit.create_model("mobilenet_v3_small", num_classes=len(data.names), weights=None)
    if options.freeze_layers:
        cropkit.freeze_backbone(model)
    learning, all_of_them = (cropkit.count_parameters(model, trainable_only=only) for only in (True, False))
    return {"weights that learn": learning, "weights": all_of_them, "options": options}


def patient_11(data: Data) -> dict[str, Any]:
    labels = data.tables["train"]["label"]
    merged = {"passion fruit": "grape"}  # the two climbers become one class
    labels = labels.replace(merged)
    return {"classes before": len(data.names), "classes after": labels.nunique(), "labels": labels, "merged": merged}


def patient_12(data: Data) -> dict[str, Any]:
    torch.manual_seed(0)
    turn = v2.RandomRotation(90)
    squares = [
        v2.functional.center_crop(v2.functional.resize(photo, 256), [224]) for photo in data.photos("train")[::16]
    ]
    return {"pictures": [turn(square) for square in squares], "before": squares, "turn": turn}


def patient_13(data: Data) -> dict[str, Any]:
    torch.manual_seed(1)
    photos, targets = data.batch()
    mixed, soft = v2.CutMix(num_classes=len(data.names))(photos, targets)  # a piece of another photo in each
    head, vectors = data.new_head(), data.features(mixed)
    targets = soft.argmax(dim=1)
    losses = learn(head, vectors, targets, steps=400)
    sure = head(vectors).softmax(dim=1).max(dim=1).values
    return {
        "losses": losses,
        "share of the larger piece": soft.max(dim=1).values.mean().item(),
        "probability of its class": sure.mean().item(),
        "targets": targets,
    }


def patient_14(data: Data) -> dict[str, Any]:
    head = data.new_head()
    vectors, targets = data.vectors["train"][:40], data.targets["train"][:40]
    learn(head, vectors, targets, steps=400)
    right = batches = 0
    for some, true in zip(vectors.split(32), targets.split(32), strict=True):
        right += (head(some).argmax(dim=1) == true).sum().item()
        batches += 1
    accuracy = right / (batches * 32)
    return {"right": right, "photos": len(targets), "accuracy": accuracy}


def patient_15(data: Data) -> dict[str, Any]:
    model = data.model

    def answer_with_mirror(photos: Tensor) -> Tensor:
        both = (photos, photos.flip(dims=[3]))
        with torch.no_grad():
            return torch.stack([model(photos) for image in both]).mean(dim=0)

    photos, _ = data.batch()
    with torch.no_grad():
        alone = model(photos)
    changed = (answer_with_mirror(photos) != alone).any(dim=1).sum().item()
    return {"answers that the mirror image changes": f"{changed} of {len(photos)}", "answer": answer_with_mirror}


def patient_16(data: Data) -> dict[str, Any]:
    head = data.new_head()
    known = data.targets["train"] != data.names.index("tea")  # the photos of tea came too late
    learn(head, data.vectors["train"][known], data.targets["train"][known])
    predicted, targets = head(data.vectors["test"]).argmax(dim=1), data.targets["test"]
    score = 0.0
    for number in range(len(data.names)):
        named, true = predicted == number, targets == number
        precision = share(true[named]) if named.any() else 1.0
        score += precision * share(true)  # weighted by the class's photos
    official = precision_score(targets, predicted, average="weighted", zero_division=0)
    return {"my script": score, "official": float(official), "predicted": predicted, "targets": targets}


@dataclass(frozen=True)
class Patient:
    """One bug.

    Attributes:
        group: head and labels, preprocessing, data, training, or metrics and submission.
        code: has the bug; returns the symptom and what an examination needs.
        symptom: in a few words, for the closing table.
        causes: what it could be, by letter.
        right: the letter of what it is.
        hints: by the other letters, what that cause's examination would have shown.
        examination: what to look at first.
        cure: pairs of a text of `code` and the text that takes its place.
        healthy: False for what `code` returns, True for what the cured code returns.
        guard: what of cropkit prevents the bug, in a few words.
        refusal: where cropkit refuses the bug, a call that shows with which sentence.
    """

    group: str
    code: Callable[[Data], dict[str, Any]]
    symptom: str
    causes: dict[str, str]
    right: str
    hints: dict[str, str]
    examination: str
    cure: Sequence[tuple[str, str]]
    healthy: Callable[[dict[str, Any], Data], bool]
    guard: str
    refusal: Callable[[Data], object] | None = None

    def cured(self) -> str:
        """The code of the patient after the cure."""
        text = inspect.getsource(self.code)
        for wrong, good in self.cure:
            assert wrong in text, f"{self.code.__name__} has no {wrong!r}"
            text = text.replace(wrong, good)
        return text

    def run_cured(self, data: Data) -> dict[str, Any]:
        """What the patient's code returns after the cure."""
        scope: dict[str, Any] = {}
        exec(compile(self.cured(), f"<cured {self.code.__name__}>", "exec"), globals(), scope)
        return scope[self.code.__name__](data)


def _submitted_as_answered(case: dict[str, Any], data: Data) -> bool:
    """Whether each file of a submission has the name of the model's answer for it."""
    said = dict(zip(data.tables["test"]["path"], (case["classes"][n] for n in case["numbers"]), strict=True))
    return case["submission"]["label"].tolist() == [said[path] for path in case["submission"]["filename"]]


def _held(case: dict[str, Any]) -> bool:
    """Whether an optimiser holds the weights that the loss depends on."""
    held = {id(weight) for group in case["optimizer"].param_groups for weight in group["params"]}
    return all(id(weight) in held for weight in list(case["model"].parameters())[-2:])


def _check_optimizer_of(case: dict[str, Any]) -> None:
    check_optimizer(case["model"], case["optimizer"])


def _pixels(picture: Image.Image) -> Tensor:
    return v2.functional.pil_to_tensor(picture).flatten(1).sort(dim=1).values


STILL = {
    "a": "the learning rate is far too small",
    "b": "the new layer is in the model, but the forward pass does not use it",
    "c": "the optimiser holds the weights of an earlier model",
    "d": "the photos were normalised wrongly",
}
AT_CHANCE = {
    "a": "the model has memorised the training photos",
    "b": "the classes of val are numbered differently from those of train",
    "c": "the photos of val are prepared differently from those of train",
    "d": "dropout was on during the evaluation",
}
TOO_GOOD = {
    "a": "val is too small, and this is luck",
    "b": "photos of val are among the photos that the model learned from",
    "c": "the photos of test are prepared differently from those of val",
    "d": "many labels of test are wrong",
}
ZERO = {
    "a": "the photos of test are prepared differently from those of val",
    "b": "numbers become names by another list than in training",
    "c": "the rows of the file stand in another order than the answers",
    "d": "the photos of test are of other crops",
}
STILL_HINTS = {
    "a": "A larger rate: the loss stays the same to the last digit. So it is not the size of the step.",
    "b": "The output has as many columns as there are classes, so the layer is in use. Does the optimiser hold it?",
    "c": "The optimiser holds the new layer's own weights. Is that layer in use? How many columns has the output?",
    "d": "Wrongly normalised photos make a bad loss, not one that stands still: the features still differ by photo.",
}
AT_CHANCE_HINTS = {
    "a": "A model that has memorised photos is worse on others, but not as bad as guessing. Look at the photos of val.",
    "b": "Compare the targets of val photos of each class with the class's number in train: they agree.",
    "c": "The features of val come from the same function as those of train. Look at the targets.",
    "d": "There is no dropout in a linear head, and `model.training` is False.",
}
TOO_GOOD_HINTS = {
    "a": "With these photos, chance alone gives a difference of that size about three times in a thousand.",
    "b": "No path of val is among those that the model learned from.",
    "c": "Prepare a photo of test twice: the tensors are equal. Look at what the model learned from.",
    "d": "Look at the test photos: a few labels are wrong, about as many as in val.",
}
ZERO_HINTS = {
    "a": "The features of val and test come from one function. Follow one answer from its number to its row.",
    "b": "The name in the row is the one that this number had in training. But of which file is the row?",
    "c": "The files stand in the order in which they were read. Follow one answer from its number to its name.",
    "d": "They are of the same eight crops.",
}


def _without(hints: dict[str, str], right: str) -> dict[str, str]:
    return {letter: hint for letter, hint in hints.items() if letter != right}


PATIENTS = {
    1: Patient(
        group="head and labels",
        code=patient_1,
        symptom="the head is 5 MB large",
        causes={
            "a": "the weights are stored as 64-bit numbers",
            "b": "the optimiser was saved with them",
            "c": "the new layer stands behind the old head, not in its place",
            "d": "eight classes need a head that large",
        },
        right="c",
        hints={
            "a": "`next(head.parameters()).dtype` is torch.float32.",
            "b": "Only the head's own weights were counted.",
            "d": "1280 features times 8 classes and 8 biases are 10,248 numbers of 4 bytes: 0.04 MB.",
        },
        examination="print the head",
        cure=[("nn.Sequential(old, nn.Linear(old.out_features, len(data.names)))",
               "nn.Linear(old.in_features, len(data.names))")],
        healthy=lambda case, data: sum(isinstance(layer, nn.Linear) for layer in case["head"].modules()) == 1,
        guard="reset_classifier(model, 8) puts the new layer in the old one's place.",
    ),
    2: Patient(
        group="head and labels",
        code=patient_2,
        symptom="the loss stands still",
        causes=STILL,
        right="b",
        hints=_without(STILL_HINTS, "b"),
        examination="the gradient of the new layer; the shape of the output",
        cure=[("model.classifier", "model.fc")],
        healthy=lambda case, data: case["model"](case["photos"]).shape[1] == len(data.names) and _held(case),
        guard="fit and predict compare the outputs with the classes.",
        refusal=lambda data: check_head(patient_2(data)["model"], data.names),
    ),
    3: Patient(
        group="training",
        code=patient_3,
        symptom="the loss stands still",
        causes=STILL,
        right="c",
        hints=_without(STILL_HINTS, "c"),
        examination="are the optimiser's weights the model's?",
        cure=[("head.load_state_dict(saved)",
               "head.load_state_dict(saved)\n            optimizer = optim.SGD(head.parameters(), lr=0.1)")],
        healthy=lambda case, data: _held(case),
        guard="fit refuses an optimiser that does not hold the weights that learn.",
        refusal=lambda data: _check_optimizer_of(patient_3(data)),
    ),
    4: Patient(
        group="head and labels",
        code=patient_4,
        symptom="train loss falls, val accuracy at chance",
        causes=AT_CHANCE,
        right="b",
        hints=_without(AT_CHANCE_HINTS, "b"),
        examination="the number of classes; the targets of val photos of each class",
        cure=[('"bambooshoots" "custardapple"', '"bambooshoots", "custardapple"')],
        healthy=lambda case, data: torch.equal(case["val targets"], data.targets["val"]),
        guard="a label that is not in the list of classes is refused, with its photo.",
        refusal=lambda data: CropDataset(data.tables["val"], patient_4(data)["classes"], preprocessing_of(data.model)),
    ),
    5: Patient(
        group="preprocessing",
        code=patient_5,
        symptom="train loss falls, val accuracy at chance",
        causes=AT_CHANCE,
        right="c",
        hints=_without(AT_CHANCE_HINTS, "c"),
        examination="smallest and largest value of the photos that go in",
        cure=[(".float()", ".float() / 255")],
        healthy=lambda case, data: case["photos"].abs().max() < 10,
        guard="transforms_for(model) scales and normalises a photo as the weights expect it.",
    ),
    6: Patient(
        group="preprocessing",
        code=patient_6,
        symptom="val accuracy far above test accuracy",
        causes=TOO_GOOD,
        right="c",
        hints=_without(TOO_GOOD_HINTS, "c"),
        examination="prepare one test photo twice, and compare",
        cure=[('"test": varied', '"test": plain')],
        healthy=lambda case, data: all(
            torch.equal(case["transform"](photo), case["transform"](photo)) for photo in data.photos("test")
        ),
        guard="only a training batch is varied: predict and evaluate take each photo as it is.",
    ),
    7: Patient(
        group="data",
        code=patient_7,
        symptom="val accuracy far above test accuracy",
        causes=TOO_GOOD,
        right="b",
        hints=_without(TOO_GOOD_HINTS, "b"),
        examination="how many photos of val the model learned from",
        cure=[("pd.concat([train, val])", "train")],
        healthy=lambda case, data: case["learned from"].isdisjoint(case["chosen by"]),
        guard="a run writes split.csv, and `cropkit evaluate` counts no photo that the model has learned from.",
    ),
    8: Patient(
        group="head and labels",
        code=patient_8,
        symptom="val accuracy good, the submission scores like guessing",
        causes=ZERO,
        right="b",
        hints=_without(ZERO_HINTS, "b"),
        examination="one answer's number, and its name in training and in the file",
        cure=[("sorted(classes)[n]", "classes[n]")],
        healthy=_submitted_as_answered,
        guard="class_names(catalog) is sorted, and a trained model carries its list: predict answers with names.",
    ),
    9: Patient(
        group="data",
        code=patient_9,
        symptom="val accuracy good, the submission scores like guessing",
        causes=ZERO,
        right="c",
        hints=_without(ZERO_HINTS, "c"),
        examination="does the first row name the first photo?",
        cure=[("random.Random(0).shuffle(paths)", "paths = random.Random(0).sample(paths, len(paths))")],
        healthy=_submitted_as_answered,
        guard="predict returns path and answer in one row, so sorting or shuffling keeps them together.",
    ),
    10: Patient(
        group="training",
        code=patient_10,
        symptom="everything was to learn, and next to nothing does",
        causes={
            "a": "a model without pretrained weights is frozen from the start",
            "b": "freeze_backbone ignores its option",
            "c": "count_parameters counts the head only",
            "d": 'the text "False" became True',
        },
        right="d",
        hints={
            "a": "count_parameters(create_model(..., weights=None), trainable_only=True): all of them learn.",
            "b": "It has no option: whoever calls it freezes. So it was called.",
            "c": "Without freeze_backbone it counts all of them.",
        },
        examination="print the options",
        cure=[("type=bool", "action=argparse.BooleanOptionalAction"),
              ('["--freeze-layers", "False"]', '["--no-freeze-layers"]')],
        healthy=lambda case, data: case["weights that learn"] == case["weights"],
        guard="Config takes True and False for a switch, and no text.",
        refusal=lambda data: cropkit.Config(mirror="False"),  # type: ignore[arg-type]
    ),
    11: Patient(
        group="data",
        code=patient_11,
        symptom="two classes were merged, and there are as many as before",
        causes={
            "a": "a name in the dictionary is spelled differently from the label",
            "b": "replace changes nothing unless told inplace=True",
            "c": "the labels are numbers, not names",
            "d": "the labels were read from the disk again afterwards",
        },
        right="a",
        hints={
            "b": "replace returns a new column, and it was given the name `labels` again.",
            "c": "`labels.iloc[0]` is a name.",
            "d": "The count is taken from the same column, one line later.",
        },
        examination="which names of the dictionary are not a label",
        cure=[('"passion fruit"', '"passionfruit"')],
        healthy=lambda case, data: not set(case["merged"]) & set(case["labels"]) and case["classes after"] == 7,
        guard="relabel refuses a name that is no class.",
        refusal=lambda data: relabel(data.tables["train"], patient_11(data)["merged"]),
    ),
    12: Patient(
        group="preprocessing",
        code=patient_12,
        symptom="quarter turns were wanted; the photos lie askew, with black corners",
        causes={
            "a": "the photos were saved with black corners",
            "b": "the camera's EXIF turn was added to it",
            "c": "90 is not the angle, but the largest angle",
            "d": "a corner was cut off before the turn",
        },
        right="c",
        hints={
            "a": "The photos before the turn have none.",
            "b": "The photos were upright before the turn, and EXIF knows only quarter turns.",
            "d": "The photos before the turn are whole squares.",
        },
        examination="print the transform",
        cure=[("v2.RandomRotation(90)",
               "v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)])")],
        healthy=lambda case, data: all(
            torch.equal(_pixels(one), _pixels(other))
            for one, other in zip(case["pictures"], case["before"], strict=True)
        ),
        guard="none needed: cropkit only cuts and mirrors, and open_photo turns by EXIF.",
    ),
    13: Patient(
        group="training",
        code=patient_13,
        symptom="sure of one crop where the photo holds two",
        causes={
            "a": "of two labels with their shares only one label is left",
            "b": "the pieces that CutMix pastes are too small",
            "c": "the learning rate is too high",
            "d": "the mixed photos were not normalised",
        },
        right="a",
        hints={
            "b": "The larger piece has the share that is printed. So each photo has a piece of another one.",
            "c": "The loss falls smoothly to zero. That is the point: it should not be able to.",
            "d": "They were mixed after the normalisation, so they have the same range as before.",
        },
        examination="the shape of the targets",
        cure=[("soft.argmax(dim=1)", "soft")],
        healthy=lambda case, data: case["targets"].shape == (16, len(data.names)),
        guard="none: fit takes class numbers, and has no CutMix.",
    ),
    14: Patient(
        group="metrics and submission",
        code=patient_14,
        symptom="the script's accuracy is lower than the count by hand",
        causes={
            "a": "dropout is on",
            "b": "some labels are wrong",
            "c": "argmax looks along the wrong dimension",
            "d": "the last batch has fewer photos than the others",
        },
        right="d",
        hints={
            "a": "The head is one linear layer. There is no dropout in it.",
            "b": "The count by hand uses the same labels.",
            "c": "The count by hand uses the same argmax, and is right.",
        },
        examination="the number of photos in each batch",
        cure=[("right / (batches * 32)", "right / len(targets)")],
        healthy=lambda case, data: case["accuracy"] == case["right"] / case["photos"],
        guard="evaluate sums over photos, and divides by their number once.",
    ),
    15: Patient(
        group="metrics and submission",
        code=patient_15,
        symptom="answering with mirror images changes nothing at all",
        causes={
            "a": "the backbone gives a photo and its mirror image the same answer",
            "b": "the mean of two answers is close to each of them",
            "c": "the same image is answered twice",
            "d": "the model is in train mode",
        },
        right="c",
        hints={
            "a": "model(photos.flip(dims=[3])) is not model(photos): try it.",
            "b": "Close, but not equal to the last digit. Here they are equal.",
            "d": "`model.training` is False. In train mode answers would change, not stay.",
        },
        examination="give it the mirrored photo: the answer must be the same",
        cure=[("model(photos) for image", "model(image) for image")],
        healthy=lambda case, data: torch.allclose(
            case["answer"](data.batch()[0]), case["answer"](data.batch()[0].flip(dims=[3])), atol=1e-3
        ),
        guard="predict(model, photos, mirror=True) answers by both.",
    ),
    16: Patient(
        group="metrics and submission",
        code=patient_16,
        symptom="my score is higher than the official one",
        causes={
            "a": "a class that is never predicted counts as perfect",
            "b": "the mean over the classes is not weighted",
            "c": "recall was taken for precision",
            "d": "the competition has other photos",
        },
        right="a",
        hints={
            "b": "The last line of the loop weighs each class by its photos.",
            "c": "`true[named]`: of the photos named so, the share that is. That is precision.",
            "d": "scikit-learn, on these same photos, gives the lower score too.",
        },
        examination="how often each class is predicted",
        cure=[("else 1.0", "else 0.0")],
        healthy=lambda case, data: bool(np.isclose(case["my script"], case["official"])),
        guard="never_predicted names the class, and its precision counts as 0.",
    ),
}  # fmt: skip


def _numbers(case: dict[str, Any], data: Data) -> dict[str, str]:
    """What of a symptom is a number, by name."""
    said = {name: value for name, value in case.items() if isinstance(value, int | float | str)}
    if "losses" in case:
        said["train loss at the end"] = case["losses"][-1]
    if "submission" in case:
        truth = data.tables["test"].set_index("path")["label"]
        right = case["submission"]["label"] == truth.loc[case["submission"]["filename"]].to_numpy()
        said |= {"the submission's accuracy": float(right.mean()), "accuracy of guessing": 1 / len(data.names)}
    return {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in said.items()}


def admit(number: int, data: Data) -> dict[str, Any]:
    """Show a patient's code, run it, show the symptom, and return what the code returns."""
    patient = PATIENTS[number]
    display(Markdown(f"```python\n{inspect.getsource(patient.code)}```"))
    case = patient.code(data)
    for name, value in _numbers(case, data).items():
        print(f"{name}: {value}")
    if "losses" in case:
        _, ax = plt.subplots(figsize=(4.5, 2.2), layout="constrained")
        ax.plot(case["losses"])
        ax.set(xlabel="step", ylabel="train loss", ylim=(0, 1.1 * max(case["losses"])))
        plt.show()
    if "pictures" in case:
        _, axes = plt.subplots(2, 4, figsize=(8, 4), layout="constrained")
        for ax, picture in zip(axes.flat, case["pictures"], strict=False):
            ax.imshow(picture)
        for ax in axes.flat:
            ax.axis("off")
        plt.show()
    return case


def diagnose(number: int, letter: str) -> None:
    """Check a diagnosis: a wrong one gets a hint what its examination would have shown."""
    patient = PATIENTS[number]
    answer(letter, patient.right, f"{patient.causes[patient.right]} (patient {number}).", hints=patient.hints)


def treat(number: int, data: Data) -> None:
    """Show the cure, what it changes, and that the check fails before and passes after; then what cropkit does.

    Raises:
        AssertionError: if the code is not sick, or not cured.
    """
    patient = PATIENTS[number]
    sick, cured = patient.code(data), patient.run_cured(data)
    lines = difflib.ndiff(inspect.getsource(patient.code).splitlines(), patient.cured().splitlines())
    print("\n".join(line for line in lines if line[0] in "+-"))
    for name, value in _numbers(sick, data).items():
        print(f"{name}: {value} -> {_numbers(cured, data)[name]}")
    before, after = patient.healthy(sick, data), patient.healthy(cured, data)
    print(f"the check: {'passes' if before else 'fails'} before, {'passes' if after else 'fails'} after")
    assert not before, "the check does not notice the bug"
    assert after, "the cure does not cure"
    print(f"cropkit: {patient.guard}")
    try:
        if patient.refusal is not None:
            patient.refusal(data)
    except ValueError as refused:
        print(f"{type(refused).__name__}: {refused}")


def closing_table() -> pd.DataFrame:
    """All patients: symptom, first examination, cause, and what cropkit does about it."""
    return pd.DataFrame(
        {
            "patient": number,
            "group": patient.group,
            "symptom": patient.symptom,
            "first examination": patient.examination,
            "cause": patient.causes[patient.right],
            "guard in cropkit": patient.guard.removesuffix("."),
        }
        for number, patient in PATIENTS.items()
    )
