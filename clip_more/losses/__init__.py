"""Base losses and the discrepancy loss of MORE; all computed in fp32 or better, on logits."""

from clip_more.losses.asymmetric import AsymmetricLoss
from clip_more.losses.bce import BCELoss
from clip_more.losses.discrepancy import DiscrepancyLoss

BASE_LOSSES = {"bce": BCELoss, "asl": AsymmetricLoss}

__all__ = ["BASE_LOSSES", "AsymmetricLoss", "BCELoss", "DiscrepancyLoss"]
