import pytest
import torch

from clip_more.models.clip import load_clip
from clip_more.training.vocabulary import compact_vocabulary

PROMPTS = ["a photo of the digit three.", "a photo of the digit nine.", "zero"]


@pytest.fixture
def clip():
    return load_clip("tiny", seed=1)


def test_text_features_are_the_same_inside_as_outside(clip):
    ids = clip.tokenize(PROMPTS)
    before = clip.encode_text(ids)
    with compact_vocabulary(clip.model, ids):
        inside = clip.encode_text(ids)
    assert torch.equal(inside, before)
    assert torch.equal(clip.encode_text(ids), before)


def test_only_the_rows_used_are_parameters_inside(clip):
    ids = clip.tokenize(PROMPTS)
    whole = clip.model.text_model.embeddings.token_embedding
    with compact_vocabulary(clip.model, ids):
        rows = [p.shape[0] for n, p in clip.model.named_parameters() if "token_embedding" in n]
    assert rows == [len(ids.unique())]
    assert clip.model.text_model.embeddings.token_embedding is whole
    assert whole.weight.shape[0] == 49408


def test_a_training_step_equals_one_on_the_whole_table():
    weights = []
    for compact in (False, True):
        clip = load_clip("tiny", seed=1)
        ids = clip.tokenize(PROMPTS)

        def steps(clip=clip, ids=ids):
            optimizer = torch.optim.AdamW(clip.model.parameters(), lr=1e-2, weight_decay=0.0)
            for _ in range(3):
                optimizer.zero_grad()
                clip.encode_text(ids).square().sum().backward()
                optimizer.step()

        if compact:
            with compact_vocabulary(clip.model, ids):
                steps()
        else:
            steps()
        weights.append(clip.model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5)


def test_rows_not_used_keep_their_values_to_the_bit(clip):
    ids = clip.tokenize(PROMPTS)
    before = clip.model.text_model.embeddings.token_embedding.weight.detach().clone()
    with compact_vocabulary(clip.model, ids), torch.no_grad():
        clip.model.text_model.embeddings.token_embedding.weight.add_(1.0)
    changed = (clip.model.text_model.embeddings.token_embedding.weight != before).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == ids.unique().tolist()


def test_trained_rows_go_back_when_the_body_raises(clip):
    ids = clip.tokenize(PROMPTS)
    with pytest.raises(KeyboardInterrupt), compact_vocabulary(clip.model, ids):
        raise KeyboardInterrupt
    assert len(clip.model.text_model.embeddings.token_embedding.weight) == 49408


def test_an_id_outside_the_used_ones_is_an_error(clip):
    with compact_vocabulary(clip.model, clip.tokenize(PROMPTS)), pytest.raises(IndexError):
        clip.encode_text(clip.tokenize(["a cat"]))
