"""Densities of layers: closed forms and refusals; the official numbers are golden."""
from math import prod

import pytest

from vit_efficient.papers.svite.densities import densities, maskable

SHAPES = {"proj.weight": (8, 8), "fc1.weight": (64, 8), "conv.weight": (8, 3, 4, 4)}


@pytest.mark.parametrize("density", [0.05, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("mode", ["fixed_ERK", "uniform"])
def test_all_layers_together_have_the_density(mode, density):
    found = densities(mode, SHAPES, density)
    assert max(found.of.values()) <= 1
    assert found.overall(SHAPES) == pytest.approx(density, rel=1e-12)


def test_erk_is_proportional_to_the_axes_and_fills_small_layers_first():
    found = densities("fixed_ERK", SHAPES, 0.2)
    ratios = {found.of[name] * prod(shape) / sum(shape) for name, shape in SHAPES.items()}
    assert max(ratios) == pytest.approx(min(ratios)) == pytest.approx(found.epsilon)
    assert densities("fixed_ERK", SHAPES, 0.7).dense == ["proj.weight"]


def test_maskable_are_matrices_and_convolutions_of_no_selector():
    others = {"gumbel.weight": (1, 8), "norm.weight": (8,), "cls_token": (1, 1, 8)}
    assert maskable(SHAPES | others) == SHAPES


@pytest.mark.parametrize("mode, density, text", [
    ("snip", 0.5, "sparsity.sparse_init = snip: must be one of fixed_ERK, uniform, ER"),
    ("uniform", 0.0, "sparsity.density = 0.0: must be above 0 and at most 1"),
    ("ER", 1.5, "sparsity.density = 1.5"),
])
def test_refused(mode, density, text):
    with pytest.raises(ValueError, match=text):
        densities(mode, SHAPES, density)
