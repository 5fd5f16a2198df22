"""Masks of official checkpoints: what does not fit is refused, with every problem at once."""
import numpy as np
import pytest

from vit_efficient.papers.svite.masks import active_heads, apply, decode

ONES = np.ones((4, 3), np.float32)
WEIGHTS = {"head.weight": ONES * [1, 1, 0], "head.bias": np.ones(4)}
EMPTY = {"mask": {}, "other_mask": {}, "atten_mask": {}, "fired_mask": {}}


@pytest.mark.parametrize("key", ["module.head.weight_150", "head.weight_150", "head.weight_mask"])
def test_names_lose_prefix_and_number(key):
    masks = decode(EMPTY | {"mask": {key: ONES * [1, 1, 0]}}, WEIGHTS)
    assert list(masks) == ["head.weight"] and masks["head.weight"].dtype == bool
    assert apply(WEIGHTS, {"head.weight": ~masks["head.weight"]})["head.weight"].sum() == 0


@pytest.mark.parametrize("key, mask, text", [
    ("head_150", ONES, "there is no weight head"),
    ("head.weight_150", ONES[1:], r"shape \(3, 3\), the weight has \(4, 3\)"),
    ("head.weight_150", ONES / 2, "other values than 0 and 1"),
    ("head.weight_150", ONES * [0, 1, 1], "4 weights under a mask of 0 are not 0"),
])
def test_refused(key, mask, text):
    with pytest.raises(ValueError, match=text):
        decode(EMPTY | {"mask": {key: mask}}, WEIGHTS)


def test_two_masks_of_a_weight_are_refused():
    with pytest.raises(ValueError, match="a second mask of head.weight"):
        decode(EMPTY | {"mask": {"head.weight_1": ONES}, "atten_mask": {"head.weight_mask": ONES}},
               WEIGHTS)


def test_heads_are_whole():
    mask = np.zeros((3, 4, 2, 8), bool)
    mask[:, [0, 3]] = True
    assert active_heads(mask.reshape(24, 8), 2) == [0, 3]
    mask[1, 1] = True
    with pytest.raises(ValueError, match=r"a part of the heads \[1\]"):
        active_heads(mask.reshape(24, 8), 2)
