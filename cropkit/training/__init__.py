"""How does it learn? The loop, the recipes, features, checkpoints."""

from cropkit.training.checkpoints import Checkpoint, load_model, save_model
from cropkit.training.features import Features, extract_features, fit_head
from cropkit.training.loop import evaluate, fit, train_one_epoch
from cropkit.training.precision import resolve_precision
from cropkit.training.recipes import fine_tune, fit_sgd_step
