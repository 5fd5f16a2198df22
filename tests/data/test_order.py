"""The order is a permutation, looks random, never changes, and does not depend on who asks."""
from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from vit_efficient.data import order
from vit_efficient.data.batches import Share
from vit_efficient.seams.phases import Length, Position, plain_position

seeds, epochs = st.integers(0, 2 ** 32 - 1), st.integers(0, 1000)


@given(length=st.integers(1, 3000), seed=seeds, epoch=epochs)
@settings(deadline=None, max_examples=60)
def test_every_example_once_an_epoch(length, seed, epoch):
    assert sorted(order.shuffled(np.arange(length), length, seed, epoch)) == list(range(length))


@given(length=st.integers(1, 2 ** 40), seed=seeds, epoch=epochs, data=st.data())
@settings(deadline=None, max_examples=60)
def test_random_access(length, seed, epoch, data):
    places = np.array(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=20)))
    whole = order.shuffled(places, length, seed, epoch)
    assert [int(order.shuffled(place, length, seed, epoch)) for place in places] == whole.tolist()
    assert ((0 <= whole) & (whole < length)).all() and len(set(whole)) == len(set(places))


def test_the_order_never_changes():
    # Written down once: a checkpoint resumed with another release must meet the same images.
    first = order.shuffled(np.arange(6), 1000, seed=3, epoch=5)
    assert first.tolist() == [32, 753, 120, 923, 188, 430]
    np.testing.assert_array_equal(order.generator(3, 5, 7, 1).random(3), [
        0.21610914058006125, 0.45311710603709143, 0.8991618483240555])


@pytest.mark.parametrize("length", [1438, 50_000, 65_536, 70_000])
def test_neighbours_are_independent(length):
    x = order.shuffled(np.arange(length), length, 0, 0)
    steps = np.histogram((x[1:] - x[:-1]) % length, 20, (0, length))[0]
    expected = (length - 1) / 20
    assert ((steps - expected) ** 2 / expected).sum() < 44  # chi-squared, 19 degrees: 0.1 % level
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 4 / length ** 0.5


@pytest.mark.parametrize("over", ["seed", "epoch"])
def test_every_order_is_equally_likely(over):
    drawn = [tuple(order.shuffled(np.arange(4), 4, **({"seed": 0, "epoch": 0} | {over: i})))
             for i in range(2400)]
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert len(counts) == 24 and ((counts - 100) ** 2 / 100).sum() < 50    # 23 degrees: 0.1 % level


def test_seed_and_epoch_are_not_added_up():
    a, b = (order.shuffled(np.arange(1000), 1000, *pair) for pair in [(0, 1), (1, 0)])
    assert (a == b).sum() < 10


@pytest.mark.parametrize("place", [-1, 10])
def test_places_outside_are_refused(place):
    with pytest.raises(IndexError, match="10 examples"):
        order.shuffled(np.array([0, place]), 10, 0, 0)


@given(batch_size=st.integers(1, 40), crops=st.integers(1, 6), first=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_crop_major(batch_size, crops, first):
    position, length = Position(2, first, crops), 100
    expected, distinct = [], 0
    while distinct * crops < batch_size:  # whole examples until the batch is full
        distinct += 1
    for copy in range(crops):
        for place in range(first, first + distinct):
            expected.append((int(order.shuffled(np.array(place), length, 9, 2)), copy))
    count = order.slot_count(batch_size, crops)
    examples, copies = order.examples_at(np.arange(count), position, batch_size, length, 9)
    assert list(zip(examples.tolist(), copies.tolist())) == expected


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_repeats_are_those_of_deits_sampler(repeats, processes):
    """Its list, dealt to the processes in turns, each of which cuts its share into batches."""
    length, batch_size, position = 100, 8, plain_position(Length(100, 8, 2, repeats))
    entries = [(int(example), copy) for example in order.shuffled(np.arange(length), length, 5, 1)
               for copy in range(repeats)]
    dealt = [entries[rank:length:processes] for rank in range(processes)]
    seen, each = [], batch_size // processes
    for step in range(12):
        expected = [pair for rank in dealt for pair in rank[step * each:(step + 1) * each]]
        examples, copies = order.examples_at(np.arange(8), position(12 + step), 8, length, 5)
        ours = list(zip(examples.tolist(), copies.tolist()))
        assert sorted(ours) == sorted(expected)
        seen += ours
    assert len(set(seen)) == 96 and len({example for example, _ in seen}) == 96 // repeats


def test_repeats_of_crops_are_told_apart():
    examples, copies = order.examples_at(np.arange(24), Position(0, 0, 2, 3), 24, 50, 0)
    assert len(set(zip(examples.tolist(), copies.tolist()))) == 24
    assert len(set(examples.tolist())) == 4 and set(copies.tolist()) == set(range(6))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_own_neighbouring_slots(processes):
    position = Position(1, 16, 2)
    whole = order.examples_at(np.arange(24), position, 24, 500, 0)
    parts = [order.examples_at(Share((p,), processes).rows(24), position, 24, 500, 0)
             for p in range(processes)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_every_image_has_its_own_random_numbers():
    keys = [(s, e, x, c) for s in (0, 1) for e in (0, 1, 2) for x in (0, 1, 2, 3) for c in (0, 1)]
    drawn = np.array([order.generator(*key).random(100) for key in keys])
    assert len(np.unique(drawn)) == drawn.size                      # no stream overlaps another one
    np.testing.assert_array_equal(drawn[5], order.generator(*keys[5]).random(100))
