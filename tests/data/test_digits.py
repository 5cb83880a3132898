import numpy as np
import pytest
from sklearn.datasets import load_digits

from clip_more.data.digits import DIGIT_CLASSES, PARTS, read_digits, source_digits
from clip_more.data.form import class_names, multi_hot
from clip_more.data.load import read_data
from clip_more.data.photos import undecoded
from clip_more.data.profile import ClassProfile
from clip_more.recipe import from_dict


@pytest.fixture(scope="module")
def train():
    return read_digits("train")


@pytest.fixture(scope="module")
def test():
    return read_digits("test")


def pixels(dataset):
    return [row["image"]["bytes"] for row in undecoded(dataset)]


def test_the_ten_classes_are_words_in_counting_order(test):
    assert class_names(test) == list(DIGIT_CLASSES)
    assert class_names(test)[3] == "three"


def test_the_same_seed_draws_the_same_scenes_and_another_seed_draws_others():
    first, again, other = (read_digits("test", scenes=12, seed=seed) for seed in (3, 3, 4))
    assert pixels(first) == pixels(again)
    assert first["labels"][:] == again["labels"][:]
    assert pixels(first) != pixels(other)


def test_source_digits_of_the_splits_are_disjoint_and_every_class_is_in_each():
    rows = {split: np.concatenate(source_digits(split)[1]) for split in PARTS}
    together = np.concatenate(list(rows.values()))
    assert len(np.unique(together)) == len(together) == 1797
    classes = load_digits().target
    for split in PARTS:
        for c, members in enumerate(source_digits(split)[1]):
            assert len(members) > 50
            assert (classes[members] == c).all()


def test_no_source_digit_has_a_twin_in_another_split():
    pictures = source_digits("train")[0]
    seen = [{pictures[row].tobytes() for rows in source_digits(split)[1] for row in rows} for split in PARTS]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_a_scene_is_drawn_only_from_the_digits_of_its_split(monkeypatch):
    """Blank the digits of the test split: scenes of test lose their ink, scenes of train do not change."""
    pictures, rows = source_digits("test")
    blank = pictures.copy()
    blank[np.concatenate(rows)] = 0
    before = pixels(read_digits("train", largest=50, imbalance=50))
    monkeypatch.setattr("clip_more.data.digits._load_digits", lambda: (blank, load_digits().target))
    assert pixels(read_digits("train", largest=50, imbalance=50)) == before
    spread = [np.asarray(row["image"]).mean(axis=2).std() for row in read_digits("test", scenes=8)]
    monkeypatch.undo()
    inked = [np.asarray(row["image"]).mean(axis=2).std() for row in read_digits("test", scenes=8)]
    assert max(spread) < 25
    assert np.mean(inked) > 1.5 * np.mean(spread)


def test_train_counts_fall_geometrically_by_the_imbalance_asked_for(train):
    assert multi_hot(train)[0].sum(axis=0).tolist() == [700, 420, 252, 151, 90, 54, 32, 19, 12, 7]
    assert multi_hot(read_digits("train", largest=200, imbalance=50))[0].sum(axis=0)[[0, 9]].tolist() == [200, 4]


def test_default_train_is_imbalanced_by_50_and_more_and_has_head_medium_and_tail(train):
    profile = ClassProfile.from_dataset(train, head_min=100, tail_max=20)
    assert max(profile.counts) / min(profile.counts) >= 50
    assert [len(profile.indices(group)) for group in ("head", "medium", "tail")] == [4, 3, 3]


def test_most_tail_scenes_also_show_a_head_class_and_some_do_not(train):
    targets = multi_hot(train)[0]
    with_head = targets[targets[:, 7:].any(axis=1)][:, :4].any(axis=1)
    assert 0.5 < with_head.mean() < 1


def test_balanced_train_fits_without_a_class_twice_in_a_scene():
    targets = multi_hot(read_digits("train", largest=40, imbalance=1))[0]
    assert targets.sum(axis=0).tolist() == [40] * 10


def test_test_is_balanced_with_200_positives_and_more_a_class(test):
    counts = multi_hot(test)[0].sum(axis=0)
    assert counts.min() >= 200
    assert counts.max() / counts.min() < 1.1


@pytest.mark.parametrize("split", ["train", "test"])
def test_scenes_hold_one_to_four_digits(split, train, test):
    sizes = multi_hot({"train": train, "test": test}[split])[0].sum(axis=1)
    assert set(sizes.tolist()) == {1, 2, 3, 4}


def test_images_are_rgb_of_the_size_asked_for_and_ids_name_the_split():
    scenes = read_digits("pretrain", scenes=3, size=48)
    assert [row["image"].size for row in scenes] == [(48, 48)] * 3
    assert {row["image"].mode for row in scenes} == {"RGB"}
    assert scenes["image_id"][:] == ["pretrain_00000", "pretrain_00001", "pretrain_00002"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"split": "dev"}, r"no split 'dev'; choose one of pretrain, train, test, val"),
        ({"split": "train", "imbalance": 0.5}, r"imbalance is 0\.5; it must lie in 1\.\.700"),
        ({"split": "train", "imbalance": 5000}, r"imbalance is 5000; .* rarest class"),
        ({"split": "test", "size": 33}, r"size is 33; .* even side of 16"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, text):
    with pytest.raises(ValueError, match=text):
        read_digits(**arguments)


def test_digits_lt_shows_one_digit_a_scene_exponentially_rarer():
    labels, _ = multi_hot(read_digits("train", imbalance=50, most=1))
    assert set(labels.sum(1)) == {1}
    assert labels.sum(0).tolist() == [round(700 * 50 ** (-c / 9)) for c in range(10)]
    assert len(set(labels[:40].argmax(1))) > 3  # shuffled
    test, _ = multi_hot(read_digits("test", most=1))
    assert (len(test), set(test.sum(1))) == (1000, {1})
    assert test.sum(0).min() >= 95


def test_scenes_have_one_digit_or_up_to_four():
    with pytest.raises(ValueError, match="most is 2; scenes have 1 digit, or up to 4"):
        read_digits("test", most=2)


def test_val_has_the_look_of_test_and_the_digits_of_pretrain(monkeypatch, test):
    assert all((a == b).all() for a, b in zip(source_digits("val")[1], source_digits("pretrain")[1], strict=True))
    val = read_digits("val")
    assert len(val) == len(test) == 1000
    assert not set(pixels(val)) & set(pixels(test))
    assert np.ptp(multi_hot(val)[0].sum(axis=0)) <= 3


def test_shuffled_classes_keep_the_counts_and_another_seed_has_another_order():
    counts = [700, 420, 252, 151, 90, 54, 32, 19, 12, 7]
    orders = []
    for seed in (0, 1):
        drawn = multi_hot(read_digits("train", seed=seed, shuffle=True))[0].sum(axis=0)
        assert sorted(drawn.tolist(), reverse=True) == counts
        orders.append(drawn.tolist())
    assert orders[0] != orders[1]
    assert orders[0] != counts


def test_another_cut_draws_train_and_test_anew_and_leaves_pretrain_alone():
    kept = {split: np.concatenate(source_digits(split)[1]) for split in PARTS}
    drawn = {split: np.concatenate(source_digits(split, cut=1)[1]) for split in PARTS}
    assert (drawn["pretrain"] == kept["pretrain"]).all()
    assert not set(drawn["train"]) & set(drawn["test"])
    assert set(drawn["train"]) | set(drawn["test"]) == set(kept["train"]) | set(kept["test"])
    assert 0.3 < len(set(drawn["test"]) & set(kept["test"])) / len(kept["test"]) < 0.7
    assert set(drawn["test"]) != set(np.concatenate(source_digits("test", cut=2)[1]))


def test_a_recipe_draws_classes_digits_and_the_judged_split_by_data_seed():
    keys = {"dataset": "digits_mlt", "data_seed": 2, "shuffle_classes": True, "shuffle_digits": True}
    data = read_data(from_dict({**keys, "test_split": "val"}, "test"))
    assert pixels(data.train) == pixels(read_digits("train", seed=2, shuffle=True, cut=2))
    assert pixels(data.test) == pixels(read_digits("val", seed=2, cut=2))
