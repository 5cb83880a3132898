import pytest
import torch

from clip_more.models.classifier import Classifier
from clip_more.models.clip import load_clip
from clip_more.models.feature_heads import CosineHead, FixedHead, NearestMeanHead, NormedLinearHead, simplex_etf
from clip_more.models.heads import PromptHead
from clip_more.stage2.linear_form import inputs_of, linear_form, stage_one_head
from tests.stage2.gaussians import random_head


@pytest.mark.parametrize(
    "head",
    [random_head(4, 6), random_head(4, 6, inputs="unit"), random_head(4, 6, inputs="centred", centre=torch.ones(6)),
     NormedLinearHead(torch.randn(4, 6), torch.randn(4)), CosineHead(torch.randn(4, 6), torch.randn(4)),
     FixedHead(simplex_etf(4, 6).float(), torch.randn(4))],
    ids=["raw", "unit", "centred", "normed", "cosine", "etf"],
)  # fmt: skip
def test_every_head_has_a_linear_form_with_its_logits(head):
    features = 3 * torch.randn(40, 6)
    form = linear_form(head)
    assert torch.allclose(form(features), head(features), atol=1e-5)
    assert torch.allclose(inputs_of(form, features) @ form.weight.T + form.bias, head(features), atol=1e-5)
    with torch.no_grad():
        form.weight.zero_()
        form.bias.zero_()
    assert not torch.equal(head(features), form(features))  # a copy


def test_class_means_are_of_the_second_stage_themselves():
    with pytest.raises(ValueError, match="nearest class means is itself of the second stage"):
        linear_form(NearestMeanHead(torch.randn(3, 4)))


@torch.no_grad()
def test_prompts_are_scaled_texts_on_features_of_unit_length():
    clip = load_clip("tiny")
    classifier = Classifier(clip, PromptHead(clip, [["a cat", "cats"], ["a dog", "dogs"]], scale=30.0))
    classifier.head.bias.copy_(torch.tensor([0.5, -2.0]))
    head = stage_one_head(classifier)
    features = 5 * torch.randn(30, clip.encode_image(torch.zeros(1, 3, 32, 32)).shape[1])
    assert torch.allclose(head(features), classifier.head_logits(features), atol=1e-5)
    assert torch.allclose(head.weight.norm(dim=1), torch.full((2,), 30.0))
