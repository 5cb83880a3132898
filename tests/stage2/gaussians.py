"""A long-tailed task whose best classifier is known: one round Gaussian a class, in features that no training made."""

import numpy as np
import torch

from clip_more.models.feature_heads import LinearHead
from clip_more.stage2.cached import Cached
from clip_more.stage2.choose import Stage

COUNTS = (600, 120, 40, 12)
WIDTH = 6


def photos(counts, seed, spread=1.0):
    """Single-label photos, `counts[c]` of class c, features N(mean_c, spread^2 I) with means 2.2 apart or more."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    means = 1.6 * torch.eye(len(counts), WIDTH) + 0.5
    features = means[labels] + spread * torch.randn(len(labels), WIDTH, generator=generator)
    targets = torch.nn.functional.one_hot(labels, len(counts)).bool()
    return Cached(features, targets, torch.ones_like(targets))


def several_labels(count, classes=5, seed=0):
    """Multi-label photos with a rare class, some of whose labels are unknown."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 8, generator=generator)
    with torch.no_grad():
        targets = torch.rand(count, classes, generator=generator) < torch.sigmoid(
            several_labels_head(classes)(features)
        )
    targets[:classes] |= torch.eye(classes).bool()
    known = torch.rand(count, classes, generator=generator) < 0.9
    known[:classes] = True
    return Cached(features, targets, known)


def several_labels_head(classes=5):
    """What the labels of `several_labels` were drawn by."""
    directions = torch.randn(classes, 8, generator=torch.Generator().manual_seed(99))
    return LinearHead(directions, torch.linspace(0.5, -4, classes))


def logistic_head(train):
    """The linear classifier of least cross-entropy: what stage 1 would have come to on these features."""
    from sklearn.linear_model import LogisticRegression

    labels = train.targets.numpy().argmax(axis=1)
    model = LogisticRegression(C=1e3, max_iter=2000).fit(train.features.numpy(), labels)
    return LinearHead(torch.tensor(model.coef_).float(), torch.tensor(model.intercept_).float())


def random_head(classes, width, seed=3, dtype=torch.float32, **options):
    """Rows of differing norms, and biases."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(classes, width, generator=generator) * torch.linspace(2, 0.3, classes)[:, None]
    return LinearHead(weight.to(dtype), torch.randn(classes, generator=generator).to(dtype), **options)


def gaussian_stage(**changes):
    train = photos(COUNTS, 0)
    groups = {"head": [0], "medium": [1, 2], "tail": [3]}
    settings = {"head": logistic_head(train), "val": photos((60,) * 4, 1), "single_label": True, "groups": groups}
    return Stage(**{"train": train, **settings, **changes})


def balanced_accuracy(head, data):
    from sklearn.metrics import balanced_accuracy_score

    with torch.no_grad():
        found = head(data.features).argmax(dim=1)
    return balanced_accuracy_score(data.targets.numpy().argmax(axis=1), found.numpy())


def ranks(scores):
    """(N, C): place of each photo in the order of its class; equal scores share one."""
    return np.stack([np.unique(column, return_inverse=True)[1] for column in np.asarray(scores).T], axis=1)
