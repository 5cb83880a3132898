import copy

import pytest
import torch

from clip_more.models.convert import hf_config, hf_to_open_clip, open_clip_config, open_clip_to_hf
from clip_more.models.presets import PRESETS, random_clip

ODD = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 24, "patch_size": 12, "width": 60, "layers": 2, "head_width": 20, "mlp_ratio": 2.35},
    "text_cfg": {"context_length": 9, "vocab_size": 50, "width": 36, "heads": 3, "layers": 1, "mlp_ratio": 3.0},
}


def random_hf(cfg):
    """A model whose every weight is random: a fresh one has zero biases and unit norms, which hide swapped names."""
    from transformers import CLIPModel

    model = CLIPModel(hf_config(cfg)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.1 if parameter.ndim < 2 else 0.02))
    return model


def random_inputs(cfg):
    size, text = cfg["vision_cfg"]["image_size"], cfg["text_cfg"]
    generator = torch.Generator().manual_seed(4)
    end = text["vocab_size"] - 1
    ids = torch.randint(1, end - 1, (5, text["context_length"]), generator=generator)
    ids[:, 0] = end - 1
    for row in range(5):
        ids[row, 3 + row :] = end
    return torch.randn(3, 3, size, size, generator=generator), ids


def open_clip_logits(state, cfg, pixels, ids):
    from open_clip import CLIP

    theirs = CLIP(**copy.deepcopy(cfg)).eval()
    theirs.load_state_dict(state, strict=True)
    with torch.no_grad():
        return theirs.get_logits(pixels, ids)[0]


@pytest.mark.parametrize("cfg", [PRESETS["tiny"], PRESETS["small"], ODD], ids=["tiny", "small", "odd head width"])
def test_open_clip_gives_the_same_logits(cfg):
    model = random_hf(cfg)
    pixels, ids = random_inputs(cfg)
    with torch.no_grad():
        ours = model(input_ids=ids, pixel_values=pixels).logits_per_image
    theirs = open_clip_logits(*hf_to_open_clip(model), pixels, ids)
    assert ours.std() > 0.1
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg", [PRESETS["tiny"], ODD], ids=["tiny", "odd"])
def test_there_and_back_is_bit_identical(cfg):
    model = random_hf(cfg)
    state, their_cfg = hf_to_open_clip(model)
    back = open_clip_to_hf(state, their_cfg)
    expected = model.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in back.state_dict().items())
    again, again_cfg = hf_to_open_clip(back)
    assert again_cfg == their_cfg
    assert again.keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.items())


def test_converted_model_runs_and_shares_no_memory():
    model = random_hf(ODD)
    state, cfg = hf_to_open_clip(model)
    back = open_clip_to_hf(state, cfg)
    pixels, ids = random_inputs(ODD)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits_per_image
        for tensor in state.values():
            tensor.zero_()
        assert torch.equal(back(input_ids=ids, pixel_values=pixels).logits_per_image, expected)


def test_custom_text_layout_of_open_clip_is_read():
    from open_clip import CustomTextCLIP

    theirs = CustomTextCLIP(**copy.deepcopy(ODD)).eval()
    model = open_clip_to_hf(theirs.state_dict(), ODD)
    pixels, ids = random_inputs(ODD)
    with torch.no_grad():
        ours = model(input_ids=ids, pixel_values=pixels).logits_per_image
        torch.testing.assert_close(ours, theirs.get_logits(pixels, ids)[0], atol=1e-5, rtol=0)


def test_mlp_width_survives_the_ratio():
    from transformers import CLIPConfig

    for width, mlp in [(60, 141), (768, 1000), (49, 100), (1408, 6144)]:
        config = CLIPConfig(vision_config={"hidden_size": width, "num_attention_heads": 1, "intermediate_size": mlp})
        assert int(width * open_clip_config(config)["vision_cfg"]["mlp_ratio"]) == mlp


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("vision_config", "layer_norm_eps", 1e-6, "eps 1e-05; this CLIP's vision tower 1e-06"),
        ("text_config", "hidden_act", "gelu", "one activation for both towers"),
        ("vision_config", "num_channels", 1, "3 channels; this CLIP 1"),
        ("text_config", "eos_token_id", 7, "ends its prompts with 7"),
        ("vision_config", "image_size", [32, 64], "image_size is 32 x 64; only square"),
    ],
)
def test_what_open_clip_cannot_express_is_refused(part, key, value, message):
    from transformers import CLIPConfig

    with pytest.raises(ValueError, match=message):
        open_clip_config(CLIPConfig(**{part: {key: value}}))


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"vision_cfg": {"layers": [3, 4, 6, 3]}}, "a ModifiedResNet"),
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "a timm vision tower"),
        ({"text_cfg": {"hf_model_name": "roberta-base"}}, "a Hugging Face text tower"),
        ({"multimodal_cfg": {"width": 1}}, "CoCa's caption decoder"),
        ({"init_logit_bias": -10}, "SigLIP's logit bias"),
        ({"text_cfg": {"no_causal_mask": True}}, "text_cfg.no_causal_mask = True"),
        ({"vision_cfg": {"pool_type": "avg"}}, "vision_cfg.pool_type = 'avg'"),
        ({"text_cfg": {"norm_kwargs": {"eps": 1e-6}}}, "text_cfg.norm_kwargs"),
    ],
)
def test_open_clip_models_without_counterpart_are_named(cfg, message):
    cfg = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}, **cfg}
    with pytest.raises(ValueError, match=f"{message}.*what works are.*ViT-B-32"):
        hf_config(cfg)


def test_weights_of_another_architecture_are_named():
    state, cfg = hf_to_open_clip(random_clip("tiny", 0))
    with pytest.raises(ValueError, match=r"visual.positional_embedding has shape \(17, 96\), which does not fit"):
        open_clip_to_hf(state, {**cfg, "vision_cfg": {**cfg["vision_cfg"], "image_size": 48}})
    with pytest.raises(ValueError, match=r"have no visual\.transformer\.resblocks\.3\.attn"):
        open_clip_to_hf(state, {**cfg, "vision_cfg": {**cfg["vision_cfg"], "layers": 4}})
    with pytest.raises(ValueError, match=r"visual.transformer.resblocks.2\..* has no place"):
        open_clip_to_hf(state, {**cfg, "vision_cfg": {**cfg["vision_cfg"], "layers": 2}})


def test_a_model_with_a_tail_is_refused():
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(LoraConfig(target_modules=["fc1"]), random_clip("tiny", 0))
    with pytest.raises(ValueError, match=r"merge_tail\(model\) first"):
        hf_to_open_clip(model)
