"""cropkit: transfer learning on crop photos, in functions that fit a lesson."""

from cropkit.cache import cache_size, clear_cache
from cropkit.catalog import check_split, class_names, drop_leaks, find_duplicates, good_photos, prepare, scan, split
from cropkit.checkpoints import Checkpoint, DamagedCheckpoint, load_model, save_model
from cropkit.datasets import CropDataset, make_loaders, transforms_for
from cropkit.experiments import Config, Run, compare_runs, read_runs, run_experiment, run_grid
from cropkit.explorer import explore
from cropkit.features import extract_features, fit_head
from cropkit.interpret import (
    accuracy,
    bootstrap_interval,
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    grad_cam,
    mcnemar,
    most_confused,
    reliability,
    top_losses,
    weighted_precision,
)
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
from cropkit.training import classify, evaluate, fine_tune, fit, predict, train_one_epoch
from cropkit.weights import MissingWeights, has_weights, read_state_dict

__all__ = [
    "BadPhoto",
    "Checkpoint",
    "Config",
    "CropDataset",
    "DamagedCheckpoint",
    "HeadMismatch",
    "MissingWeights",
    "Run",
    "accuracy",
    "bootstrap_interval",
    "cache_size",
    "check_head",
    "check_split",
    "class_names",
    "classification_report",
    "classify",
    "clear_cache",
    "compare_runs",
    "confusion_matrix",
    "count_parameters",
    "create_model",
    "crop_around",
    "crosshair_pixel",
    "drop_leaks",
    "evaluate",
    "expected_calibration_error",
    "explore",
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
    "grad_cam",
    "has_weights",
    "load_model",
    "make_loaders",
    "make_sample",
    "mcnemar",
    "most_confused",
    "open_photo",
    "predict",
    "prepare",
    "read_runs",
    "read_state_dict",
    "reliability",
    "reset_classifier",
    "run_experiment",
    "run_grid",
    "save_model",
    "scan",
    "split",
    "top_losses",
    "train_one_epoch",
    "transforms_for",
    "unfreeze",
    "weighted_precision",
]
