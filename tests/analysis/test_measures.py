import json

import numpy as np
import pytest

from clip_more.analysis import measures
from clip_more.analysis.measures import by_group, feature_measures, layer_measures, mechanism_measures, plain
from clip_more.analysis.mechanism import mechanism
from clip_more.analysis.page import draw_page, mechanism_sentences
from clip_more.analysis.tail_layers import LayerShare
from clip_more.data.profile import ClassProfile

PROFILE = ClassProfile(("dog", "cat", "a name that is much too long for a panel", "owl"), (30, 400, 5, 90))
FINDING = {"sign": "nothing_wrong", "text": "Nothing wrong was seen.", "keys": []}


@pytest.fixture
def photos():
    random = np.random.default_rng(0)
    targets = random.random((80, 4)) < (0.4, 0.6, 0.2, 0.3)
    return random.normal(size=(80, 6)) + targets @ random.normal(size=(4, 6)), targets


def test_measures_are_strict_json_with_every_figure(photos):
    features, targets = photos
    found = feature_measures(features, targets, PROFILE, weight=np.ones((4, 6)), bias=np.arange(4.0))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["photos"] == 80
    assert found["collapse"]["photos"] == (targets.sum(axis=1) == 1).sum()
    norms = [np.linalg.norm(features[targets[:, c]].mean(axis=0)) for c in range(4)]
    np.testing.assert_allclose(found["feature_norm"]["by_class"], norms)
    assert "all_classes" not in found["fisher"]
    assert found["classifier_norm"]["spearman"] is None  # rows of one length


def test_lengths_are_of_the_raw_features_and_all_else_of_what_the_head_reads(photos):
    features, targets = photos
    found = feature_measures(features, targets, PROFILE, inputs=3 * features)
    whole = feature_measures(features, targets, PROFILE)
    assert found["feature_norm"] == whole["feature_norm"]
    assert found["fisher"]["one_vs_rest"]["ratio"] == pytest.approx(whole["fisher"]["one_vs_rest"]["ratio"])
    assert "classifier_norm" not in found


def test_single_label_photos_have_fisher_over_all_classes_too(photos):
    features, _ = photos
    targets = (np.arange(80) % 4)[:, None] == np.arange(4)
    assert feature_measures(features, targets, PROFILE, single_label=True)["fisher"]["all_classes"]["ratio"] > 0


def test_heatmap_begins_with_the_most_common_class_and_is_shrunk_by_blocks(photos, monkeypatch):
    features, targets = photos
    order = [1, 3, 0, 2]
    found = np.array(feature_measures(features, targets, PROFILE)["cosines"]["heatmap"])
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[targets[:, c]].mean(axis=0) for c in range(4)])
    both = targets.T.astype(int) @ targets
    pairs = np.outer(both.diagonal(), both.diagonal())
    expected = ((means @ means.T * pairs - both) / (pairs - both))[np.ix_(order, order)]
    np.testing.assert_allclose(found, expected, atol=5e-5)
    monkeypatch.setattr(measures, "MOST_CELLS", 2)
    shrunk = np.array(feature_measures(features, targets, PROFILE)["cosines"]["heatmap"])
    np.testing.assert_allclose(shrunk, expected.reshape(2, 2, 2, 2).mean(axis=(1, 3)), atol=1e-4)


def test_groups_are_means_of_what_is_there():
    assert by_group(np.array([1.0, 3.0, np.nan, 5.0]), PROFILE) == {"head": 3, "medium": 3, "tail": None}
    assert plain({"a": np.array([1.0, np.nan]), "b": (np.int64(2), float("inf"))}) == {"a": [1, None], "b": [2, None]}


def found_of(photos, **more):
    features, targets = photos
    model = feature_measures(features, targets, PROFILE, weight=np.eye(4, 6) * 3, bias=np.arange(4.0))
    model |= {"inputs": "raw", "row_norms_matter": False}
    return {
        "run": "a", "split": "train", "tuning": "full", "profile": PROFILE.to_dict(), "models": {"merged": model},
        "diagnosis": [FINDING],
    } | more  # fmt: skip


@pytest.fixture
def titles(monkeypatch, tmp_path):
    """A function: titles of the panels of a page that was drawn."""
    pytest.importorskip("matplotlib")
    from clip_more.analysis import page

    def draw(found):
        figures = []
        monkeypatch.setattr(page, "_save", lambda figure, path: figures.append(figure))
        draw_page(found, tmp_path / "page.png")
        return [ax.get_title(loc="left") for ax in figures[0].axes if ax.get_title(loc="left")], figures[0]

    return draw


def test_page_shows_what_there_is_data_for_alone(titles, photos):
    shown, figure = titles(found_of(photos))
    assert shown == [
        "Cosines between classes", "Fisher's ratio, each class against the rest", "Length of the mean feature",
        "Bias of the classifier", "Neural collapse",
    ]  # fmt: skip
    assert "Diagnosis: Nothing wrong seen" in [text.get_text() for text in figure.texts]


def test_page_of_a_run_with_a_tail_has_its_panels_and_its_test_in_words(titles, photos):
    _, targets = photos
    full = (targets + np.random.default_rng(1).normal(size=targets.shape)).astype(np.float32)
    test = mechanism(full, full * 0.9, targets, PROFILE, draws=10)
    found = found_of(photos)
    found["models"]["general"] = found["models"]["merged"]
    found["models"]["merged"] |= {"row_norms_matter": True}
    found["mechanism"] = mechanism_measures(*test, single_label=False)
    found["tail_layers"] = layer_measures([LayerShare(f"layer1.{n}.conv1", 3, 0.1 * n, 2.0) for n in range(3)])
    scores = {"total": 1.0, "head": 0.5, "medium": None, "tail": 2.0}
    found["forgetting"] = {"epochs": 4, "photos": 80, "score": scores, "never": scores | {"tail": 0.1}}
    shown, figure = titles(json.loads(json.dumps(found)))
    assert shown[3:] == [
        "Length of the classifier's rows", "Neural collapse", "Discrepancy by class", "AP lost when B A is removed",
        "Forgetting score", "Tail share by layer",
    ]  # fmt: skip
    sentences = mechanism_sentences(found["mechanism"])
    assert len(sentences) == 4
    written = " ".join(text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in figure.texts)
    assert sentences[-1] in written


@pytest.mark.parametrize(
    ("moved", "said"), [(False, "The mechanism is "), (True, "No verdict: by discrepancy_gradient L_MORE moved W_g")]
)
def test_a_general_part_that_l_more_moved_gets_no_verdict(photos, moved, said):
    _, targets = photos
    full = (targets + np.random.default_rng(1).normal(size=targets.shape)).astype(np.float32)
    test = mechanism(full, full * 0.9, targets, PROFILE, draws=10)
    measures = mechanism_measures(*test, single_label=False, moved=moved)
    assert (measures["verdict"] is None) == moved
    (last,) = [text for text in mechanism_sentences(measures) if "B A moves logits by" in text]
    assert last.startswith(said)


def test_page_is_a_picture_also_of_a_hundred_classes_with_long_names(tmp_path):
    pytest.importorskip("matplotlib")
    random = np.random.default_rng(0)
    profile = ClassProfile(tuple(f"a class with a rather long name, {n}" for n in range(100)), tuple(range(1, 201, 2)))
    targets = np.arange(300)[:, None] % 99 == np.arange(100)  # the last class has no photo
    model = feature_measures(random.normal(size=(300, 5)), targets, profile, single_label=True)
    found = {
        "run": "a", "split": "test", "tuning": "full", "profile": profile.to_dict(),
        "models": {"merged": model | {"row_norms_matter": True}}, "diagnosis": [FINDING],
    }  # fmt: skip
    draw_page(plain(found), tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
