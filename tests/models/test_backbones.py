import copy
import json
import urllib.error

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clip_more.adapters import MoreConfig, add_tail, general_part, merge_tail, tail
from clip_more.models.backbone_sources import ImageSettings
from clip_more.models.backbones import Backbone, is_backbone, load_backbone, read_backbone, save_backbone
from tests.adapters.test_layer import randomise_tail

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Name, image size, features. (torchvision's smallest ViT has 86 million parameters: a smaller one stands in for it.)
FAMILIES = [
    ("cifar_resnet32", 16, 64),
    ("torchvision:resnet18", 32, 512),
    ("timm:resnet10t", 32, 512),
    ("timm:resnext26ts", 32, 2048),
    ("timm:vit_tiny_patch16_224", 32, 192),
]


@pytest.fixture(scope="module")
def made():
    return {name: load_backbone(name, image_size=size) for name, size, _ in FAMILIES}


@pytest.fixture
def saved(tmp_path, made):
    save_backbone(made["timm:vit_tiny_patch16_224"], tmp_path)
    return tmp_path


@pytest.fixture
def torchvision_vit():
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64).eval()
    model.heads = nn.Identity()
    return Backbone(model, "torchvision:vit_b_16", "a small one", ImageSettings(32)).eval()


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "size", "features"), FAMILIES)
def test_features_are_pooled_and_counted(made, name, size, features):
    backbone = made[name]
    with torch.no_grad():
        assert backbone.encode_image(images(size)).shape == (2, features)
    assert (backbone.feature_size, backbone.image_size, backbone.geometry) == (features, size, "crop")
    assert (backbone.name, backbone.source) == (name, f"{name} (random weights, seed 0)")
    assert not backbone.training
    assert next(backbone.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "size", "mean", "std", "interpolation"),
    [
        ("cifar_resnet32", 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "bilinear"),
        ("torchvision:resnet18", 224, *IMAGENET, "bilinear"),
        ("timm:resnet10t", 176, *IMAGENET, "bicubic"),
        ("timm:vit_tiny_patch16_224", 224, (0.5,) * 3, (0.5,) * 3, "bicubic"),
    ],
)
def test_images_are_prepared_as_the_library_does(name, size, mean, std, interpolation):
    backbone = load_backbone(name)
    found = backbone.image_size, backbone.image_mean, backbone.image_std, backbone.interpolation
    assert found == (size, mean, std, interpolation)


def test_seed_decides_the_weights_and_the_global_state_is_left_alone(made):
    before = torch.random.get_rng_state()
    again, other = (
        load_backbone("timm:resnet10t", image_size=32),
        load_backbone("timm:resnet10t", image_size=32, seed=1),
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    pixels = images(32)
    with torch.no_grad():
        first, second, third = (model.encode_image(pixels) for model in (made["timm:resnet10t"], again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize(("name", "size", "_"), FAMILIES)
def test_saved_backbones_are_read_back_exactly(made, tmp_path, name, size, _):
    backbone = made[name]
    save_backbone(backbone, tmp_path)
    assert is_backbone(str(tmp_path))
    for read in (read_backbone(tmp_path), load_backbone(str(tmp_path))):
        with torch.no_grad():
            assert torch.equal(read.encode_image(images(size)), backbone.encode_image(images(size)))
        for key in ("name", "source", "geometry", "image_size", "image_mean", "image_std", "interpolation"):
            assert getattr(read, key) == getattr(backbone, key)
        assert not read.training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_reading_fetches_nothing(saved, monkeypatch):
    import timm

    create, asked = timm.create_model, []
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: asked.append(k["pretrained"]) or create(*a, **k))
    read_backbone(saved)
    assert asked == [False]


def test_a_vit_of_torchvision_gives_its_class_token():
    backbone = load_backbone("torchvision:vit_b_16", image_size=32)
    assert (backbone.feature_size, backbone.image_size) == (768, 32)
    assert backbone.model.encoder.pos_embedding.shape == (1, 5, 768)


def test_another_geometry_and_image_size_may_be_asked_for(saved, made, torchvision_vit, tmp_path, monkeypatch):
    read = load_backbone(str(saved), image_size=48, geometry="squash")
    assert (read.image_size, read.geometry) == (48, "squash")
    assert read.encode_image(images(48)).shape == (2, 192)
    save_backbone(made["cifar_resnet32"], tmp_path)
    assert read_backbone(tmp_path, image_size=20).image_size == 20
    save_backbone(torchvision_vit, tmp_path)
    monkeypatch.setattr("clip_more.models.backbones.build", lambda *_, **__: (torchvision_vit.model, None))
    with pytest.raises(ValueError, match="torchvision:vit_b_16 keeps the image size"):
        read_backbone(tmp_path, image_size=48)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("cifar_resnet32", True),
        ("torchvision:nothing", True),
        ("timm:resnet10t/pretrained", True),
        ("small", False),
        ("openai/clip-vit-base-patch16", False),
        ("open_clip:ViT-B-16/openai", False),
    ],
)
def test_names_of_backbones_are_told_from_those_of_clips(source, wanted):
    assert is_backbone(source) is wanted


def test_a_folder_of_something_else_is_no_backbone(tmp_path):
    assert not is_backbone(str(tmp_path))
    for text in ("{", "[]", "3", '{"model_type": "clip"}'):
        (tmp_path / "config.json").write_text(text)
        assert not is_backbone(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar_resnet33", "no model cifar_resnet33; did you mean cifar_resnet3"),
        ("cifar_resnet32/DEFAULT", "comes without pretrained weights; leave out /DEFAULT"),
        ("torchvision:resnet_50", "no model torchvision:resnet_50; did you mean .*torchvision:resnet50"),
        ("torchvision:densenet121", "ResNets, ResNeXts, wide ResNets and ViTs can be used"),
        ("torchvision:resnet18/V9", "no weights 'V9'; choose one of IMAGENET1K_V1, DEFAULT"),
        ("timm:resnet10", "no model timm:resnet10; did you mean .*timm:resnet10t"),
        ("timm:resnet10t/DEFAULT", "write timm:resnet10t/pretrained"),
        ("timm:resnet10t.xyz", "Invalid pretrained tag .* Pretrained are: resnet10t.c3_in1k"),
        ("timm:qqqq", "no model timm:qqqq; write cifar_resnet32"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(source, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(source)


def test_wrong_sizes_and_geometries_are_refused():
    with pytest.raises(ValueError, match="torchvision:vit_b_16/DEFAULT reads images of 224 pixels, not 96"):
        load_backbone("torchvision:vit_b_16/DEFAULT", image_size=96)
    with pytest.raises(ValueError, match="torchvision:vit_b_16 cannot be made: Input shape indivisible by patch size"):
        load_backbone("torchvision:vit_b_16", image_size=40)
    with pytest.raises(ValueError, match="geometry is 'x'; choose one of crop, squash, pad"):
        load_backbone("cifar_resnet32", geometry="x")
    with pytest.raises(ValueError, match="net wants interpolation 'nearest'"):
        Backbone(nn.Flatten(), "net", "", ImageSettings(interpolation="nearest"))
    with pytest.raises(ValueError, match=r"net gives \(1, 3, 8, 8\) for an image"):
        Backbone(nn.Identity(), "net", "", ImageSettings(8))
    with pytest.raises(ValueError, match="net cannot read an image of 8 x 8 pixels"):
        Backbone(nn.Linear(3, 3), "net", "", ImageSettings(8))


def test_pretrained_weights_that_cannot_be_fetched_are_named(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def raises(error):
        def fetch(*args, **kwargs):
            raise error

        return fetch

    offline = raises(urllib.error.URLError("Name or service not known"))

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        FileNotFoundError, match=r"weights torchvision:resnet18/DEFAULT: .*not known.*resnet18 alone has"
    ):
        load_backbone("torchvision:resnet18/DEFAULT")
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", raises(LocalEntryNotFoundError("no cache")))
    with pytest.raises(FileNotFoundError, match="cannot fetch the pretrained weights timm:resnet10t/pretrained"):
        load_backbone("timm:resnet10t/pretrained")


def test_pretrained_weights_are_those_of_torchvision(monkeypatch):
    import torchvision

    theirs = torchvision.models.resnet18().eval()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *args, **kwargs: theirs.state_dict())
    backbone = load_backbone("torchvision:resnet18/IMAGENET1K_V1")
    assert (backbone.source, backbone.name) == ("torchvision:resnet18/IMAGENET1K_V1", "torchvision:resnet18")
    assert (backbone.image_size, backbone.image_mean, backbone.interpolation) == (224, IMAGENET[0], "bilinear")
    with torch.no_grad():
        assert torch.equal(theirs.fc(backbone.encode_image(images(64))), theirs(images(64)))


def test_files_that_do_not_fit_are_named(saved):
    weights, config = saved / "model.safetensors", saved / "config.json"
    tensors = load_file(weights)
    text = config.read_text()

    def refused(error, message):
        with pytest.raises(error, match=message):
            read_backbone(saved)

    save_file({key: tensor for key, tensor in tensors.items() if key != "norm.bias"}, weights)
    refused(ValueError, "model.safetensors lacks norm.bias, which timm:vit_tiny")
    save_file(tensors | {"head.weight": torch.zeros(2, 2)}, weights)
    refused(ValueError, "has head.weight, for which timm:vit_tiny.* has no place")
    save_file(tensors | {"norm.bias": torch.zeros(3)}, weights)
    refused(ValueError, r"norm.bias has shape \(3,\), timm:vit_tiny_patch16_224 wants \(192,\)")
    weights.write_bytes(b"torn")
    refused(ValueError, "model.safetensors is damaged")
    weights.unlink()
    refused(FileNotFoundError, "there is no .*model.safetensors")
    save_file(tensors, weights)
    for wrong in ("{", "{}", '{"clip_more_backbone": {}}', '{"clip_more_backbone": 3}'):
        config.write_text(wrong)
        refused(ValueError, "config.json does not describe a backbone")
    content = json.loads(text)
    content["clip_more_backbone"]["image_size"] = "32"
    config.write_text(json.dumps(content))
    refused(ValueError, "config.json: image_size is '32', which is no int")
    content["clip_more_backbone"] |= {"image_size": 32, "name": "timm:vit_tiny_patch16_225"}
    config.write_text(json.dumps(content))
    refused(ValueError, "config.json: there is no model timm:vit_tiny_patch16_225; did you mean")
    config.unlink()
    refused(FileNotFoundError, "there is no .*config.json")


@pytest.mark.parametrize("name", [*(name for name, _, _ in FAMILIES), "torchvision:vit_b_16"])
def test_more_on_every_family(made, torchvision_vit, name, tmp_path):
    backbone = copy.deepcopy(made.get(name, torchvision_vit))
    pixels = images(backbone.image_size)
    with torch.no_grad():
        plain = backbone.encode_image(pixels)
        add_tail(backbone, MoreConfig(target_modules="all"))
        assert torch.equal(backbone.encode_image(pixels), plain)
        randomise_tail(backbone)
        full = backbone.encode_image(pixels)
        assert (full - plain).abs().max() > 1e-3 * (plain.max() - plain.min())
        with tail(backbone, enabled=False):
            assert torch.equal(backbone.encode_image(pixels), plain)
        with pytest.raises(ValueError, match=r"has a tail .* save merge_tail"):
            save_backbone(backbone, tmp_path)
        merged = merge_tail(backbone)
        assert (merged.encode_image(pixels) - full).abs().max() <= 1e-5 * (full.max() - full.min())
        assert torch.equal(general_part(backbone).encode_image(pixels), plain)
        assert merged.state_dict().keys() == made.get(name, torchvision_vit).state_dict().keys()


@pytest.mark.parametrize(
    ("name", "present"),
    [
        ("cifar_resnet32", {"conv1", "conv2"}),
        ("torchvision:resnet18", {"conv1", "conv2", "0"}),
        ("timm:vit_tiny_patch16_224", {"qkv", "proj", "fc1", "fc2"}),
        ("torchvision:vit_b_16", {"conv_proj", "0", "3"}),
    ],
)
def test_all_means_every_plain_layer_that_is_called_as_one(made, torchvision_vit, name, present):
    """torchvision's ViTs: not the attention, whose nn.MultiheadAttention reads its weights past its layers."""
    layers = MoreConfig(target_modules="all").find_layers(made.get(name, torchvision_vit))
    assert {path.rpartition(".")[2] for path in layers} == present


def test_all_leaves_grouped_convolutions_aside(made):
    backbone = made["timm:resnext26ts"]
    layers = MoreConfig(target_modules="all").find_layers(backbone)
    convolutions = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d)}
    grouped = {name for name, module in convolutions.items() if module.groups > 1}
    assert grouped
    assert set(layers) == set(convolutions) - grouped
