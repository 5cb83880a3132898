"""The second stage of weight balancing (arXiv 2203.14197): class-balanced loss, weight decay, MaxNorm on the head."""

from __future__ import annotations

from functools import partial
from typing import Any

from clip_more.data.samplers import make_order
from clip_more.losses.class_balanced import ClassBalancedBCE, ClassBalancedCE
from clip_more.models.feature_heads import FeatureHead
from clip_more.stage2.cached import Cached
from clip_more.stage2.choose import Fitted, Selection, Stage, choose
from clip_more.stage2.fitting import Course, fit, mean_square
from clip_more.stage2.linear_form import inputs_of, linear_form, refuse_equal_norms
from clip_more.stage2.options import Stage2Options
from clip_more.training.max_norm import project, threshold

WEIGHT_DECAY, RATE = 0.1, 1.0
# Both from the smallest correction to the largest.
BETAS = (0.9, 0.99, 0.999, 0.9999)
THRESHOLDS = (0.9, 0.7, 0.5, 0.3, 0.1)


def maxnorm_cb(stage: Stage, options: Stage2Options) -> tuple[FeatureHead, Selection]:
    """The head of stage 1 trained on, every photo once an epoch; rows longer than delta are cut after each step.

    `delta = min + thresh (max - min)` of the norms of stage 1. beta and thresh are chosen. How many rows were cut, on
    average over the steps of each epoch, is in the log.

    Raises:
        ValueError: If the rows of the head have one norm, or it ignores their norms.
    """
    refuse_equal_norms(stage.head, "maxnorm_cb")
    first = linear_form(stage.head)
    decay = WEIGHT_DECAY if options.weight_decay is None else options.weight_decay
    rate = RATE if options.lr is None else options.lr
    candidates = [
        {"thresh": thresh, "beta": beta}
        for thresh in (THRESHOLDS if options.thresh is None else (options.thresh,))
        for beta in (BETAS if options.beta is None else (options.beta,))
    ]

    def made(train: Cached, values: dict[str, Any], label: str) -> Fitted:
        head = linear_form(first)
        delta = threshold(first.weight, values["thresh"])
        make = ClassBalancedCE if stage.single_label else ClassBalancedBCE
        loss = make(train.counts(), values["beta"]).to(stage.device)
        length = mean_square(partial(inputs_of, first), train.features) + 1  # 1: the bias
        course = Course(options.epochs, options.batch_size, rate / length, decay)
        order = make_order("instance", train.pairs(), len(train), seed=stage.seed)
        clipped: list[int] = []

        def cut() -> None:
            clipped.append(project(head.weight.data, delta))

        fit(head, train, loss, order, course, label=label, device=stage.device, after_step=cut)
        steps = -(-len(train) // options.batch_size)
        epochs = [clipped[start : start + steps] for start in range(0, len(clipped), steps)]
        return Fitted(head, {"delta": delta, "rows_cut_by_epoch": [round(sum(e) / len(e), 2) for e in epochs]})

    return choose("maxnorm_cb", stage, candidates, made)
