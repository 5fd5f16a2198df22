"""Convolutions into tokens, against a loop over pixels, and their initial values."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_efficient.layers.norm import LayerNorm
from vit_efficient.layers.patch import conv, tokens, torch_conv_init


@pytest.mark.parametrize("kernel, stride, padding, dilation, channels",
                         [(2, 2, (0, 0), 1, 3), (3, 2, (0, 1), 1, 3), (3, 4, (2, 1), 2, 5)])
def test_convolution_is_the_loop(kernel, stride, padding, dilation, channels):
    x = np.random.default_rng(0).normal(size=(2, 9, 9, channels)).astype(np.float32)
    model = conv(4, kernel, stride, padding, dilation, channels)
    variables = model.init(jax.random.key(0), x)
    out = tokens(model.apply(variables, x))
    weight, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    padded = np.pad(x, ((0, 0), padding, padding, (0, 0)))
    extent = (kernel - 1) * dilation + 1
    places = range(0, padded.shape[1] - extent + 1, stride)
    expected = [np.tensordot(padded[:, i:i + extent:dilation, j:j + extent:dilation], weight, 3)
                + bias for i in places for j in places]
    np.testing.assert_allclose(out, np.stack(expected, 1), atol=1e-5)
    assert model.name == "proj" and np.abs(bias).max() <= (channels * kernel ** 2) ** -0.5


def test_initial_values_are_torchs():
    """Uniform in +-1/sqrt(fan_in), so the deviation is that over sqrt 3."""
    values = torch_conv_init(16)(jax.random.key(0), (100, 100), jnp.float32)
    assert 0.2499 < np.abs(values).max() <= 0.25
    np.testing.assert_allclose(np.std(values), 0.25 / 3 ** 0.5, rtol=0.02)
    assert abs(np.mean(values)) < 5 * 0.25 / 3 ** 0.5 / 100


def test_norms_keep_their_digits_beside_a_large_mean():
    x = np.random.default_rng(0).normal(4000, 1, (8, 64)).astype(np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6)
    norm = LayerNorm(1e-6)
    out = norm.apply(norm.init(jax.random.key(0), x), x)
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_norms_in_bfloat16_are_within_its_rounding():
    x = jnp.bfloat16(np.random.default_rng(0).normal(20, 1, (8, 384)))
    wide = np.float64(x)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-6)
    norm = LayerNorm(1e-6, dtype=jnp.bfloat16)
    out = norm.apply(norm.init(jax.random.key(0), x), x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(out), expected, rtol=2 ** -7, atol=1e-3)
