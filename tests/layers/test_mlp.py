"""The perceptron and its exact GELU."""
import math

import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.layers.mlp import Mlp, gelu


def exact(x: np.ndarray) -> np.ndarray:
    return np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x.ravel()],
                    np.float64).reshape(x.shape)


def test_gelu_is_exact():
    """The tanh form differs by 5e-4."""
    x = np.linspace(-6, 6, 401, dtype=np.float32)
    np.testing.assert_allclose(gelu(x), exact(x), atol=1e-6)


def test_the_perceptron_is_two_matrices():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    params = jax.tree.map(lambda w: jax.random.normal(jax.random.key(w.size), w.shape),
                          Mlp(7).init(jax.random.key(0), x)["params"])
    first, second = params["fc1"], params["fc2"]
    expected = exact(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(Mlp(7).apply({"params": params}, x), expected, atol=1e-5)
    assert Mlp(7, jnp.bfloat16).apply({"params": params}, x).dtype == jnp.bfloat16


def test_gelu_in_bfloat16_is_within_its_rounding():
    """Every bfloat16 number from 2^-10 to 100, of both signs, and the derivative there."""
    bits = np.arange(0x3A80, 0x42C8, dtype=np.uint16)
    x = jnp.concatenate([bits.view(jnp.bfloat16), -bits.view(jnp.bfloat16)])
    wide = np.float64(x)
    cdf = np.array([0.5 * math.erfc(-value / 2 ** 0.5) for value in wide])
    density = np.exp(-wide ** 2 / 2) / (2 * np.pi) ** 0.5
    out, back = jax.vjp(gelu, x)
    (slope,) = back(jnp.ones_like(x))
    assert out.dtype == slope.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(out), wide * cdf, rtol=2 ** -8, atol=6e-5)
    np.testing.assert_allclose(np.float64(slope), cdf + wide * density, rtol=2 ** -8, atol=3e-4)
