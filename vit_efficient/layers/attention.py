"""Multi-head self-attention: stored as the official fused matrix, computed as three products."""
from flax import linen as nn
import jax
import jax.numpy as jnp


class Fused(nn.Module):
    """A torch `nn.Linear` whose rows are `parts` stacked maps of heads.

    x [..., N, D] -> `parts` arrays [..., N, H, d]. One stored matrix, `parts` products: splitting
    one fused product costs a TPU step 1.3x.
    """
    parts: int
    num_heads: int
    head_width: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        D, H, d = x.shape[-1], self.num_heads, self.head_width
        kernel = self.param("kernel", nn.initializers.normal(0.02), (D, self.parts * H * d))
        bias = (self.param("bias", nn.initializers.zeros, (self.parts * H * d,))
                if self.use_bias else None)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        kernel = kernel.reshape(D, self.parts, H, d)
        out = [jnp.einsum("...nd,dhk->...nhk", x, kernel[:, i]) for i in range(self.parts)]
        if bias is not None:
            out = [part + b for part, b in zip(out, bias.reshape(self.parts, H, d))]
        return tuple(out)


class Attention(nn.Module):
    """x [..., N, D] -> [..., N, D] in `dtype`, attention among the N tokens.

    The heads have `head_width` channels each (default D // H; `H * head_width` may be below D,
    As-ViT). `scale` multiplies the queries, default `head_width ** -0.5`. `qkv/kernel` is
    `qkv.weight` of the official files, transposed.
    """
    num_heads: int
    head_width: int | None = None
    scale: float | None = None
    qkv_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, H = x.shape[-1], self.num_heads
        d = self.head_width or D // H
        q, k, v = Fused(3, H, d, self.qkv_bias, self.dtype, name="qkv")(x)
        # [..., H, N, N]
        scores = jnp.einsum("...qhd,...khd->...hqk", q * (self.scale or d ** -0.5), k)
        weights = nn.softmax(scores.astype(jnp.float32)).astype(self.dtype)
        out = jnp.einsum("...hqk,...khd->...qhd", weights, v).reshape(*x.shape[:-1], H * d)
        init = nn.initializers.normal(0.02)
        return nn.Dense(D, dtype=self.dtype, kernel_init=init, name="proj")(out)
