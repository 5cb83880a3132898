from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import save_file

from clip_more.analysis.forgetting import forgetting_by_group, forgetting_scores, read_correct
from clip_more.data.profile import ClassProfile

TABLE = np.array([[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1], [0, 0, 1, 1]], dtype=np.uint8)


def test_transitions_from_correct_to_wrong_are_counted_and_never_correct_is_all_epochs():
    assert forgetting_scores(TABLE).tolist() == [2, 4, 0, 0]


def test_scores_are_those_of_a_loop():
    table = np.random.default_rng(0).integers(0, 2, size=(9, 50))
    expected = [sum(a == 1 and b == 0 for a, b in pairwise(photo)) if photo.any() else 9 for photo in table.T]
    assert forgetting_scores(table).tolist() == expected


def test_groups_are_means_over_classes_of_means_over_their_photos():
    profile = ClassProfile(("a", "b", "c"), (200, 150, 3))
    targets = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 1]], dtype=bool)
    found = forgetting_by_group(TABLE, targets, profile)
    assert found["by_class"].tolist() == [3, 0, 1]
    assert found["score"] == {"total": 1.5, "head": 1.5, "medium": None, "tail": 1}
    assert found["never"] == {"total": 0.25, "head": 0.25, "medium": None, "tail": 0}
    assert (found["epochs"], found["photos"]) == (4, 4)


def test_table_of_other_photos_or_other_values_is_refused():
    profile = ClassProfile(("a",), (200,))
    with pytest.raises(ValueError, match="has 4 photos and the train part 5: it belongs to other data"):
        forgetting_by_group(TABLE, np.ones((5, 1), dtype=bool), profile)
    with pytest.raises(ValueError, match="other values than 0 and 1"):
        forgetting_scores(2 * TABLE)
    with pytest.raises(ValueError, match=r"\(epochs, photos\) is needed"):
        forgetting_scores(TABLE[:0])


def test_epochs_are_read_in_the_order_of_their_numbers(tmp_path):
    for step, row in zip((5, 10, 100, 20), TABLE[[0, 1, 3, 2]], strict=True):
        save_file({"correct": row}, tmp_path / f"step_{step}.safetensors")
    (tmp_path / ".step_7.123.safetensors").write_bytes(b"half")
    np.testing.assert_array_equal(read_correct(tmp_path), TABLE)
    assert read_correct(tmp_path / "nowhere") is None


def test_damaged_and_differing_epochs_are_named(tmp_path):
    save_file({"correct": TABLE[0]}, tmp_path / "step_1.safetensors")
    save_file({"correct": TABLE[0, :3]}, tmp_path / "step_2.safetensors")
    with pytest.raises(ValueError, match=r"step_2\.safetensors holds \(3,\)"):
        read_correct(tmp_path)
    (tmp_path / "step_2.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"step_2\.safetensors holds no tensor `correct`"):
        read_correct(tmp_path)
