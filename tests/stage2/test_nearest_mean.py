import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid

from clip_more.stage2.choose import Stage
from clip_more.stage2.nearest_mean import class_means, ncm
from clip_more.stage2.options import Stage2Options
from tests.stage2.gaussians import COUNTS, gaussian_stage, photos, several_labels, several_labels_head


@pytest.mark.parametrize("inputs", ["un", "l2n", "cl2n"])
def test_predictions_are_those_of_scikit_learns_nearest_centroid(inputs):
    stage = gaussian_stage()
    head, _ = ncm(stage, Stage2Options(inputs=inputs, metric="euclidean"))
    centre = stage.train.features.double().mean(dim=0) if inputs == "cl2n" else 0.0

    def x(data):
        return (data.features if inputs == "un" else F.normalize(data.features.double() - centre, dim=1)).numpy()

    peer = NearestCentroid().fit(x(stage.train), stage.train.targets.numpy().argmax(axis=1))
    assert np.allclose(peer.centroids_, head.weight, atol=1e-6)
    assert np.array_equal(peer.predict(x(stage.val)), head(stage.val.features).argmax(dim=1))


@pytest.mark.parametrize("inputs", ["un", "l2n", "cl2n"])
def test_cosine_is_taken_to_means_of_unit_length(inputs):
    stage = gaussian_stage()
    head, _ = ncm(stage, Stage2Options(inputs=inputs, metric="cosine"))
    x = stage.val.features
    if inputs == "cl2n":
        x = x - stage.train.features.mean(dim=0)
    means, _ = class_means(stage.train, {"un": "raw", "l2n": "unit", "cl2n": "centred"}[inputs])
    expected = F.cosine_similarity(x[:, None], means[None], dim=-1)
    assert torch.allclose(head(stage.val.features), expected, atol=1e-5)


def test_the_variant_is_chosen_on_validation_among_six():
    stage = gaussian_stage()
    _, selection = ncm(stage, Stage2Options())
    tried = [tuple(candidate["values"].values()) for candidate in selection.candidates]
    assert tried == [(a, b) for a in ("un", "l2n", "cl2n") for b in ("euclidean", "cosine")]
    best = max(selection.candidates, key=lambda candidate: candidate["scores"]["total"])
    assert selection.chosen == best["values"]
    assert not selection.keeps_ap
    assert len(ncm(stage, Stage2Options(inputs="l2n"))[1].candidates) == 2


def test_means_of_several_labels_leave_out_what_is_not_known():
    data = several_labels(5000)  # more photos than are read at a time
    means, centre = class_means(data, "raw")
    for c in range(5):
        own = data.targets[:, c] & data.known[:, c]
        assert torch.allclose(means[c], data.features[own].mean(dim=0), atol=1e-5)
    assert centre is None
    stage = Stage(several_labels_head(), data, data, single_label=False)
    assert ncm(stage, Stage2Options())[1].measure == "macro mAP"


def test_a_class_without_a_photo_gets_the_mean_of_all():
    data = photos((*COUNTS[:3], 0), 0)
    assert torch.allclose(class_means(data, "raw")[0][3], data.features.mean(dim=0), atol=1e-6)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="--inputs is 'raw'; choose one of un, l2n, cl2n"):
        ncm(gaussian_stage(), Stage2Options(inputs="raw"))
