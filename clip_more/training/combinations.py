"""Keys that are each right and do not go together: what cannot help is refused, what is doubtful is said."""

import math
from typing import Any

from clip_more.config import LOSSES_OF_ONE_LABEL, ConfigError
from clip_more.data.profile import GROUPS

_DB = ("db", "db_focal")
# Losses that already stand up for rare classes.
BALANCED_LOSSES = ("cb_bce", *_DB, "cb_ce", "balanced_softmax", "logit_adjusted_ce", "ldam")
# What db's weights are made for: draws of a class, all alike, and then of one of its photos.
_DB_SAMPLERS = ("distribution_balanced", "class_aware")
# Sums over classes that stay unbiased when the classes are a sample.
_SAMPLED_LOSSES = ("bce", "asl", "focal")


def check_combination(config: Any) -> list[str]:
    """Refuse what cannot help; return a sentence, with reason and remedy, for each thing that is doubtful.

    Args:
        config: A `TrainConfig`, or anything with some of its attributes; what is absent is as its default.

    Raises:
        ConfigError: A key can have no effect together with another, or does harm by its definition.
    """
    _refuse_losses(config)
    _refuse_heads(config)
    _refuse_vain_keys(config)
    _refuse_discrepancies(config)
    return [*_twice(config), *_heads(config), *_discrepancy(config)]


def _get(config: Any, key: str) -> Any:
    defaults = {
        "task": "multi_label",
        "loss": "bce",
        "loss_reduction": "sum",
        "group_weights": {},
        "sampler": "instance",
        "sampler_exponent": 0.0,
        "head": "prompts",
        "tuning": "more",
        "feature_regularisation": 0.0,
        "decay_all": False,
        "weight_decay_to": "zero",
        "dropout": 0.0,
        "weight_decay_head": 0.0,
        "discrepancy_gradient": "stop_general",
        "discrepancy_focus": False,
        "discrepancy_pair": "tail",
        "amplitude_ratio": None,
        "text_classes": None,
        "ldam_scale": 30.0,
        "discrepancy_weighting": "label",
        "discrepancy_sample_reduce": "min",
        "discrepancy_prior_exponent": 1.0,
        "discrepancy_reduction": None,
    }
    return getattr(config, key, defaults[key])


def _refuse_losses(config: Any) -> None:
    loss = _get(config, "loss")
    if loss in LOSSES_OF_ONE_LABEL and _get(config, "task") == "multi_label":
        raise ConfigError(
            f"loss: {loss} is one softmax over the classes and takes exactly one label a photo; choose bce, asl, "
            "focal, cb_bce, db or db_focal, or set task: single_label if every photo has one label"
        )
    if _get(config, "group_weights"):
        _refuse_group_weights(config, loss)
    if _get(config, "text_classes") is not None and loss not in _SAMPLED_LOSSES:
        raise ConfigError(
            f"text_classes trains on a sample of the classes, and loss: {loss} needs them all, for its softmax or its "
            f"weights; choose loss: {', '.join(_SAMPLED_LOSSES)}, or leave text_classes out"
        )


def _refuse_group_weights(config: Any, loss: str) -> None:
    if strange := sorted(set(_get(config, "group_weights")) - set(GROUPS)):
        raise ConfigError(f"group_weights names {strange[0]!r}, which is no group; groups: {', '.join(GROUPS)}")
    weights = [_get(config, "group_weights").get(group, 1.0) for group in GROUPS]
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise ConfigError(f"group_weights is {_get(config, 'group_weights')}; weights are 0 or more, and not all 0")
    if loss in LOSSES_OF_ONE_LABEL:
        raise ConfigError(
            f"group_weights weighs the terms of classes, and loss: {loss} is one softmax over all of them; leave it "
            "out, or choose cb_ce, which weighs photos by their class"
        )
    if loss in _DB:
        raise ConfigError(
            f"loss: {loss} weighs labels by each other already; leave group_weights out, or set loss: bce"
        )
    if _get(config, "text_classes") is not None or _get(config, "loss_reduction") == "mean":
        raise ConfigError(
            "group_weights needs the sum over all classes; leave text_classes out, and loss_reduction at sum"
        )


def _refuse_heads(config: Any) -> None:
    head = _get(config, "head")
    if _get(config, "feature_regularisation") and head in ("prompts", "cosine"):
        raise ConfigError(
            f"feature_regularisation makes features shorter, and head: {head} divides by their length, so its logits "
            "stay the same; set feature_regularisation: 0, or a head that sees lengths (linear, normed_linear, etf, "
            "frame)"
        )


def _refuse_vain_keys(config: Any) -> None:
    if _get(config, "feature_regularisation"):
        if _get(config, "tuning") == "head":
            raise ConfigError(
                "feature_regularisation makes features shorter, and tuning: head trains nothing that makes them; set "
                "feature_regularisation: 0, or tuning: full"
            )
        if _get(config, "tuning") == "more" and _get(config, "discrepancy_gradient") == "tail":
            raise ConfigError(
                "discrepancy_gradient: tail sees logits alone, not the features that feature_regularisation is about; "
                "leave one of them at its default"
            )
    if _get(config, "decay_all") and _get(config, "weight_decay_head"):
        raise ConfigError(
            "decay_all puts weight_decay on the head too, and weight_decay_head says otherwise; leave one of them out"
        )
    if _get(config, "weight_decay_to") == "start" and _get(config, "tuning") in ("lora", "head"):
        raise ConfigError(
            f"weight_decay_to: start pulls the weights of towers, and tuning: {_get(config, 'tuning')} trains none; "
            "leave it out, or set tuning: full or more"
        )


def _refuse_discrepancies(config: Any) -> None:
    gradient = _get(config, "discrepancy_gradient")
    if _get(config, "discrepancy_focus") and _get(config, "loss") != "asl":
        raise ConfigError(
            f"discrepancy_focus is the focusing of loss: asl, and loss: {_get(config, 'loss')} has none like it; leave "
            "it out, or set loss: asl"
        )
    if _get(config, "amplitude_ratio") is not None and gradient == "stop_full" and _get(config, "tuning") == "more":
        raise ConfigError(
            "amplitude_ratio goes by L_MORE's gradient on A and B, and discrepancy_gradient: stop_full leaves it none; "
            "set amplitude, or another discrepancy_gradient"
        )
    if _get(config, "discrepancy_pair") != "dropout":
        return
    if _get(config, "tuning") != "full":
        raise ConfigError(
            "discrepancy_pair: dropout is a control without a low-rank part, and tuning: "
            f"{_get(config, 'tuning')} is not all weights; set tuning: full"
        )
    if not _get(config, "dropout"):
        raise ConfigError(
            "discrepancy_pair: dropout compares two draws of dropout, and dropout is 0, so they are the same; set "
            "dropout (0.1, say)"
        )
    if gradient != "both":
        raise ConfigError(
            f"discrepancy_gradient: {gradient} sets apart the pass without the tail, and the two of discrepancy_pair: "
            "dropout are alike; set discrepancy_gradient: both"
        )


def is_balanced(config: Any) -> bool:
    """Whether the sampler of a recipe draws rare classes more often than they come."""
    sampler = _get(config, "sampler")
    return sampler != "instance" and not (sampler == "weighted" and _get(config, "sampler_exponent") >= 1)


def _twice(config: Any) -> list[str]:
    """Corrections for class frequency that add up."""
    loss, sampler = _get(config, "loss"), _get(config, "sampler")
    balanced_draws, found = is_balanced(config), []
    if balanced_draws and loss in _DB:
        if sampler not in _DB_SAMPLERS:
            found.append(
                f"loss: {loss} takes its weights from how often a photo comes when classes are drawn alike, and "
                f"sampler: {sampler} draws otherwise, which corrects for rare classes in part twice; set sampler: "
                "distribution_balanced (or class_aware, or instance)"
            )
    elif balanced_draws and loss in BALANCED_LOSSES:
        found.append(
            f"sampler: {sampler} and loss: {loss} both make up for rare classes, which corrects twice; set sampler: "
            "instance, or a loss without class counts (bce, asl, focal; ce, focal_ce)"
        )
    if _get(config, "group_weights").get("tail", 1.0) > 1 and (balanced_draws or loss in BALANCED_LOSSES):
        other = f"sampler: {sampler}" if balanced_draws else f"loss: {loss}"
        found.append(
            f"group_weights make the tail heavier, and so does {other}, which corrects twice; leave one of them out"
        )
    return found


def _heads(config: Any) -> list[str]:
    head, loss, scale = _get(config, "head"), _get(config, "loss"), _get(config, "ldam_scale")
    found = []
    if head == "etf" and _get(config, "task") == "multi_label":
        found.append(
            "head: etf has rows that sum to 0, so the logits of a photo less their biases sum to 0, whatever it shows: "
            "one label can rise only where others fall, which does not suit several labels; set head: frame"
        )
    if loss == "ldam" and head == "prompts":
        found.append(
            f"loss: ldam multiplies logits by ldam_scale {scale:g}, and prompts have multiplied their cosines by a "
            "scale of their own, which is learnt; set head: cosine, whose scale then is ldam_scale alone"
        )
    elif loss == "ldam" and head != "cosine":
        found.append(
            f"loss: ldam has margins of a cosine, and logits of head: {head} are none: ldam_margin has no fixed "
            "meaning there, and ldam_scale makes the softmax too steep; set head: cosine"
        )
    return found


def _discrepancy(config: Any) -> list[str]:
    if _get(config, "tuning") != "more":
        return []
    found = []
    exponent, reduce = _get(config, "discrepancy_prior_exponent"), _get(config, "discrepancy_sample_reduce")
    if exponent < 0:
        found.append(
            f"discrepancy_prior_exponent: {exponent:g} holds the tail component back on rare classes, for which it is "
            "there; keep it as a control, or set it to 1"
        )
    loss = _get(config, "loss")
    if loss in LOSSES_OF_ONE_LABEL and _get(config, "discrepancy_gradient") == "stop_general":
        found.append(
            f"loss: {loss} is a softmax, where discrepancy_gradient: stop_general has not helped: it took from head "
            "and tail under ce, and gave nothing under balanced_softmax (docs/evidence.md); set discrepancy_gradient: "
            "both, or compare with tuning: full"
        )
    by_sample = _get(config, "discrepancy_weighting") == "sample"
    if by_sample and reduce != "min" and _get(config, "task") == "multi_label":
        found.append(
            f"discrepancy_sample_reduce: {reduce} weighs a photo with a tail label by the head labels beside it, and "
            "nearly every such photo has one, so that the tail is not spared; set discrepancy_sample_reduce: min, or "
            "discrepancy_weighting: label"
        )
    one_label = _get(config, "loss") in LOSSES_OF_ONE_LABEL
    if one_label and _get(config, "loss_reduction") == "mean" and _get(config, "discrepancy_reduction") is None:
        found.append(
            f"loss_reduction: mean divides L_MORE by the number of classes, and loss: {_get(config, 'loss')} has no "
            "sum over classes to divide; set discrepancy_reduction: sum, or loss_reduction: sum"
        )
    return found
