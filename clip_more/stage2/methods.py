"""The methods of the second stage by name: what each is, which options it takes, and what it cannot change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from clip_more.config import TrainConfig
from clip_more.models.feature_heads import FeatureHead
from clip_more.stage2.choose import Selection, Stage
from clip_more.stage2.learned import crt, lws
from clip_more.stage2.max_norm import maxnorm_cb
from clip_more.stage2.nearest_mean import ncm
from clip_more.stage2.options import Stage2Options
from clip_more.stage2.post_hoc import la_additive, la_multiplicative, tau
from clip_more.training.combinations import BALANCED_LOSSES, is_balanced

_FITS = ("lr", "epochs", "batch_size", "weight_decay")


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        run: From the stage and the options to a head and how it was chosen.
        takes: Names of the options that it takes.
        chooses: Those of them that are chosen on validation where they are not given.
        text: What it does, in a line.
    """

    run: Callable[[Stage, Stage2Options], tuple[FeatureHead, Selection]]
    takes: tuple[str, ...]
    chooses: tuple[str, ...]
    text: str


METHODS = {
    "crt": Method(crt, _FITS, ("lr",), "a fresh linear classifier on class-balanced sampling"),
    "ncm": Method(ncm, ("inputs", "metric"), ("inputs", "metric"), "the nearest class mean"),
    "tau": Method(tau, ("tau",), ("tau",), "weights over their norm to the power tau, without biases"),
    "lws": Method(
        lws, _FITS, ("lr",), "the logits of stage 1 times a learnt factor a class, on class-balanced sampling"
    ),
    "maxnorm_cb": Method(
        maxnorm_cb,
        (*_FITS, "beta", "thresh"),
        ("beta", "thresh"),
        "the head trained on with a class-balanced loss, weight decay, MaxNorm",
    ),
    "la_additive": Method(la_additive, ("tau",), ("tau",), "logits less tau times the log of the class prior"),
    "la_multiplicative": Method(
        la_multiplicative, ("gamma",), ("gamma",), "logits times the class prior to the power -gamma; one label a photo"
    ),
}

KEEPS_AP = (
    "{method} moves or stretches the logits of each class by themselves: the order of the photos of a class, its AP "
    "and macro mAP stay as they are. Top-1, micro-AP and F1 at thresholds may change."
)


def check_method(method: str, options: Stage2Options) -> Method:
    """The method of that name.

    Raises:
        ValueError: There is none, or it does not take an option that was given.
    """
    if method not in METHODS:
        raise ValueError(f"--method is {method!r}; choose one of {', '.join(METHODS)}")
    takes = METHODS[method].takes
    for option in fields(Stage2Options):
        if getattr(options, option.name) != option.default and option.name not in takes:
            own = ", ".join(f"--{name}" for name in takes)
            raise ValueError(f"{method} takes no --{option.name}; it takes {own}")
    return METHODS[method]


def corrected_already(method: str, config: TrainConfig) -> str | None:
    """A sentence where a method corrects for class frequency what stage 1 has corrected for already."""
    if method not in ("tau", "lws", "la_additive", "la_multiplicative"):
        return None
    if config.loss in BALANCED_LOSSES:
        given = f"loss: {config.loss}"
    elif is_balanced(config):
        given = f"sampler: {config.sampler}"
    else:
        return None
    return (
        f"stage 1 was trained with {given}, which favours rare classes already; {method} on top corrects twice. The "
        "validation curve shows whether that helps here"
    )
