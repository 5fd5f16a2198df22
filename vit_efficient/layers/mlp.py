"""The two-layer perceptron of a transformer block."""
from flax import linen as nn
import jax
import jax.numpy as jnp


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, `x (1 + erf(x / sqrt 2)) / 2`. `jax.nn.gelu(approximate=False)` is written with
    erfc, which costs a TPU step 6 %; the tanh form moves the papers' logits by 6e-4."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2 ** -0.5))


class Mlp(nn.Module):
    """x [..., D] -> fc2(gelu(fc1(x))) [..., D] with `hidden` channels between, in `dtype`."""
    hidden: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(0.02)
        hidden = gelu(nn.Dense(self.hidden, dtype=self.dtype, kernel_init=init, name="fc1")(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name="fc2")(hidden)
