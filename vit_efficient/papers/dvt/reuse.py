"""What a transformer of DVT takes over from the one before it: the operator that brings maps of
tokens to a finer grid, and the MLP over the channels of attention maps (the authors' code)."""
from functools import lru_cache

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.layers.patch import torch_conv_init

HIGHEST = jax.lax.Precision.HIGHEST


def axis_matrix(coarse: int, fine: int) -> np.ndarray:
    """One axis of the upsampling, float32 [fine, coarse]: nearest neighbour to `2 coarse`, then the
    adaptive average to `fine`."""
    wide, matrix = 2 * coarse, np.zeros((fine, coarse))
    for i in range(fine):
        first, end = i * wide // fine, -(-(i + 1) * wide // fine)
        for j in range(first, end):
            matrix[i, j // 2] += 1 / (end - first)
    return matrix.astype(np.float32)


@lru_cache
def token_matrix(coarse: int, fine: int) -> np.ndarray:
    """Both axes and the class token before them, float32 [fine^2 + 1, coarse^2 + 1]: the P of
    `upsample_relations`, which copies the class token."""
    axis = axis_matrix(coarse, fine)
    matrix = np.zeros((fine ** 2 + 1, coarse ** 2 + 1), np.float32)
    matrix[0, 0], matrix[1:, 1:] = 1, np.kron(axis, axis)
    return matrix


def upsample_relations(maps: jax.Array, matrix: jax.Array) -> jax.Array:
    """Attention maps on a finer grid: `P A P^T`, [..., N_up, N_up] -> [..., N, N]."""
    # The whole P, zeros and all: the four axes one after the other take a third longer on a CPU,
    # and sides of 7 to 14 would leave a TPU's matrix unit mostly empty.
    keys = jnp.einsum("...qk,nk->...qn", maps, matrix.astype(maps.dtype), precision=HIGHEST)
    return jnp.einsum("...qn,mq->...mn", keys, matrix.astype(maps.dtype), precision=HIGHEST)


def upsample_tokens(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """Tokens on a finer grid, [B, N_up, C] -> [B, N, C]; the class token becomes zeros, whatever it
    was."""
    # A row of zeros for the class token: no slice, whose gradient costs a TPU step dear.
    matrix = matrix.at[0].set(0).astype(x.dtype)
    return jnp.einsum("nm,bmc->bnc", matrix, x, precision=HIGHEST)


class Pointwise(nn.Module):
    """torch's 1x1 convolution over the channels of attention maps: [B, C, q, k] -> [B, features, q,
    k] in `dtype`."""
    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: jax.Array) -> jax.Array:
        C = maps.shape[1]
        kernel = self.param("kernel", torch_conv_init(C), (1, 1, C, self.features))
        bias = self.param("bias", torch_conv_init(C), (self.features,))
        maps, kernel, bias = nn.dtypes.promote_dtype(maps, kernel, bias, dtype=self.dtype)
        return jnp.einsum("bcqk,cd->bdqk", maps, kernel[0, 0]) + bias[:, None, None]
