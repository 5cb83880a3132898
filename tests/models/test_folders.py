import json

import pytest
import torch

from clip_more.models.clip import load_clip


@pytest.fixture(scope="module")
def tiny():
    return load_clip("tiny", seed=5)


@pytest.fixture
def saved(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    return tmp_path


def same_weights(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_bare_transformers_folder_loads_with_clips_tokenizer_and_processor(tiny, saved):
    clip = load_clip(str(saved))
    assert same_weights(clip, tiny)
    assert clip.source == str(saved)
    assert torch.equal(clip.tokenize(["a tv monitor"]), tiny.tokenize(["a tv monitor"]))
    assert clip.image_mean == tiny.image_mean


def test_half_precision_checkpoint_comes_up_in_fp32(saved):
    load_clip(str(saved)).model.half().save_pretrained(saved)
    assert load_clip(str(saved)).model.dtype == torch.float32


def test_saved_tokenizer_and_processor_are_used(tiny, saved):
    from transformers import AutoTokenizer

    from clip_more.models.processor import clip_image_processor

    tiny.tokenizer.save_pretrained(saved)
    own = AutoTokenizer.from_pretrained(saved)  # other tests share that of `tiny`
    own.add_tokens(["<brand new>"])  # 49409 tokens: more than the tower has
    own.save_pretrained(saved)
    clip_image_processor(32, {"mean": [0.1, 0.2, 0.3]}).save_pretrained(saved)
    with pytest.raises(ValueError, match="49409 tokens, but the text tower's table only 49408"):
        load_clip(str(saved))
    for path in saved.glob("tokenizer*"):
        path.unlink()
    assert load_clip(str(saved)).image_mean == (0.1, 0.2, 0.3)


def test_folder_without_a_clip_says_what_it_lacks(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no CLIP: it has neither config.json nor open_clip_config.json$"
    ):
        load_clip(str(tmp_path))


def test_run_folder_and_tail_point_to_the_right_place(saved, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    (run / "merged").symlink_to(saved)
    with pytest.raises(FileNotFoundError, match=r"did you mean .*merged\?"):
        load_clip(str(run))
    (run / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="it is a tail: give general/ or merged/"):
        load_clip(str(run))


def test_absent_folder_and_lone_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder /nowhere/clip"):
        load_clip("/nowhere/clip")
    file = tmp_path / "weights.pt"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is a file; give its folder, or open_clip:<architecture>:"):
        load_clip(str(file))


def test_weights_that_are_missing_do_not_stay_random(saved):
    from safetensors.torch import load_file, save_file

    state = load_file(saved / "model.safetensors")
    del state["visual_projection.weight"]
    save_file(state, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack visual_projection\.weight, which would stay random"):
        load_clip(str(saved))
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has a config\.json but no readable weights"):
        load_clip(str(saved))


def test_another_kind_of_model_is_refused(saved):
    (saved / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ValueError, match=r"config.json describes a model of type 'siglip'"):
        load_clip(str(saved))


def test_hub_id_that_is_not_cached_says_so_offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"cannot load 'openai/clip-vit-base-patch32'.*\(or is set offline\)"):
        load_clip("openai/clip-vit-base-patch32")
    with pytest.raises(FileNotFoundError, match=r"cannot load 'teeny'.*What works: tiny, small"):
        load_clip("teeny")


def test_cached_hub_id_loads_offline(monkeypatch, tiny, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repo, commit = tmp_path / "models--someone--their-clip", "a" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    tiny.model.save_pretrained(repo / "snapshots" / commit)
    clip = load_clip("someone/their-clip")
    assert clip.source == "someone/their-clip"
    assert same_weights(clip, tiny)
