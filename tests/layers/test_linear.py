"""The linear product's gradients, in both orders, against those of differentiation."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.layers.linear import Dense, product


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3), (2, 4, 5, 3), (3,)])
@pytest.mark.parametrize("width", [2, 3, 7])
def test_gradients_are_those_of_differentiation(shape, width):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.float32(rng.normal(size=s)) for s in (shape, (shape[-1], width)))
    change = jnp.float32(rng.normal(size=(*shape[:-1], width)))
    out, back = jax.vjp(product, x, kernel)
    expected, plain = jax.vjp(lambda x, kernel: x @ kernel, x, kernel)
    np.testing.assert_array_equal(out, expected)
    for given, wanted in zip(back(change), plain(change)):
        assert given.shape == wanted.shape
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", [(8, 32), (32, 8)])
def test_the_narrower_operand_is_the_left_one(widths):
    """In the kernel's gradient: the output's width when that is smaller, then transposed."""
    D, H = widths
    back = jax.make_jaxpr(lambda x, w, c: jax.vjp(product, x, w)[1](c)[1])(
        *(jnp.zeros(s) for s in ((4, D), (D, H), (4, H))))
    dot = [e for e in back.jaxpr.eqns if e.primitive.name == "dot_general"][-1]
    assert dot.outvars[0].aval.shape == (8, 32)


def test_the_layer_computes_in_its_dtype_and_stores_float32():
    layer = Dense(4, dtype=jnp.bfloat16, kernel_init=jax.nn.initializers.normal())
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 6)))
    params = layer.init(jax.random.key(0), x)["params"]
    assert params["kernel"].dtype == params["bias"].dtype == jnp.float32
    assert layer.apply({"params": params}, x).dtype == jnp.bfloat16
    grads = jax.grad(lambda p: layer.apply({"params": p}, x).sum())(params)
    np.testing.assert_allclose(grads["kernel"], np.tile(x.sum(0)[:, None], 4), rtol=2e-2, atol=2e-2)
