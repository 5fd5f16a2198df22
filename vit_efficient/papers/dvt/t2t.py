"""T2T-ViT's way from an image to tokens: soft splits, performers, the table of sines, as in the
authors' code of DVT, which builds on T2T-ViT's. What no training moves is collection `constants`.
"""
from functools import partial
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient.layers.attention import Fused
from vit_efficient.layers.linear import Dense
from vit_efficient.layers.mlp import gelu
from vit_efficient.layers.norm import LayerNorm

EPSILON = 1e-5
TOKEN_WIDTH = 64            # of the tokens between two splits
FEATURES = 32               # of a performer's kernel
HIGHEST = jax.lax.Precision.HIGHEST


class Split(NamedTuple):
    """Windows over a square map: side, step and zeros around the map, all in pixels of it."""
    kernel: int
    stride: int
    padding: int

    def side(self, size: int) -> int:
        """Windows along an axis of `size` pixels."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1


LATER = Split(3, 2, 1)      # the second and the third split


def map_sides(split: Split, size: int) -> tuple[int, int, int]:
    """Sides of the three maps of tokens that an image of `size` pixels becomes."""
    first = split.side(size)
    return first, LATER.side(first), LATER.side(LATER.side(first))


def unfold(x: jax.Array, split: Split) -> jax.Array:
    """The windows of a map [B, S, S, C], in raster order: [B, n * n, C * k * k], a window's channel
    slowest, then its row, then its column (torch's `nn.Unfold`).

    Cut from blocks of `stride` pixels by reshapes alone: exact in every dtype.
    """
    (B, S, _, C), (k, stride, padding) = x.shape, split
    n, reach = split.side(S), -(-k // stride)               # blocks that a window reaches over
    after = (n - 1 + reach) * stride - S - padding          # below zero: pixels that no window has
    axis = (padding, after, 0)
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), axis, axis, (0, 0, 0)])
    x = x.reshape(B, n - 1 + reach, stride, n - 1 + reach, stride, C)
    x = jnp.concatenate([x[:, i:i + n] for i in range(reach)], 2)[:, :, :k]
    x = jnp.concatenate([x[:, :, :, i:i + n] for i in range(reach)], 4)[:, :, :, :, :k]
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(B, n * n, C * k * k)


def sinusoid(length: int, width: int) -> np.ndarray:
    """The position table [1, length, width] float32: `p / 10000^(2 floor(j/2) / width)`, its sine
    at even j, its cosine at odd j; position 0 is the class token's."""
    j = np.arange(width)
    angle = np.arange(length)[:, None] / 10000 ** (2 * (j // 2) / width)
    return np.where(j % 2, np.cos(angle), np.sin(angle))[None].astype(np.float32)


def orthonormal(key: jax.Array) -> jax.Array:
    """A performer's `w` [32, 64]: random orthonormal rows times sqrt(32)."""
    return nn.initializers.orthogonal(FEATURES ** 0.5)(key, (FEATURES, TOKEN_WIDTH))


def linear_attention(k: jax.Array, q: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
    """Attention through positive random features (Performer, ICLR 2021), k, q, v [B, T, 64] ->
    float32 [B, T, 64]. All in float32: less would lose the exponentials and the 1e-8."""
    k, q, v = (x.astype(jnp.float32) for x in (k, q, v))
    einsum = partial(jnp.einsum, precision=HIGHEST)

    def phi(t):
        return jnp.exp(einsum("btd,md->btm", t, w) - 0.5 * jnp.square(t).sum(-1, keepdims=True)) \
            * FEATURES ** -0.5

    kp, qp = phi(k), phi(q)
    den = einsum("btm,bm->bt", qp, kp.sum(1))[..., None]
    return einsum("btm,bmd->btd", qp, einsum("btm,btd->bmd", kp, v)) / (den + 1e-8)


class Performer(nn.Module):
    """Tokens [B, T, c] -> [B, T, 64]: linear attention and an MLP. The first residual is v, since
    the widths differ; `dropout` acts in training."""
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dense = partial(nn.Dense, TOKEN_WIDTH, dtype=self.dtype,
                        kernel_init=nn.initializers.normal(0.02))
        norm = partial(LayerNorm, EPSILON, dtype=self.dtype)
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        w = self.variable("constants", "w", lambda: orthonormal(self.make_rng("params"))).value
        k, q, v = Fused(3, 1, TOKEN_WIDTH, dtype=self.dtype, name="kqv")(norm(name="norm1")(x))
        k, q, v = (part.squeeze(-2) for part in (k, q, v))
        out = linear_attention(k, q, v, w).astype(self.dtype)
        x = v + drop(name="dp")(dense(name="proj")(out))
        hidden = gelu(dense(name="mlp_0")(norm(name="norm2")(x)))
        return x + drop(name="mlp_3")(dense(name="mlp_2")(hidden))


class TokensToToken(nn.Module):
    """Images [B, S, S, 3] -> tokens [B, n * n, D]: three soft splits with a performer after the
    first and the second."""
    width: int
    split: Split
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x, sides = unfold(images, self.split), map_sides(self.split, images.shape[1])
        for i, side in enumerate(sides[:2], 1):
            x = Performer(self.dropout, self.dtype, name=f"attention{i}")(x, train)
            x = unfold(x.reshape(-1, side, side, TOKEN_WIDTH), LATER)
        return Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02),
                     name="project")(x)
