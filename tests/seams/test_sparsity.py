"""Masks beside their weights, and the phases of a run whose masks move."""
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.seams.phases import Length, Phase, Phases, constant, plain_position
from vit_efficient.seams.sparsity import VARIANTS, Sparsity, masked

PARAMS = {"fc": {"kernel": jnp.arange(1.0, 7).reshape(2, 3), "bias": jnp.ones(3)},
          "head": {"kernel": jnp.ones((3, 2))}}
MASKS = {"fc": {"kernel": jnp.array([[True, False, True], [False, False, True]]), "bias": None},
         "head": {"kernel": None}}


def test_what_is_masked_is_zero_and_all_else_as_it_was():
    found = masked(PARAMS, MASKS)
    np.testing.assert_array_equal(found["fc"]["kernel"], [[1, 0, 3], [0, 0, 6]])
    np.testing.assert_array_equal(found["fc"]["bias"], 1)
    np.testing.assert_array_equal(found["head"]["kernel"], 1)
    assert masked(PARAMS, {}) is PARAMS


def test_a_part_without_masks_may_be_none_as_a_whole():
    found = masked(PARAMS, MASKS | {"head": None})
    assert found["head"] is PARAMS["head"]


def test_an_undefined_weight_under_a_mask_is_zero():
    params = {"kernel": jnp.array([jnp.nan, jnp.inf, 1.0])}
    found = masked(params, {"kernel": jnp.array([False, False, True])})
    np.testing.assert_array_equal(found["kernel"], [0, 0, 1])


def test_the_engines_own_variant_masks_nothing():
    dense = VARIANTS["dense"](Length(8, 4, 1), None)
    assert dense.init(PARAMS, jax.random.key(0)) == {}
    assert dense.apply(PARAMS, {}) is PARAMS and not any(map(dense.moves_at, range(9)))


def test_masks_that_were_drawn_stay_unless_an_update_is_given():
    made = Sparsity(init=lambda params, key: MASKS)
    params, masks, metrics = made.update(PARAMS, MASKS, {}, {}, jnp.int32(1), jax.random.key(0))
    assert params is PARAMS and masks is MASKS and metrics == {}


def test_steps_at_which_masks_move_are_phases_of_their_own():
    """Under any paper's phases, here two of the model's, each with and without an update."""
    length = Length(8, 2, 2)
    phase_at = lambda step: Phase(model=(("stride", 4 if step < 3 else 1),))
    phases = Phases(length.total, phase_at, plain_position(length))
    found = phases.with_topology(lambda step: step % 2 == 1)
    assert [found.phase_at(step).topology for step in range(8)] == [False, True] * 4
    assert [dict(found.phase_at(step).model)["stride"] for step in range(8)] == [4] * 3 + [1] * 5
    assert found.distinct() == {found.phase_at(step): step for step in (0, 1, 3, 4)}
    assert found.phase_at(1).label == "stride 4, new masks"
    assert phases.distinct().keys() == {phase_at(0), phase_at(3)}      # the given ones are as ever
    assert constant(length, None).with_topology(lambda step: False).distinct() == {Phase(): 0}
