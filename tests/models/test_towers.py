import pytest
import torch
from torch import nn

from clip_more.models.clip import load_clip
from clip_more.models.towers import ReadoutLayer


@pytest.fixture(params=["tiny", "small"])
def clip(request):
    return load_clip(request.param)


def inputs(clip, tower):
    torch.manual_seed(0)
    if tower == "vision":
        return torch.randn(3, 3, clip.image_size, clip.image_size)
    return clip.tokenize(["a photo of a cat", "a", "a photo of some traffic lights in the dark"])


def stock(clip, tower, x):
    if tower == "vision":
        return clip.model.get_image_features(pixel_values=x).pooler_output
    return clip.model.get_text_features(input_ids=x).pooler_output


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_features_and_gradients_are_those_of_transformers(clip, tower):
    """The last block computes one position alone; stock transformers computes them all."""
    x = inputs(clip, tower)
    found = []
    for encode in (getattr(clip, tower), lambda x: stock(clip, tower, x)):
        clip.model.zero_grad()
        features = encode(x)
        features.square().sum().backward()
        found.append(
            (features.detach(), {n: p.grad.clone() for n, p in clip.model.named_parameters() if p.grad is not None})
        )
    (ours, gradients), (theirs, expected) = found
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=0, atol=2e-6 * max(gradient.abs().max().item(), 1), msg=name
        )


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_any_split_into_stages_gives_the_same(clip, tower):
    x, stages = inputs(clip, tower), getattr(clip, tower)
    with torch.no_grad():
        whole = stages(x)
        for split in range(len(stages.blocks) + 1):
            parts = stages.above(stages.below(x, split), split)
            torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6)
            rows = torch.tensor([2, 0])
            torch.testing.assert_close(
                stages.above(stages.below(x, split).select(rows), split), whole[rows], rtol=0, atol=2e-6
            )


def test_an_end_token_named_wrongly_is_found_as_transformers_does():
    clip = load_clip("tiny")
    clip.model.text_model.eos_token_id = 2  # as in the configurations of CLIP's first release
    x = inputs(clip, "text")
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_text(x), stock(clip, "text", x), rtol=0, atol=2e-6)


def test_last_blocks_keep_keys_shapes_and_what_they_do_for_others(clip):
    """Stock code that calls the model in its own way must see no difference."""
    again = type(clip.model)(clip.model.config)
    assert clip.model.state_dict().keys() == again.state_dict().keys()
    again.load_state_dict(clip.model.state_dict())
    again.eval()
    x = inputs(clip, "vision")
    with torch.no_grad():
        ours, theirs = clip.model.vision_model(x), again.vision_model(x)
    assert isinstance(clip.model.vision_model.encoder.layers[-1], ReadoutLayer)
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    assert torch.equal(ours.pooler_output, theirs.pooler_output)


def test_attention_dropout_reaches_the_last_block():
    clip = load_clip("tiny")
    for block in clip.model.vision_model.encoder.layers[:-1]:
        block.self_attn.dropout = 0.0
    assert not clip.vision.draws
    clip.model.vision_model.encoder.layers[-1].self_attn.dropout = 0.5
    clip.train()
    x = inputs(clip, "vision")
    assert clip.vision.draws
    assert not torch.equal(clip.encode_image(x), clip.encode_image(x))
    clip.eval()
    assert not clip.vision.draws
    assert torch.equal(clip.encode_image(x), clip.encode_image(x))


def test_first_names_the_stage_of_a_layer(clip):
    class Marked(nn.Identity):
        pass

    tower = clip.vision
    assert tower.first(Marked) is None
    clip.model.vision_model.post_layernorm.extra = Marked()
    assert clip.vision.first(Marked) == len(tower.blocks)
    tower.blocks[1].mlp.extra = Marked()
    assert clip.vision.first(Marked) == 1
    clip.model.vision_model.embeddings.extra = Marked()
    assert clip.vision.first(Marked) == -1
    assert clip.text.first(Marked) is None
