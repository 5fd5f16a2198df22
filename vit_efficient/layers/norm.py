"""Layer and batch normalisation with statistics in float32."""
from flax import linen as nn
import jax
import jax.numpy as jnp


def LayerNorm(epsilon: float, *, dtype: jnp.dtype = jnp.float32,
              name: str | None = None) -> nn.LayerNorm:
    """x [..., D] -> the same in `dtype`.

    In float32 the variance takes a second pass, since mean of squares minus squared mean loses
    digits where the mean is large; bfloat16's own rounding is coarser, and one pass makes a TPU
    step a twentieth faster.
    """
    return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=dtype == jnp.bfloat16, name=name)


class BatchNorm(nn.Module):
    """torch's `nn.BatchNorm2d`: x [B, h, w, C] -> the same in `dtype`; collection `batch_stats`.

    In training the whole batch's statistics, of all devices, normalise; the running variance moves
    by the unbiased one (Flax's own by the biased). `num_batches_tracked` [] is a float, so that an
    average of states can average it.
    """
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        C = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (C,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (C,))
        tracked = self.variable("batch_stats", "num_batches_tracked", jnp.zeros, ())
        x = x.astype(jnp.float32)
        mean, var = running_mean.value, running_var.value
        if train:
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - mean).mean((0, 1, 2))
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                count = x.size // C
                move = lambda old, new: self.momentum * old + (1 - self.momentum) * new
                running_mean.value = move(running_mean.value, mean)
                running_var.value = move(running_var.value, var * count / max(count - 1, 1))
                tracked.value += 1
        return ((x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias).astype(self.dtype)
