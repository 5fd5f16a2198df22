"""The one rule between our paths and the official names; every model's names stand in the golden
files and in test_interop.py."""
from hypothesis import given, strategies as st
import numpy as np
import pytest

from vit_efficient.weights import names

WORDS = st.sampled_from(["blocks", "patch_embed", "norm1", "fc2", "mlps", "relation_mlp"])


@given(st.lists(st.tuples(WORDS, st.lists(st.integers(0, 20), max_size=3)), min_size=1, max_size=4))
def test_a_number_after_a_bar_is_a_place_in_a_list(parts):
    path = tuple("_".join([word, *map(str, places)]) for word, places in parts)
    official = ".".join(".".join([word, *map(str, places)]) for word, places in parts)
    assert names.official((*path, "kernel")) == names.official((*path, "scale")) == (
        f"{official}.weight")
    assert names.official((*path, "bias")) == f"{official}.bias"


def test_own_arrays_keep_their_names():
    assert names.official(("absolute_pos_embed",)) == "absolute_pos_embed"
    assert names.official(("head_2", "kernel")) == "head.2.weight"
    assert names.official(("layers_0", "mlps_0_1", "fc1", "bias")) == "layers.0.mlps.0.1.fc1.bias"


@pytest.mark.parametrize("last, shape, official", [
    ("kernel", (3, 5), (5, 3)), ("kernel", (2, 3, 4, 5), (5, 4, 2, 3)), ("bias", (5,), (5,)),
    ("scale", (5,), (5,)), ("pos_embed", (1, 4, 5), (1, 4, 5))])
def test_layouts_turn_and_turn_back(last, shape, official):
    path = ("fc1", last) if last != "pos_embed" else (last,)
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    turned = names.to_official(path, array)
    assert turned.shape == official
    np.testing.assert_array_equal(names.from_official(path, turned), array)


def test_a_file_has_modules_as_declared_lists_by_number_own_arrays_first():
    order = ("cls_token", "patch_embed", "proj", "blocks", "norm1", "norm", "head")
    expected = ["cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias",
                "blocks.2.norm1.weight", "blocks.2.norm1.bias", "blocks.10.norm1.weight",
                "norm.weight", "head.bias", "head.0.weight"]
    assert sorted(reversed(expected), key=lambda name: names.sort_key(name, order)) == expected
