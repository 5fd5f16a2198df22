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
