import json

import pytest

from clip_more.models.tokenizer import CLIP_VOCABULARY, clip_tokenizer, load_tokenizer

PROMPTS = [
    "a photo of a traffic light.",
    "A PHOTO of a TV-Monitor!",
    "the dog's ball, the cats' toys; we're here, I'll go, they'd've",
    "  tabs\tand\nnew   lines ",
    "7 digits: 3.14159, 2026-11-21, 1,234",
    "café, naïve, Straße, Ελλάδα, Привет, 東京, عربى",
    "emoji 🐶🎉 and symbols © ± → $5 #tag @you <b>",
    "a_b__c (d) [e] {f} \\ / | ~ ^ `",
    "",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "word " * 100,
]


@pytest.fixture(scope="module")
def tokenizer():
    return clip_tokenizer()


@pytest.fixture(scope="module")
def reference():
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


@pytest.mark.parametrize("text", PROMPTS)
def test_ids_equal_open_clips(tokenizer, reference, text):
    theirs = reference([text])[0].tolist()
    ours = tokenizer(text, truncation=True, max_length=77)["input_ids"]
    assert ours == theirs[: theirs.index(reference.eot_token_id) + 1]
    assert set(theirs[len(ours) :]) <= {0}


def test_padding_is_the_end_token_and_so_pools_at_the_first_one(tokenizer):
    ids = tokenizer(["cat", "a photo of a cat"], padding=True)["input_ids"]
    assert ids[0][2:] == [49407] * (len(ids[1]) - 2)


def test_saved_tokenizer_loads_by_auto_tokenizer_offline(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(PROMPTS)["input_ids"] == tokenizer(PROMPTS)["input_ids"]
    assert loaded.model_max_length == 77


def test_folder_without_tokenizer_gets_clips_own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert len(load_tokenizer(tmp_path, CLIP_VOCABULARY, 77)) == CLIP_VOCABULARY


def test_folder_without_tokenizer_and_with_another_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocabulary of 1000 tokens is not CLIP's 49408"):
        load_tokenizer(tmp_path, 1000, 77)


def test_tokenizer_larger_than_the_token_table_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has 49408 tokens, but the text tower's table only 1000 rows"):
        load_tokenizer(tmp_path, 1000, 77)


def test_absent_open_clip_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install open_clip_torch"):
        clip_tokenizer()
