import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clip_more.adapters import MoreConfig, add_tail, general_part, save_tail, tail_parameters
from clip_more.analysis.tail_layers import layer_place, layer_share, tail_layers
from clip_more.models.clip import load_clip
from clip_more.training.watch import tail_share


def random_tail(model, config=None):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in tail_parameters(add_tail(model, config)).values():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = random_tail(load_clip("tiny").model)
    save_tail(model, folder / "tail")
    general_part(model).save_pretrained(folder / "general")
    return model, folder


def test_share_and_stable_rank_are_those_of_the_whole_matrices():
    random = np.random.default_rng(0)
    w, b, a = random.normal(size=(7, 12)), random.normal(size=(7, 3)), random.normal(size=(3, 12))
    found = layer_share("layer", w, b, a)
    assert found.share == pytest.approx(np.linalg.norm(b @ a) / np.linalg.norm(w + b @ a))
    assert found.stable_rank == pytest.approx(np.linalg.norm(b @ a) ** 2 / np.linalg.norm(b @ a, 2) ** 2)
    assert found.rank == 3


def test_tail_of_zeros_has_no_share_and_tail_alone_has_all():
    a = np.ones((2, 5))
    assert layer_share("layer", np.ones((4, 5)), np.zeros((4, 2)), a) == layer_share(
        "layer", a[[0] * 4], 0 * a[:, :4].T, a
    )
    assert layer_share("layer", np.ones((4, 5)), np.zeros((4, 2)), a).share == 0
    only = layer_share("layer", np.zeros((4, 5)), np.ones((4, 2)), a)
    assert (only.share, only.stable_rank) == pytest.approx((1, 1))


def test_files_give_what_training_logs(exported):
    model, folder = exported
    layers = tail_layers(folder / "tail", folder / "general")
    assert len(layers) == len(tail_parameters(model)) // 2
    alone = {layer.name: layer.share for layer in layers}
    # Groups of one layer are compared one by one; a group's share lies between those of its layers.
    logged = tail_share(model)
    assert alone["vision_model.embeddings.patch_embedding"] == pytest.approx(logged["vision.embedding"], rel=1e-5)
    for group, part in (("vision.mlp", ".mlp."), ("text.attention", ".self_attn.")):
        own = [share for name, share in alone.items() if part in name and name.startswith(group.split(".")[0])]
        assert min(own) <= logged[group] <= max(own)


def test_layers_stand_in_the_order_of_the_network(exported):
    names = [layer.name for layer in tail_layers(exported[1] / "tail", exported[1] / "general")]
    assert names[0] == "vision_model.embeddings.patch_embedding"
    assert names[1] == "vision_model.encoder.layers.0.self_attn.q_proj"
    assert names[-1] == "text_projection"
    assert names.index("visual_projection") + 1 == names.index("text_model.encoder.layers.0.self_attn.q_proj")


def test_blocks_are_ordered_as_numbers_and_kinds_are_told_apart():
    names = ["layer2.0.conv1", "layer1.10.conv2", "layer1.2.conv1", "conv1", "layer1.2.downsample.0"]
    places = sorted(names, key=layer_place)
    assert places == ["conv1", "layer1.2.conv1", "layer1.2.downsample.0", "layer1.10.conv2", "layer2.0.conv1"]
    assert layer_place("layer1.2.conv1").kind == "convolution"
    assert layer_place("blocks.3.attn.qkv").kind == "attention"
    place = layer_place("text_model.encoder.layers.11.mlp.fc1")
    assert (place.tower, place.kind, place.block_label) == ("text", "mlp", "11")


def test_convolutions_are_matrices(tmp_path):
    model = random_tail(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)), MoreConfig(rho=0.5, target_modules="all")
    )
    save_tail(model, tmp_path / "tail")
    (tmp_path / "general").mkdir()
    save_file(general_part(model).state_dict(), tmp_path / "general" / "model.safetensors")
    for layer in tail_layers(tmp_path / "tail", tmp_path / "general"):
        own = model.get_submodule(layer.name)
        expected = own.tail_weight().norm() / own.full_weight().norm()
        assert layer.share == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda tail, general: (tail / "adapter_model.safetensors").unlink(), FileNotFoundError, "beside its general/"),
        (lambda tail, general: (general / "model.safetensors").write_bytes(b"x"), ValueError, "cannot be read"),
        (
            lambda tail, general: save_file({"x.weight": torch.ones(1)}, general / "model.safetensors"),
            ValueError,
            "has no weight of 0",
        ),
        (
            lambda tail, general: (tail / "adapter_config.json").write_text(
                json.dumps(json.loads((tail / "adapter_config.json").read_text()) | {"lora_alpha": 99})
            ),
            ValueError,
            "scaling of 1",
        ),
        (lambda tail, general: (tail / "adapter_config.json").write_text("{"), ValueError, "adapter_config.json"),
        (
            lambda tail, general: save_file(
                load_file(general / "model.safetensors") | {"0.weight": torch.ones(3, 9)}, general / "model.safetensors"
            ),
            ValueError,
            "layer 0: W_g",
        ),
    ],
)
def test_damage_is_named(tmp_path, damage, error, message):
    model = random_tail(nn.Sequential(nn.Linear(6, 4)), MoreConfig(rho=0.5, target_modules="all"))
    save_tail(model, tmp_path / "tail")
    (tmp_path / "general").mkdir()
    save_file(general_part(model).state_dict(), tmp_path / "general" / "model.safetensors")
    damage(tmp_path / "tail", tmp_path / "general")
    with pytest.raises(error, match=message):
        tail_layers(tmp_path / "tail", tmp_path / "general")
