import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_more.models import class_prompts, load_clip
from clip_more.models.classifier import Classifier
from clip_more.models.heads import PromptHead
from clip_more.models.image_classifier import ImageClassifier, describe, fold

NAMES = ["cat", "dog", "traffic light"]


@pytest.fixture(scope="module")
def classifier():
    clip = load_clip("tiny", image_size=40, geometry="squash")
    generator = torch.Generator().manual_seed(1)
    head = PromptHead(clip, class_prompts(NAMES, ["a {}.", "one {}."]), scale=20.0)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        head.bias.copy_(torch.tensor([-1.0, 0.5, 3.0]))
    return Classifier(clip, head).eval()


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(5, 3, 40, 40, generator=torch.Generator().manual_seed(2))


def test_logits_are_the_classifiers_to_fp32_rounding(classifier, pixels):
    with torch.no_grad():
        expected = classifier(pixels)
        assert expected.std() > 0.1
        torch.testing.assert_close(fold(classifier)(pixels), expected, rtol=0, atol=20 * 1e-6)


def test_there_is_no_text_tower(classifier):
    module = fold(classifier)
    assert not any("text" in name for name in module.state_dict())
    vision = sum(value.numel() for name, value in classifier.clip.model.named_parameters() if "vis" in name)
    assert sum(value.numel() for value in module.parameters()) == vision + 3 * 64 + 3


def test_logits_are_stock_transformers_and_two_lines_of_numpy(classifier, pixels):
    module = fold(classifier)
    with torch.no_grad():
        features = module.visual(pixel_values=pixels).image_embeds.numpy()
        found = module(pixels).numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(found, unit @ module.weight.numpy().T + module.bias.numpy(), atol=1e-5)


def test_rows_of_the_matrix_are_as_long_as_the_scale(classifier):
    torch.testing.assert_close(fold(classifier).weight.norm(dim=1), torch.full((3,), 20.0))


def test_the_classifier_is_left_as_it_is(classifier, pixels):
    classifier.train()
    random = torch.get_rng_state()
    module = fold(classifier)
    assert classifier.training
    assert torch.equal(torch.get_rng_state(), random)
    classifier.eval()
    with torch.no_grad():
        module.visual.visual_projection.weight.zero_()
        assert classifier.clip.encode_image(pixels).abs().max() > 0


def test_a_tail_is_refused_and_named(classifier):
    from clip_more.adapters import add_tail

    clip = load_clip("tiny")
    add_tail(clip.model)
    head = PromptHead(clip, class_prompts(NAMES, ["a {}."]), scale=20.0)
    with pytest.raises(ValueError, match="is no weight of a plain CLIP; take its tail away with merge_tail"):
        fold(Classifier(clip, head))


def test_the_last_product_is_fp32_under_autocast(classifier, pixels):
    module = fold(classifier)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = module.visual(pixel_values=pixels).image_embeds
        found = module(pixels)
    assert found.dtype == torch.float32
    expected = F.normalize(features.float(), dim=-1) @ module.weight.T + module.bias
    torch.testing.assert_close(found, expected)


def test_shapes_that_do_not_fit_are_refused(classifier):
    visual = fold(classifier).visual
    with pytest.raises(ValueError, match=r"weight \(3, 32\) and bias \(3,\) fit no tower of 64 features"):
        ImageClassifier(visual, torch.zeros(3, 32), torch.zeros(3))
    with pytest.raises(ValueError, match=r"bias \(2,\)"):
        ImageClassifier(visual, torch.zeros(3, 64), torch.zeros(2))


def test_description_makes_the_transform_of_the_clip(classifier):
    import PIL.Image

    from clip_more.data.transforms import test_transform as transform

    clip = classifier.clip
    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8))
    expected = transform(40, clip.image_mean, clip.image_std, geometry="squash")(photo)
    assert torch.equal(describe(clip, NAMES).transform()(photo), expected)
    assert describe(clip, NAMES).transform("flip")(photo).shape == (2, 3, 40, 40)
