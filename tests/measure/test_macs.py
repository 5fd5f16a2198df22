"""Multiply-adds of traced functions against their closed forms."""
import jax
import jax.numpy as jnp
import pytest

from tests.runs import small_config
from vit_efficient.engine.assemble import assemble
from vit_efficient.measure.macs import multiply_adds
from vit_efficient.seams.phases import Phase

ones = jnp.ones


def counted(function, *arguments) -> float:
    return multiply_adds(jax.make_jaxpr(function)(*arguments))


def product(a, b):
    return jnp.einsum("bij,bjk->bik", a, b)


def test_a_batched_product_and_its_gradients():
    a, b = ones((2, 3, 5)), ones((2, 5, 7))
    assert counted(product, a, b) == 2 * 3 * 5 * 7
    loss = lambda a, b: product(a, b).sum()
    assert counted(jax.grad(loss, argnums=(0, 1)), a, b) == 3 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("groups", [1, 2])
def test_a_strided_convolution_and_its_gradients(groups):
    images, kernel = ones((2, 8, 8, 4)), ones((2, 2, 4 // groups, 6))
    run = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups)
    forward = 2 * 4 * 4 * 6 * 2 * 2 * 4 // groups
    assert counted(run, images, kernel) == forward
    gradient = jax.grad(lambda x, w: run(x, w).sum(), argnums=(0, 1))
    assert counted(gradient, images, kernel) == 3 * forward


def test_loops_count_as_often_as_they_run_and_branches_in_parts():
    a = ones((3, 3))
    assert counted(lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, length=5)[0], a) == 5 * 27
    assert counted(lambda a: jax.lax.switch(1, [lambda x: x @ x, lambda x: x @ x @ x,
                                                lambda x: x], a), a) == (27 + 54 + 0) / 3
    assert counted(lambda a: jax.lax.fori_loop(0, 4, lambda i, x: x @ a, a), a) == 4 * 27


def test_what_a_rematerialised_block_computes_again_counts():
    a = ones((3, 3))
    block = lambda a: jnp.sin(jnp.sin(a @ a) @ a).sum()
    plain, again = (counted(jax.grad(f), a) for f in (block, jax.checkpoint(block)))
    assert plain == 6 * 27 and again == 8 * 27


def test_a_training_step_costs_three_forward_passes():
    """But for the first layer, whose input has no gradient, and what the paper's count adds."""
    run = assemble(small_config())
    phase = Phase(model=(("stride", 4), ("dilation", 1)))
    traced = run.step(phase).trace(run.abstract_state, run.frozen(), run.abstract_batch(64))
    macs = run.model.macs()
    stem, rest = macs.pop("patch_embed"), sum(macs.values()) - macs["pool"]
    assert multiply_adds(traced.jaxpr) / 64 == pytest.approx(2 * stem + 3 * rest, rel=0.02)
