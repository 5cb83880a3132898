"""The classifier of stage 1 as one linear map of the features, and which methods it leaves something to do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_more.models.classifier import Classifier, FeatureClassifier
from clip_more.models.feature_heads import CosineHead, FeatureHead, LinearHead, NearestMeanHead, NormedLinearHead

# Norms of rows that differ by less than this share of their mean are one norm, up to rounding.
_EQUAL = 1e-4


@torch.no_grad()
def stage_one_head(classifier: Classifier | FeatureClassifier) -> FeatureHead:
    """The head of a classifier as a head on features; text prompts become `scale t_c` on features of unit length."""
    if isinstance(classifier, FeatureClassifier):
        return classifier.head
    text = classifier.head.text_features(classifier.clip)
    weight = classifier.head.log_scale.exp() * text
    return LinearHead(weight.clone(), classifier.head.bias.detach().clone(), inputs="unit")


@torch.no_grad()
def linear_form(head: FeatureHead) -> LinearHead:
    """A `LinearHead` with the logits of `head`, as a copy.

    Raises:
        ValueError: If the head is no linear map of its inputs (nearest class means).
    """
    if isinstance(head, NearestMeanHead):
        raise ValueError(
            "a head of nearest class means is itself of the second stage; name a run whose head is trained"
        )
    assert head.bias is not None
    weight, bias = head.weight.detach(), head.bias.detach().clone()
    if isinstance(head, LinearHead):
        centre = None if head.centre is None else head.centre.detach().clone()
        return LinearHead(weight.clone(), bias, inputs=head.inputs, centre=centre)
    if isinstance(head, CosineHead):
        return LinearHead(head.log_scale.exp() * F.normalize(weight, dim=-1), bias, inputs="unit")
    if isinstance(head, NormedLinearHead):
        return LinearHead(F.normalize(weight, dim=-1), bias)
    return LinearHead(weight.clone(), bias)


def changed(head: LinearHead, weight: Tensor, bias: Tensor | None = None) -> LinearHead:
    """A head on the same inputs with another (C, D) weight and (C,) bias (zeros without it)."""
    centre = None if head.centre is None else head.centre.clone()
    weight = weight.detach().to(head.weight.dtype)
    return LinearHead(
        weight, None if bias is None else bias.detach().to(weight.dtype), inputs=head.inputs, centre=centre
    )


@torch.no_grad()
def inputs_of(head: LinearHead, features: Tensor) -> Tensor:
    """What the weights of a head are multiplied with: (N, D) -> (N, D)."""
    if head.inputs == "raw":
        return features
    return F.normalize(features if head.centre is None else features - head.centre, dim=-1)


def refuse_equal_norms(head: FeatureHead, method: str) -> None:
    """Refuse what works through differing norms of the rows, where they do not differ.

    Raises:
        ValueError: If the head ignores the norms of its rows, or all rows have one norm.
    """
    norms = head.weight.detach().double().norm(dim=-1)
    equal = bool((norms.max() - norms.min()) <= _EQUAL * norms.mean())
    if not head.ignores_norms and not equal:
        return
    why = (
        f"the head ({head.kind}) divides every row of its weight by its norm"
        if head.ignores_norms
        else f"all rows of its weight have the norm {norms.mean():.3g}, as with text prompts, cosine heads and frames"
    )
    raise ValueError(
        f"{method} works on the norms of the classes' weight vectors, and here they are equal: {why}. There is nothing "
        "for it to even out; choose crt, lws, ncm, la_additive or la_multiplicative, or train another stage 1: --head "
        "linear --run NAME"
    )
