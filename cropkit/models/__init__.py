"""Who is the head? Pretrained weights, and finding, replacing and freezing layers."""

from cropkit.models.surgery import (
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
from cropkit.models.weights import MissingWeights, has_weights, read_state_dict
