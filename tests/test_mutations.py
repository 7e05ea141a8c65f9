"""Does a notebook notice when what it teaches is broken? Each row breaks one thing, and its notebook must fail.

`pytest -m slow -s tests/test_mutations.py` prints the table: the notebook, what was broken, and the error.
"""

from dataclasses import dataclass

import nbformat
import pytest
from notebook_runs import FOLDER, code_cells, run


@dataclass(frozen=True)
class Mutation:
    """One small change that breaks what a notebook says.

    Attributes:
        notebook: the one that must fail, without ``.ipynb``.
        what: what is wrong now.
        error: a part of the error that must come; another error would have another cause.
        startup: code that changes cropkit, after `BEFORE`.
        replace: a text that stands once in the notebook's code, and what stands there instead.
    """

    notebook: str
    what: str
    error: str
    startup: str = ""
    replace: tuple[str, str] | None = None

    def __str__(self) -> str:
        return f"{self.notebook[:2]}-{self.what}"


# What every startup code finds. {folder} keeps what a broken cropkit computes away from everybody else's results.
BEFORE = """
import contextlib, copy, dataclasses, sys, types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFile
from torch import nn

import cropkit
from cropkit import course, experiments
from cropkit.course import records, settings
from cropkit.data import catalog, corrections, datasets, photos, pictures, splitting
from cropkit.evaluation import label_errors, metrics, predictions
from cropkit.models import surgery, weights
from cropkit.training import features, guards, inference, loop, processes

course.CACHE = Path({folder!r}) / "cache"
course.OUT = settings.OUT = records.OUT = Path({folder!r}) / "results"


def everywhere(old, new):
    "Put a function in the place of another, in all modules that have imported it; returns the other one."
    for module in [module for name, module in sys.modules.items() if name.startswith("cropkit")]:
        for name in [name for name, value in vars(module).items() if value is old]:
            setattr(module, name, new)
    return old

"""

# Used in two lessons.
HEAD_ONLY_RENUMBERED = """
def renumber(model, num_classes):
    _, head = surgery.get_classifier(model)
    head.out_features = num_classes
    return head
everywhere(surgery.reset_classifier, renumber)
"""
HEAD_REUSED = """
def reuse(model, num_classes):
    _, old = surgery.get_classifier(model)
    new = intact(model, num_classes)
    new.load_state_dict({name: tensor[:num_classes] for name, tensor in old.state_dict().items()})
    return new
intact = everywhere(surgery.reset_classifier, reuse)
"""
ALL_COUNTED = """
def count(model, *, trainable_only=False):
    return sum(p.numel() for p in model.parameters())
everywhere(surgery.count_parameters, count)
"""
HEAD_FROZEN_TOO = """
def freeze(model):
    intact(model)
    model.requires_grad_(False)
intact = everywhere(surgery.freeze_backbone, freeze)
"""

MUTATIONS = [
    Mutation(
        "00_check_your_setup",
        "the model predicts in train mode",
        error="a photo's answer depends on the photo beside it",
        replace=("model.eval()(batch)", "model.train()(batch)"),
    ),
    Mutation(
        "00_check_your_setup",
        "a damaged file of weights is taken",
        error="a weight is not a number",
        startup="""
def damaged(path):
    state = intact(path)
    next(iter(state.values()))[0] = float("nan")
    return state
intact = everywhere(weights.read_state_dict, damaged)
""",
    ),
    Mutation(
        "00_check_your_setup",
        "the catalog has lost the test photos",
        error="a split is missing",
        startup="""
def without_test(root):
    found, left_out = intact(root)
    return found[found["split"] != "test"].reset_index(drop=True), left_out
intact = everywhere(splitting.prepare, without_test)
""",
    ),
    Mutation(
        "00_check_your_setup",
        "a class has lost its training photos",
        error="a class has no training photos",
        startup="""
def untaught(root):
    found, left_out = intact(root)
    lost = (found["split"] == "train") & (found["label"] == found["label"].min())
    return found[~lost].reset_index(drop=True), left_out
intact = everywhere(splitting.prepare, untaught)
""",
    ),
    Mutation(
        "00_check_your_setup",
        "photos are not normalised",
        error="the photo was not resized and scaled",
        startup="""
def as_pixels(model, **kwargs):
    made = intact(model, **kwargs)
    return lambda photo: made(photo) * 0.2 + 0.5
intact = everywhere(datasets.transforms_for, as_pixels)
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "photos that broke off are taken",
        error="other files are bad than the answer key lists",
        startup="ImageFile.LOAD_TRUNCATED_IMAGES = True",
    ),
    Mutation(
        "01_meet_the_crops",
        "open_photo ignores the EXIF orientation",
        error="a photo has another size than the catalog says",
        startup="""
def as_stored(path, *, min_side=None):
    upright = intact(path, min_side=min_side)
    photo = Image.open(path).convert("RGB")
    photo.info = upright.info
    return photo
intact = everywhere(photos.open_photo, as_stored)
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "grey stays grey",
        error="a photo is not RGB",
        startup="everywhere(photos._to_rgb, lambda image: image.copy())",
    ),
    Mutation(
        "01_meet_the_crops",
        "hidden folders are read",
        error="others were called copies too",
        startup="""
def every_jpg(root):
    return [file.relative_to(root).as_posix() for file in root.rglob("*") if file.suffix.lower() == ".jpg"], []
everywhere(catalog.list_files, every_jpg)
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "only equal bytes are copies",
        error="not in index",  # a copy that is in no group
        startup="everywhere(pictures.same_picture, lambda one, other: False)",
    ),
    Mutation(
        "01_meet_the_crops",
        "split divides files, not pictures",
        error="a picture is in two splits",
        startup="""
def at_random(catalog, *, fractions=(0.6, 0.2, 0.2), seed=0):
    parts = np.random.default_rng(seed).choice(["train", "val", "test"], size=len(catalog), p=fractions)
    return catalog.assign(split=parts)
everywhere(splitting.split, at_random)
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "split does not look at the classes",
        error="has no training photo",
        startup="""
def by_order(catalog, *, fractions=(0.6, 0.2, 0.2), seed=0):
    pictures = list(dict.fromkeys(catalog.sort_values("label")["sha256"]))
    place = catalog["sha256"].map(pictures.index) / len(pictures)
    return catalog.assign(split=pd.cut(place, [-1, 0.6, 0.8, 1], labels=["train", "val", "test"]).astype(str))
everywhere(splitting.split, by_order)
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "drop_leaks drops nothing",
        error="a picture is still in two splits",
        startup="""
def keep_all(catalog):
    return catalog, catalog.iloc[:0].assign(reason="")[splitting.LEFT_OUT]
everywhere(splitting.drop_leaks, keep_all)
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "drop_leaks keeps pictures under two classes",
        error="a picture is still under two classes",
        startup="""
def blind_to_labels(catalog):
    kept, left_out = intact(catalog.assign(label="any"))
    return catalog[catalog["path"].isin(kept["path"])].reset_index(drop=True), left_out
intact = everywhere(splitting.drop_leaks, blind_to_labels)
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "the class list is not sorted",
        error="the class list is not the sorted one",
        startup="intact = everywhere(catalog.class_names, lambda photos: intact(photos)[::-1])",
    ),
    Mutation(
        "01_meet_the_crops",
        "each loader makes a class list of its own",
        error="a loader's indices name other classes",
        startup="""
def own_list(self, catalog, class_names, *args, **kwargs):
    intact(self, catalog, sorted(set(catalog["label"])), *args, **kwargs)
intact, datasets.CropDataset.__init__ = datasets.CropDataset.__init__, own_list
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "every copy is called exact",
        error="other files than those of equal bytes are called exact",
        startup="""
intact = everywhere(splitting.find_duplicates, lambda found: intact(found).assign(exact=True))
""",
    ),
    Mutation(
        "01_meet_the_crops",
        "twins in val count as taught",
        error="photos of another split than train were counted as taught",
        replace=('twins.loc[thrown == "train", "sha256"]', 'twins.loc[thrown != "test", "sha256"]'),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "the pixels are not scaled to 0..1",
        error="the tensor is not 3 x 8 x 8 in 0..1",
        replace=("pixels.permute(2, 0, 1) / 255", "pixels.permute(2, 0, 1)"),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "softmax over the photos, not the classes",
        error="softmax by hand gives a different result",
        replace=("probabilities = logits.softmax(dim=1)", "probabilities = logits.softmax(dim=0)"),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "softmax before cross-entropy, which does it too",
        error="cross-entropy by hand gives a different result",
        replace=(
            "(network(photos), targets)  # takes logits",
            "(network(photos).softmax(dim=1), targets)  # takes logits",
        ),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "the gradient of another weight",
        error="backward gives another slope than trying it out",
        replace=("bias.grad[0].item()", "bias.grad[1].item()"),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "a step along the gradient",
        error="a small step against the gradient did not lower the loss",
        replace=("weight -= 0.1 * weight.grad", "weight += 0.1 * weight.grad"),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "the loop forgets zero_grad",
        error="the loss on the training photos did not fall",
        replace=("        optimizer.zero_grad()\n        loss.backward()", "        loss.backward()"),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "the loop makes no step",
        error="the loss on the training photos did not fall",
        replace=("        optimizer.step()\n    with torch.no_grad()", "    with torch.no_grad()"),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "the best network is kept by reference",
        error="counting photo by photo gives a different number",
        replace=("kept = copy.deepcopy(trained)", "kept = trained"),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "val is train again",
        error="photos of another split",
        replace=('rows = catalog[catalog["split"] == split]', 'rows = catalog[catalog["split"] == "train"]'),
    ),
    Mutation(
        "02_from_a_photo_to_a_loss",
        "the pixels are dealt out to the channels as they come",
        error="the tensor has a pixel in another place than the photo",
        replace=("pixels.permute(2, 0, 1)", "pixels.reshape(3, SIDE, SIDE)"),
    ),
    Mutation(
        "03_the_1000_class_head",
        "a new head takes the old one's weights",
        error="an untrained head of 1000 does not start near ln 1000",
        startup=HEAD_REUSED,
    ),
    Mutation(
        "03_the_1000_class_head",
        "reset_classifier changes a stored number only",
        error="an untrained head of 1000 does not start near ln 1000",
        startup=HEAD_ONLY_RENUMBERED,
    ),
    Mutation(
        "03_the_1000_class_head",
        "evaluate adds up and does not divide",
        error="an untrained head of 1000 does not start near ln 1000",
        startup="""
def undivided(model, loader, criterion=None):
    loss, accuracy = intact(model, loader, criterion)
    return loss * len(loader.dataset), accuracy
intact = everywhere(loop.evaluate, undivided)
""",
    ),
    Mutation(
        "03_the_1000_class_head",
        "the eight steps are not made",
        error="the loss did not fall",
        replace=("    optimizer.step()\n    losses.append", "    losses.append"),
    ),
    Mutation(
        "03_the_1000_class_head",
        "the outputs that exist are counted, not the others",
        error="classes that do not exist did not lose probability",
        replace=("softmax(dim=1)[:, num_classes:]", "softmax(dim=1)[:, :num_classes]"),
    ),
    Mutation(
        "03_the_1000_class_head",
        "check_head accepts any head",
        error="the error does not say: 1000 outputs",
        startup="everywhere(surgery.check_head, lambda model, class_names: None)",
    ),
    Mutation(
        "03_the_1000_class_head",
        "fit does not check the head",
        error="fit took a model whose head does not fit the classes",
        startup="loop.check_head = lambda model, class_names: None",
    ),
    Mutation(
        "03_the_1000_class_head",
        "fit checks the head after an epoch",
        error="a refused call has changed the model",
        startup="""
def late(model, loaders, optimizer, **kwargs):
    loop.train_one_epoch(model, loaders["train"], optimizer, nn.CrossEntropyLoss())
    return intact(model, loaders, optimizer, **kwargs)
intact = everywhere(loop.fit, late)
""",
    ),
    Mutation(
        "03_the_1000_class_head",
        "predict does not check the head",
        error="Expected size 33 but got size 1000",
        startup="predictions.check_head = lambda model, class_names: None",
    ),
    Mutation(
        "03_the_1000_class_head",
        "get_classifier takes the first linear layer",
        error="Sequential ends in 0.classifier with 1000 outputs",
        startup="""
def first(model):
    return next((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
everywhere(surgery.get_classifier, first)
""",
    ),
    Mutation(
        "03_the_1000_class_head",
        "the given head learns, not a copy of it",
        error="the given head has learned, not its copy",
        replace=("head = copy.deepcopy(head)", "head = head.train()"),
    ),
    Mutation(
        "04_replace_the_head",
        "a model for other classes comes without its weights",
        error="something else than the head has changed",
        startup="""
def blank(arch, *, num_classes=None, weights="imagenet", **kwargs):
    return intact(arch, num_classes=num_classes, weights=None if num_classes else weights, **kwargs)
intact = everywhere(surgery.create_model, blank)
""",
    ),
    Mutation(
        "04_replace_the_head",
        "get_classifier takes the last linear layer",
        error="found a single linear head where there is none",
        startup="""
def last(model):
    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ValueError("no linear layer")
    return linear[-1]
everywhere(surgery.get_classifier, last)
""",
    ),
    Mutation(
        "04_replace_the_head",
        "reset_classifier changes a stored number only",
        error="the numbers of trainable weights are wrong",
        startup=HEAD_ONLY_RENUMBERED,
    ),
    Mutation(
        "04_replace_the_head",
        "count_parameters ignores trainable_only",
        error="the numbers of trainable weights are wrong",
        startup=ALL_COUNTED,
    ),
    Mutation(
        "04_replace_the_head",
        "freeze_backbone freezes the head too",
        error="the numbers of trainable weights are wrong",
        startup=HEAD_FROZEN_TOO,
    ),
    Mutation(
        "04_replace_the_head",
        "the new head is all zeros",
        error="two new heads are equal, so they are not random",
        startup="""
def zeros(model, num_classes):
    new = intact(model, num_classes)
    nn.init.zeros_(new.weight)
    return new
intact = everywhere(surgery.reset_classifier, zeros)
""",
    ),
    Mutation(
        "04_replace_the_head",
        "a new head takes the old one's weights",
        error="two new heads are equal, so they are not random",
        startup=HEAD_REUSED,
    ),
    Mutation(
        "04_replace_the_head",
        "fit does not compare the optimiser with the model",
        error="fit accepted an optimiser that holds the old head",
        startup="guards.check_optimizer = lambda model, optimizer, scheduler=None: None",
    ),
    Mutation(
        "04_replace_the_head",
        "of a checkpoint that does not fit a part is loaded",
        error="the error does not list what is missing and unexpected",
        startup="""
def in_part(model, state, path):
    own = model.state_dict()
    fits = {name: tensor for name, tensor in state.items() if name in own and tensor.shape == own[name].shape}
    model.load_state_dict(fits, strict=False)
everywhere(surgery._load, in_part)
""",
    ),
    Mutation(
        "04_replace_the_head",
        "the head of a checkpoint is never kept",
        error="the numbers of outputs are wrong",
        startup="""
def without_head(model, path, *, new_head):
    intact(model, path, new_head=True)
intact = everywhere(surgery._load_own, without_head)
""",
    ),
    Mutation(
        "05_feature_extraction",
        "the head stays frozen",
        error="the trainable tensors are not the head's two",
        replace=("head.requires_grad_(True)\nlearning", "learning"),
    ),
    Mutation(
        "05_feature_extraction",
        "count_parameters ignores trainable_only",
        error="the number of trainable weights is wrong",
        startup=ALL_COUNTED,
    ),
    Mutation(
        "05_feature_extraction",
        "freeze_backbone freezes by gradients alone",
        error="a BatchNorm layer is still in train mode",
        startup="surgery._keep_in_eval = lambda module: None",
    ),
    Mutation(
        "05_feature_extraction",
        "frozen layers follow model.train()",
        error="a BatchNorm layer is still in train mode",
        startup="surgery._keep_in_eval = lambda module: module.eval()",
    ),
    Mutation(
        "05_feature_extraction",
        "freeze_backbone freezes the head too",
        error="the trainable tensors are not those from before",
        startup=HEAD_FROZEN_TOO,
    ),
    Mutation(
        "05_feature_extraction",
        "train_one_epoch forgets zero_grad",
        error="the loop by hand and train_one_epoch differ",
        startup="""
def adding(model, loader, optimizer, *args, **kwargs):
    optimizer.zero_grad = lambda: None
    return intact(model, loader, optimizer, *args, **kwargs)
intact = everywhere(loop.train_one_epoch, adding)
""",
    ),
    Mutation(
        "05_feature_extraction",
        "the loop by hand adds up means, not photos",
        error="the loop by hand and train_one_epoch differ",
        replace=("loss_sum += loss.item() * len(targets)", "loss_sum += loss.item()"),
    ),
    Mutation(
        "05_feature_extraction",
        "the hook keeps what the head returns",
        error="must match the size",  # 1280 numbers and 33
        replace=("received.append(inputs[0].cpu())", "received.append(output.cpu())"),
    ),
    Mutation(
        "05_feature_extraction",
        "the features are in another order than the photos",
        error="the features are not what the head receives",
        startup="""
def turned(*args, **kwargs):
    found = intact(*args, **kwargs)
    found.tensors = (found.tensors[0].flip(0), found.tensors[1])
    return found
intact = everywhere(features.extract_features, turned)
""",
    ),
    Mutation(
        "05_feature_extraction",
        "fit steps the schedule twice an epoch",
        error="the rate does not fall after every 7 epochs",
        startup="""
def twice(*args, scheduler=None, **kwargs):
    if scheduler is not None:
        step = scheduler.step
        scheduler.step = lambda: (step(), step())
    return intact(*args, scheduler=scheduler, **kwargs)
intact = everywhere(loop.fit, twice)
""",
    ),
    Mutation(
        "05_feature_extraction",
        "the table of fit lacks epoch 0",
        error="the rate does not fall after every 7 epochs",
        startup="""
def without_start(*args, **kwargs):
    return intact(*args, **kwargs)[1:].reset_index(drop=True)
intact = everywhere(loop.fit, without_start)
""",
    ),
    Mutation(
        "05_feature_extraction",
        "fit keeps the best weights by reference",
        error="fit did not leave the best epoch in the model",
        startup="loop.copy = types.SimpleNamespace(deepcopy=lambda state: state)",
    ),
    Mutation(
        "05_feature_extraction",
        "evaluate leaves the model in eval mode",
        error="evaluate has changed the model's mode",
        startup="inference.evaluating = lambda model: contextlib.nullcontext(model.eval())",
    ),
    Mutation(
        "05_feature_extraction",
        "evaluate measures in train mode",
        error="evaluate has changed the model",
        startup="""
def in_train_mode(*args, **kwargs):
    inference.evaluating = lambda model: contextlib.nullcontext(model.train())
    try:
        return intact(*args, **kwargs)
    finally:
        inference.evaluating = surgery.evaluating
intact = everywhere(loop.evaluate, in_train_mode)
""",
    ),
    Mutation(
        "05_feature_extraction",
        "fit_head keeps the head that it was given",
        error="the head does not hold what was fitted",
        startup="""
def unchanged(model, data):
    head = surgery.get_classifier(model)[1]
    state = copy.deepcopy(head.state_dict())
    table = intact(model, data)
    head.load_state_dict(state)
    return table
intact = everywhere(features.fit_head, unchanged)
""",
    ),
    Mutation(
        "05_feature_extraction",
        "unfreeze leaves the layers in eval mode",
        error="unfreeze left BatchNorm in eval mode",
        startup="""
everywhere(surgery.unfreeze, lambda model: model.requires_grad_(True))
""",
    ),
    Mutation(
        "05_feature_extraction",
        "predict gives each photo the next one's answer",
        error="predict and evaluate disagree",
        startup="""
intact = everywhere(predictions._log_probabilities, lambda *args: intact(*args).roll(1, dims=0))
""",
    ),
    Mutation(
        "05_feature_extraction",
        "evaluate takes the mean of the batches' means",
        error="the loss is not the mean over the photos",
        startup="""
def of_batches(model, loader, criterion=None):
    found = inference.answers(model, loader, "float32", "evaluate")
    losses = [nn.functional.cross_entropy(logits, targets).item() for logits, targets in found]
    return sum(losses) / len(losses), intact(model, loader)[1]
intact = everywhere(loop.evaluate, of_batches)
""",
    ),
    Mutation(
        "05_feature_extraction",
        "fit_head takes the worst C on val",
        error="not the best C on val was chosen",
        startup="features.max = min",
    ),
    Mutation(
        "06_fine_tuning",
        "fit_head leaves the head as it is",
        error="epoch 0 is not the head that training began with",
        startup='everywhere(features.fit_head, lambda model, data: pd.DataFrame({"val_accuracy": [0.0]}))',
    ),
    Mutation(
        "06_fine_tuning",
        "freeze_batchnorm freezes nothing",
        error="statistics moved",
        startup="everywhere(surgery.freeze_batchnorm, lambda model: None)",
    ),
    Mutation(
        "06_fine_tuning",
        "epoch 0 is left out",
        error="a curve has no epoch 0",
        startup="""
def later(*args, **kwargs):
    return intact(*args, **kwargs).query("epoch > 0")
intact = everywhere(loop.fit, later)
""",
    ),
    Mutation(
        "06_fine_tuning",
        "softmax over the photos",
        error="the gradient is not the errors times the head's weights",
        replace=("logits.softmax(dim=1) - nn", "logits.softmax(dim=0) - nn"),
    ),
    Mutation(
        "06_fine_tuning",
        "the two heads take no step",
        error="trained heads agree no more than random ones",
        replace=("optim.SGD(one.parameters(), lr=0.1", "optim.SGD(one.parameters(), lr=0.0"),
    ),
    Mutation(
        "06_fine_tuning",
        "predict names the classes in reverse",
        error="predict gave another answer for this photo",
        startup="""
intact = everywhere(predictions._table, lambda photos, names, logs: intact(photos, names[::-1], logs))
""",
    ),
    Mutation(
        "07_compare_fairly",
        "a run's name leaves out the seed",
        error="two seeds have one folder",
        startup="""
name = cropkit.Config.name.fget
cropkit.Config.name = property(lambda self: name(dataclasses.replace(self, seed=0)))
""",
    ),
    Mutation(
        "07_compare_fairly",
        "a run forgets its image size",
        error="the model has forgotten its image size",
        startup="""
intact = experiments.create_model
experiments.create_model = lambda *args, resolution=None, **kwargs: intact(*args, **kwargs)
""",
    ),
    Mutation(
        "07_compare_fairly",
        "bootstrap_interval covers 80 %",
        error="the interval by hand is another one",
        startup="""
intact = everywhere(metrics.bootstrap_interval, lambda table, *args: intact(table, *args, level=0.8))
""",
    ),
    Mutation(
        "07_compare_fairly",
        "McNemar's test has one side",
        error="McNemar's p-value is not the binomial one",
        startup="""
def one_sided(one, other):
    found = intact(one, other)
    return found | {"p_value": found["p_value"] / 2}
intact = everywhere(metrics.mcnemar, one_sided)
""",
    ),
    Mutation(
        "07_compare_fairly",
        "one photo more a class than was said",
        error="a run has learned from more photos than it should",
        replace=('train.groupby("label").head(photos)', 'train.groupby("label").head(photos + 1)'),
    ),
    Mutation(
        "07_compare_fairly",
        "chosen by test",
        error="choosing by val is not honest",
        replace=("val_scores.argmax(axis=1)", "test_scores.argmax(axis=1)"),
    ),
    Mutation(
        "08_read_the_confusion_matrix",
        "confusion_matrix is transposed",
        error="the matrix by hand is another one",
        startup="""
intact = everywhere(metrics.confusion_matrix, lambda *args, **kwargs: intact(*args, **kwargs).T)
""",
    ),
    Mutation(
        "08_read_the_confusion_matrix",
        "recall and precision are swapped",
        error="recall is not the share along the row",
        startup="""
swapped = {"recall": "precision", "precision": "recall"}
intact = everywhere(metrics.classification_report, lambda table: intact(table).rename(columns=swapped))
""",
    ),
    Mutation(
        "08_read_the_confusion_matrix",
        "top_losses begins with the smallest",
        error="the photos are not sorted by loss",
        startup='everywhere(metrics.top_losses, lambda table, count: table.sort_values("loss").head(count))',
    ),
    Mutation(
        "08_read_the_confusion_matrix",
        "find_label_errors begins with the least doubtful",
        error="the suspects are not sorted by doubt",
        startup="""
def turned(*args, **kwargs):
    return intact(*args, **kwargs).iloc[::-1].reset_index(drop=True)
intact = everywhere(label_errors.find_label_errors, turned)
""",
    ),
    Mutation(
        "08_read_the_confusion_matrix",
        "slices leaves out a group",
        error="a photo is in no slice",
        startup="intact = everywhere(metrics.slices, lambda *args: intact(*args).query(\"value != 'portrait'\"))",
    ),
    Mutation(
        "08_read_the_confusion_matrix",
        "the calibration error is not weighted by photos",
        error="the error is not the mean distance of confidence and accuracy",
        startup="""
def unweighted(table):
    bins = metrics.reliability(table).dropna()
    return (bins["accuracy"] - bins["confidence"]).abs().mean() + 1e-6
everywhere(metrics.expected_calibration_error, unweighted)
""",
    ),
    Mutation(
        "08_read_the_confusion_matrix",
        "most_confused counts one too many",
        error="the pairs do not say what the matrix says",
        startup="""
def one_more(table):
    pairs = intact(table)
    return pairs.assign(photos=pairs["photos"] + 1)
intact = everywhere(metrics.most_confused, one_more)
""",
    ),
    Mutation(
        "09_fix_and_rerun",
        "correct leaves the labels as they are",
        error="another number of labels changed than the file says",
        startup="everywhere(corrections.correct, lambda catalog, file: catalog.copy())",
    ),
    Mutation(
        "09_fix_and_rerun",
        "a copy is turned in its old frame",
        error="a copy is not turned by a quarter",
        replace=(".rotate(-90, expand=True)", ".rotate(-90)"),
    ),
    Mutation(
        "09_fix_and_rerun",
        "val stays as it was filed",
        error="val was not repaired",
        replace=('val, test = fixed[fixed["split"] == "val"]', 'val, test = catalog[catalog["split"] == "val"]'),
    ),
    Mutation(
        "09_fix_and_rerun",
        "mcnemar swaps its counts",
        error="the photos that changed do not explain the difference",
        startup="""
intact = everywhere(metrics.mcnemar, lambda one, other: intact(other, one))
""",
    ),
    Mutation(
        "09_fix_and_rerun",
        "the seed does not decide the head",
        error="two runs of one config trained other heads",
        startup="""
def at_random(config, classes):
    model = intact(config, classes)
    torch.seed()
    nn.init.normal_(surgery.get_classifier(model)[1].weight)
    return model
intact = everywhere(experiments._create, at_random)
""",
    ),
    Mutation(
        "09_fix_and_rerun",
        "a resumed optimiser starts anew",
        error="the history shows that it was stopped",
        startup="torch.optim.Optimizer.load_state_dict = lambda self, state: None",
    ),
    Mutation(
        "09_fix_and_rerun",
        "a run of another config is taken",
        error="a copied run was taken for another one",
        startup="experiments._refuse_others = lambda folder, begun, record: None",
    ),
    Mutation(
        "10_debugging_clinic",
        "a patient is healthy",
        error="the check does not notice the bug",
        startup="""
from cropkit.course import clinic
clinic.PATIENTS[6] = dataclasses.replace(clinic.PATIENTS[6], healthy=lambda case, data: True)
""",
    ),
    Mutation(
        "10_debugging_clinic",
        "a cure is none",
        error="the cure does not cure",
        startup="""
from cropkit.course import clinic
clinic.PATIENTS[5] = dataclasses.replace(clinic.PATIENTS[5], cure=[(".float()", ".float() * 1")])
""",
    ),
    Mutation(
        "10_debugging_clinic",
        "a patient is missing from the table",
        error="a patient is missing",
        startup="""
from cropkit.course import clinic
everywhere(clinic.closing_table, lambda: pd.DataFrame({"patient": range(1, 16)}))
""",
    ),
    Mutation(
        "10_debugging_clinic",
        "photos are prepared at random outside of training",
        error="the same photo is not prepared the same way twice",
        startup="""
def at_random(model, **kwargs):
    made = intact(model, **kwargs)
    return lambda photo: made(photo) + torch.rand(1)
intact = everywhere(datasets.transforms_for, at_random)
""",
    ),
    Mutation(
        "10_debugging_clinic",
        "a head that is frozen",
        error="element 0 of tensors does not require grad",
        startup="""
from cropkit.course import clinic
clinic.Data.new_head = lambda self: nn.Linear(self.vectors["train"].shape[1], 8).requires_grad_(False)
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "the square lies at the centre, whatever the table says",
        error="the network sees another part of the photo",
        startup="""
from cropkit.data import copies
intact = everywhere(copies._cut_out, lambda photo, share, target: intact(photo, share, (0, 0)))
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "a saved model forgets its cut",
        error="the model forgot its cut",
        startup="""
from cropkit.training import checkpoints
def forgetful(path):
    model = intact(path)
    model.preprocessing = {k: v for k, v in model.preprocessing.items() if k not in ("cut", "around")}
    return model
intact = everywhere(checkpoints.load_model, forgetful)
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "the average is that of the first model alone",
        error="the average is not the mean of the probabilities",
        startup="""
intact = everywhere(predictions.average, lambda *tables: intact(tables[0]))
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "a prior counts val and test too",
        error="a prior that knows the labels of val and test was made",
        startup="""
from cropkit.evaluation import location
def counts_all(train, class_names, **options):
    return intact(train.assign(split="train"), class_names, **options)
intact = everywhere(location.location_prior, counts_all)
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "the prior is subtracted",
        error="this is not Bayes' rule",
        startup="""
from cropkit.evaluation import location
intact = everywhere(location.with_prior, lambda table, places, prior, strength: intact(table, places, -prior, strength))
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "a split by town divides photos",
        error="a town is in two splits",
        startup="""
intact = everywhere(splitting.split, lambda catalog, groups=None, **options: intact(catalog, **options))
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "weighted precision is not weighted",
        error="this is not the competition's score",
        startup="""
def unweighted(table, **options):
    return float(metrics.classification_report(table)["precision"].mean())
everywhere(metrics.weighted_precision, unweighted)
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "the submission is in the order of the answers",
        error="the rows are not in the template's order",
        startup="""
from cropkit.evaluation import submission
def as_it_comes(answers, template, path):
    return intact(answers, template, path).sort_values("filename", ignore_index=True)
intact = everywhere(submission.write_submission, as_it_comes)
""",
    ),
    Mutation(
        "11_enter_the_competition",
        "the submission's answers are those of other rows",
        error="a row has another photo's answer",
        startup="""
from cropkit.evaluation import submission
def moved(answers, template, path):
    table = intact(answers, template, path)
    return table.assign(label=table["label"].to_numpy()[np.roll(np.arange(len(table)), 1)])
intact = everywhere(submission.write_submission, moved)
""",
    ),
    Mutation(
        "12_beyond_one_machine",
        "the gradients of two shares add up",
        error="the weighted mean of gradients is not that of the whole batch",
        replace=("    layer.zero_grad()\n", ""),
    ),
    Mutation(
        "12_beyond_one_machine",
        "the shares lose a photo",
        error="a photo is missing or there twice",
        replace=("[numbers[rank::2] for", "[numbers[256 * rank : 256 * (rank + 1)] for"),
    ),
    Mutation(
        "12_beyond_one_machine",
        "the processes do not add up what they counted",
        error="two processes took other steps",
        startup="everywhere(processes.total, lambda *numbers: list(numbers))",
    ),
    Mutation(
        "12_beyond_one_machine",
        "the plan opens as much for more photos",
        error="twice the photos do not take twice the time",
        replace=("opening = photos * passes", "opening = passes"),
    ),
    Mutation(
        "12_beyond_one_machine",
        "three shares count alike",
        error="the weighted mean of three shares is not that of the whole batch",
        replace=("weights = [len(share) / 8 for share in shares]", "weights = [1 / 3 for share in shares]"),
    ),
    Mutation(
        "12_beyond_one_machine",
        "gradients are not exchanged",
        error="two processes took other steps",
        startup="""
everywhere(processes.together, lambda model: model)
""",
    ),
]
# At least so many rows a notebook.
LEAST = {
    "00_check_your_setup": 3,
    "01_meet_the_crops": 3,
    "02_from_a_photo_to_a_loss": 3,
    "03_the_1000_class_head": 4,
    "04_replace_the_head": 4,
    "05_feature_extraction": 4,
    "06_fine_tuning": 6,
    "07_compare_fairly": 6,
    "08_read_the_confusion_matrix": 7,
    "09_fix_and_rerun": 7,
    "12_beyond_one_machine": 3,
}


def start(folder, changes=""):
    return BEFORE.format(folder=str(folder)) + changes


@pytest.mark.slow
@pytest.mark.parametrize("notebook", LEAST)
def test_nothing_is_broken_and_the_notebook_passes(notebook, tmp_path):
    assert run(FOLDER / f"{notebook}.ipynb", tmp_path, start(tmp_path)) is None


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_what_is_broken_fails_its_notebook(mutation, tmp_path):
    failure = run(FOLDER / f"{mutation.notebook}.ipynb", tmp_path, start(tmp_path, mutation.startup), mutation.replace)
    assert failure is not None, f"{mutation.notebook} passes, though {mutation.what}"
    cell, error = failure
    print(f"\n{mutation.notebook:26s} {mutation.what:52s} {cell} {error[:90]}")
    assert mutation.error in error


def test_what_a_mutation_replaces_stands_once_in_its_notebook():
    for mutation in MUTATIONS:
        if mutation.replace is not None:
            notebook = nbformat.read(FOLDER / f"{mutation.notebook}.ipynb", as_version=4)
            assert sum(cell.source.count(mutation.replace[0]) for cell in code_cells(notebook)) == 1, str(mutation)


def test_every_mutation_changes_one_thing_and_every_notebook_has_some():
    assert all(bool(mutation.startup) != bool(mutation.replace) for mutation in MUTATIONS)
    assert len({str(mutation) for mutation in MUTATIONS}) == len(MUTATIONS)
    for notebook, least in LEAST.items():
        assert sum(mutation.notebook == notebook for mutation in MUTATIONS) >= least, notebook
