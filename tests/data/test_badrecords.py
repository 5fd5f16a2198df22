"""Bad records: what stands in for them is the same everywhere, and there is a budget."""
import numpy as np
import pytest

from vit_efficient.data.augment import make_augment
from vit_efficient.data.batches import EvaluationBatches, Share, TrainBatches
from vit_efficient.data.images import BadImage
from vit_efficient.data.sources import Arrays
from vit_efficient.phases import Length, constant

RNG = np.random.RandomState(0)
IMAGES, LABELS = RNG.randint(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40)
TRAIN = dict(crop="resize", flip=0.0)


class Spoilt(Arrays):
    """Examples whose numbers are in `bad` hold no image."""

    def __init__(self, bad, allowed):
        super().__init__(IMAGES, LABELS, tuple(map(str, LABELS)), "spoilt")
        self.bad, self.max_bad_records = set(bad), allowed

    def __getitem__(self, i):
        if i in self.bad:
            raise BadImage(f"example {i}: no readable image")
        return super().__getitem__(i)


def train(source, share=Share()):
    return TrainBatches(source, make_augment(**TRAIN).train, constant(Length(40, 8, 3), None), 8, 8,
                        share, 3, 0)


def evaluation(source):
    return EvaluationBatches(source, make_augment(**TRAIN, eval_crop=1.0).evaluate, 8, 16, Share())


def test_the_next_good_example_stands_in_with_its_label():
    whole, spoilt = train(Spoilt((), 0)), train(Spoilt((5, 6, 39), 3))
    stands_in = np.arange(40)
    stands_in[[5, 6, 39]] = 7, 7, 0
    for step in range(15):
        expected = stands_in[whole[step]["label"]]
        batch = spoilt[step]
        np.testing.assert_array_equal(batch["label"], expected)
        np.testing.assert_array_equal(batch["image"], IMAGES[expected])
        assert batch["weight"].all()


@pytest.mark.parametrize("count", [2, 4])
def test_hosts_agree_whatever_they_have_met_before(count):
    source = (5, 6, 39)
    whole = train(Spoilt(source, 3))
    for step in (11, 2, 14, 0):                       # each host has its own history of bad records
        parts = [train(Spoilt(source, 3), Share((i,), count))[step] for i in range(count)]
        for name in ("image", "label", "weight"):
            joined = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(joined, whole[step][name])


def test_the_budget_counts_distinct_records(caplog):
    allowed, refused = train(Spoilt((5, 6), 2)), train(Spoilt((5, 6), 1))
    for step in range(15):
        allowed[step]                                 # three passes meet each of them three times
    assert sorted(record.getMessage().partition(":")[0] for record in caplog.records) == [
        "example 5", "example 6"]
    with pytest.raises(ValueError, match="example [56]: no readable image; data.max_bad_records = "
                                         "1: repair or remove"):
        for step in range(15):
            refused[step]


def test_by_default_none_is_allowed():
    with pytest.raises(ValueError, match="data.max_bad_records = 0"):
        for step in range(5):
            train(Spoilt((5,), 0))[step]


def test_a_source_without_a_good_record_is_an_error():
    with pytest.raises(ValueError, match="spoilt: holds no good record"):
        train(Spoilt(range(40), 40))[0]


def test_evaluation_leaves_bad_records_out():
    batches = evaluation(Spoilt((5, 39), 2))
    weight = np.concatenate([batches[i]["weight"] for i in range(3)])
    image = np.concatenate([batches[i]["image"] for i in range(3)])
    good = ~np.isin(np.arange(48), [5, 39, *range(40, 48)])
    np.testing.assert_array_equal(weight, good)
    np.testing.assert_array_equal(image[good], IMAGES[good[:40]])
    assert not image[~good].any()
    with pytest.raises(ValueError, match="data.max_bad_records = 1"):
        refused = evaluation(Spoilt((5, 39), 1))
        [refused[i] for i in range(3)]
