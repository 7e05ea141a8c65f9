"""cropkit: transfer learning on crop photos, in functions that fit a lesson.

These are the names of every day. The rest is imported from its room: `cropkit.data` (what is on the disk?),
`cropkit.models` (who is the head?), `cropkit.training` (how does it learn?), `cropkit.evaluation` (what went wrong?),
`cropkit.experiments` (how do I run it again?), `cropkit.panels` (the same, by buttons) and `cropkit.course` (what do
only the notebooks need?). They are a few more than thirty, since the way from the matrix to the next run begins with
`find_label_errors`, `review` and `panel`.
"""

from cropkit.data import class_names, find_duplicates, make_loaders, open_photo, prepare, scan, split
from cropkit.evaluation import (
    confusion_matrix,
    explore,
    find_label_errors,
    grad_cam,
    most_confused,
    predict,
    review,
    top_losses,
)
from cropkit.experiments import Config, compare_runs, run_experiment, run_grid
from cropkit.models import (
    count_parameters,
    create_model,
    freeze_backbone,
    get_classifier,
    reset_classifier,
    unfreeze,
)
from cropkit.panels import panel
from cropkit.training import evaluate, extract_features, fine_tune, fit, fit_head, load_model
