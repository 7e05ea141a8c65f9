"""What went wrong, and where? Predictions, metrics, Grad-CAM, the explorer; `plots` draws (import it by itself)."""

from cropkit.evaluation.explorer import explore
from cropkit.evaluation.label_errors import find_label_errors, nearest_photos
from cropkit.evaluation.location import choose_strength, location_prior, with_prior
from cropkit.evaluation.metrics import (
    accuracy,
    bootstrap_interval,
    classification_report,
    confusion_matrix,
    expected_calibration_error,
    lowest_f1,
    mcnemar,
    most_confused,
    never_predicted,
    reliability,
    slices,
    top_losses,
    weighted_precision,
)
from cropkit.evaluation.predictions import average, predict
from cropkit.evaluation.review import review
from cropkit.evaluation.saliency import grad_cam
from cropkit.evaluation.submission import write_submission
