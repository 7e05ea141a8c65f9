"""cropkit: transfer learning on crop photos, in functions that fit a lesson."""

from cropkit.cache import cache_size, clear_cache
from cropkit.catalog import check_split, class_names, drop_leaks, find_duplicates, good_photos, scan, split
from cropkit.checkpoints import Checkpoint, DamagedCheckpoint, load_model, save_model
from cropkit.datasets import CropDataset, make_loaders, transforms_for
from cropkit.experiments import Config, Run, run_experiment
from cropkit.features import extract_features, fit_head
from cropkit.interpret import confusion_matrix, most_confused
from cropkit.models import (
    HeadMismatch,
    check_head,
    count_parameters,
    create_model,
    freeze_backbone,
    freeze_batchnorm,
    get_classifier,
    reset_classifier,
    unfreeze,
)
from cropkit.photos import BadPhoto, crop_around, crosshair_pixel, open_photo
from cropkit.precision import fastest_precision
from cropkit.samples import fetch, make_sample
from cropkit.training import evaluate, fine_tune, fit, predict, train_one_epoch
from cropkit.weights import MissingWeights, read_state_dict

__all__ = [
    "BadPhoto",
    "Checkpoint",
    "Config",
    "CropDataset",
    "DamagedCheckpoint",
    "HeadMismatch",
    "MissingWeights",
    "Run",
    "cache_size",
    "check_head",
    "check_split",
    "class_names",
    "clear_cache",
    "confusion_matrix",
    "count_parameters",
    "create_model",
    "crop_around",
    "crosshair_pixel",
    "drop_leaks",
    "evaluate",
    "extract_features",
    "fastest_precision",
    "fetch",
    "find_duplicates",
    "fine_tune",
    "fit",
    "fit_head",
    "freeze_backbone",
    "freeze_batchnorm",
    "get_classifier",
    "good_photos",
    "load_model",
    "make_loaders",
    "make_sample",
    "most_confused",
    "open_photo",
    "predict",
    "read_state_dict",
    "reset_classifier",
    "run_experiment",
    "save_model",
    "scan",
    "split",
    "train_one_epoch",
    "transforms_for",
    "unfreeze",
]
