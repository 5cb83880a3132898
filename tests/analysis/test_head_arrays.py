import numpy as np
import pytest
import torch

from clip_more.analysis.head_arrays import head_arrays
from clip_more.models.classifier import Classifier, FeatureClassifier
from clip_more.models.clip import load_clip
from clip_more.models.feature_heads import (
    CosineHead,
    FixedHead,
    LinearHead,
    NearestMeanHead,
    NormedLinearHead,
    simplex_etf,
)
from clip_more.models.heads import PromptHead


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny")


HEADS = {
    "linear": lambda: LinearHead(drawn(3, 8), drawn(3)),
    "unit": lambda: LinearHead(drawn(3, 8), drawn(3), inputs="unit"),
    "centred": lambda: LinearHead(drawn(3, 8), drawn(3), inputs="centred", centre=drawn(8)),
    "normed_linear": lambda: NormedLinearHead(drawn(3, 8), drawn(3)),
    "cosine": lambda: CosineHead(drawn(3, 8), drawn(3)),
    "etf": lambda: FixedHead(simplex_etf(3, 8).float(), drawn(3)),
    "nearest": lambda: NearestMeanHead(drawn(3, 8)),
    "nearest_centred": lambda: NearestMeanHead(drawn(3, 8), "centred", centre=drawn(8)),
    "nearest_cosine": lambda: NearestMeanHead(drawn(3, 8), "unit", "cosine"),
}


def spread(logits):
    """Logits less what is the same for all classes of a photo."""
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("kind", HEADS)
def test_arrays_give_the_logits_of_every_head_but_for_what_all_classes_share(clip, kind):
    classifier = FeatureClassifier(clip, HEADS[kind]())
    features = drawn(20, 8)
    arrays = head_arrays(classifier)
    logits = arrays.inputs(features.numpy()) @ arrays.weight.T + (0 if arrays.bias is None else arrays.bias)
    expected = classifier.head_logits(features).detach().numpy()
    np.testing.assert_allclose(spread(logits), spread(expected), atol=1e-4)
    assert arrays.row_norms_matter == (kind in ("linear", "unit", "centred", "nearest", "nearest_centred"))


def test_prompts_are_rows_of_the_length_of_the_scale(clip):
    classifier = Classifier(clip, PromptHead(clip, [["a dog"], ["an owl"]], scale=17.5)).eval()
    features = drawn(5, clip.model.config.projection_dim)
    arrays = head_arrays(classifier)
    np.testing.assert_allclose(np.linalg.norm(arrays.weight, axis=1), 17.5, rtol=1e-5)
    logits = arrays.inputs(features.numpy()) @ arrays.weight.T + arrays.bias
    np.testing.assert_allclose(logits, classifier.head_logits(features).detach().numpy(), atol=1e-4)
