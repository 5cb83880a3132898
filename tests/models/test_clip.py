import copy

import pytest
import torch

from clip_more.models.clip import load_clip, resize_positions


@pytest.fixture(scope="module")
def tiny():
    return load_clip("tiny")


def images(size, n=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_presets_say_that_their_weights_are_random(tiny):
    assert tiny.source == "tiny (random weights, seed 0)"
    assert not tiny.model.training
    assert next(tiny.parameters()).dtype == torch.float32


@pytest.mark.parametrize(("name", "size", "width"), [("tiny", 32, 64), ("small", 96, 128)])
def test_features_have_the_projections_width(name, size, width):
    clip = load_clip(name)
    assert clip.image_size == size
    with torch.no_grad():
        assert clip.encode_image(images(size)).shape == (2, width)
        assert clip.encode_text(clip.tokenize(["a cat", "a traffic light", "x"])).shape == (3, width)
    assert clip.model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-4)


def test_seed_decides_the_weights_and_the_global_state_is_left_alone(tiny):
    before = torch.random.get_rng_state()
    again, other = load_clip("tiny"), load_clip("tiny", seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [clip.model.visual_projection.weight for clip in (tiny, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_features_are_those_of_the_model_before_normalisation(tiny):
    ids, pixels = tiny.tokenize(["a photo of a cat.", "dog"]), images(32)
    with torch.no_grad():
        out = tiny.model(input_ids=ids, pixel_values=pixels)
        image, text = tiny.encode_image(pixels), tiny.encode_text(ids)
    torch.testing.assert_close(image / image.norm(dim=-1, keepdim=True), out.image_embeds)
    torch.testing.assert_close(text / text.norm(dim=-1, keepdim=True), out.text_embeds)
    assert not torch.allclose(image.norm(dim=-1), torch.ones(2))


def test_tokens_are_padded_to_the_longest_and_padding_changes_nothing(tiny):
    ids = tiny.tokenize(["dog", "a photo of a traffic light."])
    assert ids.shape == (2, 9)
    assert ids.dtype == torch.long
    with torch.no_grad():
        torch.testing.assert_close(tiny.encode_text(ids)[:1], tiny.encode_text(tiny.tokenize(["dog"])))
        full = torch.nn.functional.pad(ids, (0, 77 - 9), value=49407)
        torch.testing.assert_close(tiny.encode_text(ids), tiny.encode_text(full))


def test_long_prompts_are_cut_and_still_end_with_the_end_token(tiny):
    ids = tiny.tokenize(["word " * 200])
    assert ids.shape == (1, 77)
    assert ids[0, -1] == 49407


@pytest.mark.parametrize("size", [16, 48, 64])
def test_resized_positions_equal_open_clips(size):
    from open_clip import CLIP
    from open_clip.model import resize_pos_embed

    from clip_more.models.convert import hf_to_open_clip, open_clip_config

    clip = load_clip("tiny", image_size=size)
    state, _ = hf_to_open_clip(load_clip("tiny").model)
    theirs = CLIP(**open_clip_config(clip.model.config))
    resize_pos_embed(state, theirs)
    ours = clip.model.vision_model.embeddings.position_embedding.weight
    torch.testing.assert_close(ours.detach(), state["visual.positional_embedding"], atol=1e-7, rtol=0)


@pytest.mark.parametrize("size", [48, 64])
def test_resized_positions_are_close_to_transformers_own_interpolation(tiny, size):
    # Close on a smooth grid only: transformers' bicubic is not antialiased, and its coefficient is -0.75, not -0.5.
    model = copy.deepcopy(tiny.model)
    embeddings = model.vision_model.embeddings
    y, x, channel = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), torch.arange(96.0), indexing="ij")
    with torch.no_grad():
        embeddings.position_embedding.weight[1:] = torch.sin(0.4 * x + 0.2 * y + channel).flatten(0, 1)
        theirs = embeddings.interpolate_pos_encoding(torch.zeros(1, (size // 8) ** 2 + 1, 96), size, size)[0]
    resize_positions(model, size)
    ours = embeddings.position_embedding.weight
    torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)
    assert not torch.allclose(ours[2], ours[1 + size // 8], atol=0.03)  # so swapped axes would show


def test_resized_model_saves_and_loads_as_a_stock_clip(tmp_path):
    from transformers import CLIPModel

    clip = load_clip("tiny", image_size=48)
    assert clip.image_size == 48
    assert clip.image_processor(torch.zeros(3, 60, 80), return_tensors="pt")["pixel_values"].shape == (1, 3, 48, 48)
    clip.model.save_pretrained(tmp_path)
    stock = CLIPModel.from_pretrained(tmp_path)
    assert stock.config.vision_config.image_size == 48
    with torch.no_grad():
        theirs, ours = stock.get_image_features(images(48)).pooler_output, clip.encode_image(images(48))
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)


def test_same_size_changes_nothing(tiny):
    model = copy.deepcopy(tiny.model)
    resize_positions(model, 32)
    weights = [m.vision_model.embeddings.position_embedding.weight for m in (model, tiny.model)]
    assert torch.equal(*weights)


def test_image_size_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="image size 35 is not a multiple of the patch size 8; take 32 or 40"):
        load_clip("tiny", image_size=35)
    with pytest.raises(ValueError, match="image size 0 is not a multiple"):
        load_clip("tiny", image_size=0)


def test_importing_the_room_leaves_transformers_alone():
    import subprocess
    import sys

    code = "import sys, clip_more.models; sys.exit('transformers' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_copy_shares_the_tokenizer_and_nothing_else(tiny):
    import copy

    copied = copy.deepcopy(tiny)
    assert copied.tokenizer is tiny.tokenizer
    assert copied.image_processor is not tiny.image_processor
    assert copied.model.state_dict().keys() == tiny.model.state_dict().keys()
    pixels = images(tiny.image_size)
    with torch.no_grad():
        assert torch.equal(copied.encode_image(pixels), tiny.encode_image(pixels))
        for parameter in copied.parameters():
            parameter.zero_()
        assert not torch.equal(copied.encode_image(pixels), tiny.encode_image(pixels))
