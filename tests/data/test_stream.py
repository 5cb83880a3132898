from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_more.data.samplers import make_order
from clip_more.data.stream import PhotoStream

NAMES = ("instance", "class_balanced", "progressive", "class_aware")


def order_of(length, name="instance"):
    rows = np.arange(length)
    return make_order(name, (rows, rows % 3), length, seed=7, epochs=4)


def steps_of(order, split, **span):
    """Each step's (position, index) pairs: micro-batch by micro-batch, the processes in turn."""
    processes, batch_size, accumulation = split
    streams = [
        PhotoStream(order, batch_size, accumulation=accumulation, processes=processes, rank=rank, **span)
        for rank in range(processes)
    ]
    rounds = list(zip(*streams, strict=True))
    assert {len(stream) for stream in streams} == {len(rounds)}
    flat = [[pair for batch in round_ for pair in batch] for round_ in rounds]
    return [list(chain(*flat[m : m + accumulation])) for m in range(0, len(flat), accumulation)]


@pytest.mark.parametrize("name", NAMES)
def test_steps_have_the_same_photos_for_every_split_of_the_same_product(name):
    order = order_of(31, name)
    whole = steps_of(order, (1, 12, 1), steps=9)
    for split in [(1, 1, 12), (2, 6, 1), (2, 3, 2), (3, 2, 2), (4, 3, 1), (12, 1, 1), (1, 4, 3)]:
        assert steps_of(order, split, steps=9) == whole


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    processes=st.integers(1, 4),
    batch_size=st.integers(1, 9),
    accumulation=st.integers(1, 3),
    start=st.integers(0, 5),
    more=st.integers(0, 5),
    name=st.sampled_from(NAMES),
)
def test_the_stream_is_one_epoch_after_another(length, processes, batch_size, accumulation, start, more, name):
    order = order_of(length, name)
    a_step = processes * batch_size * accumulation
    found = steps_of(order, (processes, batch_size, accumulation), start=start, steps=start + more)
    positions = range(start * a_step, (start + more) * a_step)
    assert [len(step) for step in found] == [a_step] * more
    assert list(chain(*found)) == [(p, order.order(p // length)[p % length]) for p in positions]


@pytest.mark.parametrize("split", [(1, 5, 1), (2, 3, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_a_start_at_any_step_is_the_tail_of_the_whole_run(split, name):
    order = order_of(17, name)
    whole = steps_of(order, split, steps=10)
    for start in range(11):
        assert steps_of(order_of(17, name), split, start=start, steps=10) == whole[start:]


def test_each_epoch_of_instance_shows_each_photo_once():
    pairs = list(chain(*steps_of(order_of(10), (2, 3, 1), steps=5)))
    assert [position for position, _ in pairs] == list(range(30))
    epochs = [[index for _, index in pairs[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_indices_are_plain_numbers():
    batch = next(iter(PhotoStream(order_of(5), 3, steps=1)))
    assert {type(value) for pair in batch for value in pair} == {int}


def test_an_epochs_order_is_made_once_and_only_where_it_is_needed():
    class Counted:
        length = 7

        def __init__(self):
            self.asked = []

        def order(self, epoch):
            self.asked.append(epoch)
            return np.arange(7)

    counted = Counted()
    list(PhotoStream(counted, 3, start=5, steps=12))
    assert counted.asked == [2, 3, 4, 5]  # positions 15 to 35


def test_it_can_be_read_again():
    stream = PhotoStream(order_of(7), 3, steps=5)
    assert list(stream) == list(stream)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ({"batch_size": 0}, "batch_size, accumulation and processes must be 1 or more"),
        ({"processes": 2, "rank": 2}, "process 2 of 2, steps 0 to 4: there is no such part"),
        ({"start": 5}, "process 0 of 1, steps 5 to 4: there is no such part"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, text):
    with pytest.raises(ValueError, match=text):
        PhotoStream(order_of(5), **{"batch_size": 2, "steps": 4, **numbers})
