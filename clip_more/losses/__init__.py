"""Base losses and the discrepancy loss of MORE; all computed in fp32 or better, on logits."""

from collections.abc import Callable
from functools import partial

from torch import nn

from clip_more.losses.asymmetric import AsymmetricLoss
from clip_more.losses.bce import BCELoss
from clip_more.losses.class_balanced import ClassBalancedBCE, ClassBalancedCE, class_balanced_weights
from clip_more.losses.cross_entropy import BalancedSoftmax, CrossEntropy, FocalCrossEntropy, LogitAdjustedCE
from clip_more.losses.discrepancy import DiscrepancyLoss
from clip_more.losses.distribution_balanced import DistributionBalancedLoss
from clip_more.losses.feature_norm import feature_norm
from clip_more.losses.focal import FocalLoss
from clip_more.losses.group_weights import GroupWeighted
from clip_more.losses.ldam import LdamLoss

BASE_LOSSES: dict[str, Callable[..., nn.Module]] = {
    # One sigmoid a class: several labels a photo, or one.
    "bce": BCELoss,
    "asl": AsymmetricLoss,
    "focal": FocalLoss,
    "cb_bce": ClassBalancedBCE,
    "db": DistributionBalancedLoss,
    "db_focal": partial(DistributionBalancedLoss, focal=True),
    # One softmax over the classes: exactly one label a photo.
    "ce": CrossEntropy,
    "focal_ce": FocalCrossEntropy,
    "cb_ce": ClassBalancedCE,
    "balanced_softmax": BalancedSoftmax,
    "logit_adjusted_ce": LogitAdjustedCE,
    "ldam": LdamLoss,
}

__all__ = [
    "BASE_LOSSES",
    "AsymmetricLoss",
    "BCELoss",
    "BalancedSoftmax",
    "ClassBalancedBCE",
    "ClassBalancedCE",
    "CrossEntropy",
    "DiscrepancyLoss",
    "DistributionBalancedLoss",
    "FocalCrossEntropy",
    "FocalLoss",
    "GroupWeighted",
    "LdamLoss",
    "LogitAdjustedCE",
    "class_balanced_weights",
    "feature_norm",
]
