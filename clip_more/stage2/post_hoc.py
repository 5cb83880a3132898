"""Corrections that learn nothing: tau-normalisation, additive and multiplicative logit adjustment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clip_more.models.feature_heads import FeatureHead, LinearHead
from clip_more.stage2.cached import Cached
from clip_more.stage2.choose import Fitted, Selection, Stage, choose
from clip_more.stage2.linear_form import changed, linear_form, refuse_equal_norms
from clip_more.stage2.options import Stage2Options

TAUS = tuple(round(0.1 * n, 1) for n in range(21))
GAMMAS = tuple(round(0.1 * n, 1) for n in range(31))


def tau_normalised(head: LinearHead, tau: float) -> LinearHead:
    """`w_c / ||w_c||^tau`, and no bias (Decoupling, arXiv 1910.09217, section 4.3)."""
    norms = head.weight.detach().double().norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return changed(head, head.weight.detach().double() / norms**tau)


def adjusted_additively(head: LinearHead, prior: Tensor, tau: float) -> LinearHead:
    """`z_c - tau log pi_c` (Menon et al., arXiv 2007.07314, section 4.1), folded into the bias; prior (C,)."""
    assert head.bias is not None
    bias = head.bias.detach().double() - tau * prior.double().log()
    return changed(head, head.weight.detach().clone(), bias)


def adjusted_multiplicatively(head: LinearHead, prior: Tensor, gamma: float) -> LinearHead:
    """`z_c pi_c^-gamma` (arXiv 2305.16573, section 5), folded into weight and bias; prior (C,)."""
    assert head.bias is not None
    factors = prior.double() ** -gamma
    return changed(head, factors[:, None] * head.weight.detach().double(), factors * head.bias.detach().double())


def tau(stage: Stage, options: Stage2Options) -> tuple[FeatureHead, Selection]:
    """tau-normalisation, tau of 0, 0.1 .. 2 chosen on validation.

    Raises:
        ValueError: If the rows of the head have one norm, or it ignores their norms.
    """
    refuse_equal_norms(stage.head, "tau")
    head = linear_form(stage.head)

    def fit(_: Cached, values: dict[str, Any], label: str) -> Fitted:
        return Fitted(tau_normalised(head, values["tau"]))

    return choose("tau", stage, _grid("tau", options.tau, TAUS), fit, monotone=True)


def la_additive(stage: Stage, options: Stage2Options) -> tuple[FeatureHead, Selection]:
    """Additive logit adjustment by the class prior of train, tau of 0, 0.1 .. 2 chosen on validation."""
    head = linear_form(stage.head)

    def fit(train: Cached, values: dict[str, Any], label: str) -> Fitted:
        return Fitted(adjusted_additively(head, train.prior(), values["tau"]))

    return choose("la_additive", stage, _grid("tau", options.tau, TAUS), fit, monotone=True)


def la_multiplicative(stage: Stage, options: Stage2Options) -> tuple[FeatureHead, Selection]:
    """Multiplicative logit adjustment by the class prior of train, gamma of 0, 0.1 .. 3 chosen on validation.

    Raises:
        ValueError: After a loss of one sigmoid a class, where most logits are negative.
    """
    if stage.sigmoids or not stage.single_label:
        raise ValueError(
            "la_multiplicative multiplies logits, and after a loss of one sigmoid a class most of them are negative: "
            "the rarer the class, the further it falls. Logits -1, -1.2, -1.1 of classes with priors .9, .09, .01 "
            "become -1.1, -13.3, -110 at gamma 1. Choose la_additive"
        )
    head = linear_form(stage.head)

    def fit(train: Cached, values: dict[str, Any], label: str) -> Fitted:
        return Fitted(adjusted_multiplicatively(head, train.prior(), values["gamma"]))

    return choose("la_multiplicative", stage, _grid("gamma", options.gamma, GAMMAS), fit, monotone=True)


def _grid(name: str, given: float | None, values: Sequence[float]) -> list[dict[str, Any]]:
    return [{name: value} for value in (values if given is None else (given,))]
