"""Multi-head self-attention: stored as the official fused matrix, computed as three products.

The fused `qkv` kernel converts to and from the authors' files by one rule; splitting one product of
it would cost a TPU 1.3 times the step. Every model's attention is `Attention` or made of its parts:
`Fused` projects, `attend` and `attend_dropping` weigh.
"""
from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.layers.init import small_normal
from vit_efficient.layers.linear import Dense


@jax.custom_jvp
def softmax(scores: jax.Array) -> jax.Array:
    """Over the last axis, in the dtype of `scores`; sum and division in float32.

    Below float32 the exponentials are rounded before they are summed: against `nn.softmax` in
    float32, rounded at its end, a TPU step gains a twentieth.
    """
    exponentials = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = exponentials.sum(-1, keepdims=True, dtype=jnp.float32)
    return (exponentials * (1 / total)).astype(scores.dtype)


@softmax.defjvp
def _softmax_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """Of the result alone, which is then all that the backward pass keeps."""
    weights, (change,) = softmax(*primals), tangents
    mean = (weights * change).sum(-1, keepdims=True, dtype=jnp.float32)
    return weights, (weights * (change - mean)).astype(weights.dtype)


def mix(weights: jax.Array, v: jax.Array) -> jax.Array:
    """weights [..., H, N, M], v [..., M, H, d] -> [..., N, H, d], each head's weighted sums.

    Head by head, then transposed: asked for the result itself, einsum goes by [..., H, d, N], and
    the forward pass of a DeiT-S on a CPU takes a fifth more time. (In `attend`'s backward pass the
    same gains a CPU little and costs a TPU 0.4 percent.)
    """
    return jnp.einsum("...hqk,...khd->...hqd", weights, v).swapaxes(-2, -3)


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q k^T) v in each head: [..., N, H, d] three times -> [..., N, H, d].

    Its backward pass takes each row's mean of the weights' gradients from the outputs (Dao et al.,
    FlashAttention, arXiv 2205.14135, appendix B.2), so that it goes over the N x N numbers once
    less: a tenth of a TPU step of DeiT-B.
    """
    return _attend_forward(q, k, v)[0]


def _attend_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple]:
    weights = softmax(jnp.einsum("...qhd,...khd->...hqk", q, k))
    out = mix(weights, v)
    return out, (q, k, v, weights, out)


def _attend_backward(kept: tuple, change: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, weights, out = kept
    H, d = out.shape[-2:]
    # The sum over a head's channels as a product with ones: a reduction is slow in this layout.
    heads = jnp.repeat(jnp.eye(H, dtype=out.dtype), d, 0)                   # [H d, H]
    mean = jnp.einsum("...qc,ch->...hq", (out * change).reshape(*out.shape[:-2], H * d), heads,
                      precision=jax.lax.Precision.HIGHEST)
    to_weights = jnp.einsum("...qhd,...khd->...hqk", change, v)
    to_scores = weights * (to_weights - mean[..., None])
    return (jnp.einsum("...hqk,...khd->...qhd", to_scores, k),
            jnp.einsum("...hqk,...qhd->...khd", to_scores, q),
            jnp.einsum("...hqk,...qhd->...khd", weights, change))


attend.defvjp(_attend_forward, _attend_backward)


def attend_dropping(q: jax.Array, k: jax.Array, v: jax.Array, rate: float,
                    train: bool) -> jax.Array:
    """`attend` inside a module, whose training drops weights at `rate`."""
    if not train or not rate:
        return attend(q, k, v)
    weights = softmax(jnp.einsum("...qhd,...khd->...hqk", q, k))            # [..., H, N, N]
    weights = nn.Dropout(rate, deterministic=False)(weights)
    return mix(weights, v)


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
    initializers: Callable = small_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        D, H, d = x.shape[-1], self.num_heads, self.head_width
        kernel_init, bias_init = self.initializers(D)
        kernel = self.param("kernel", kernel_init, (D, self.parts * H * d))
        bias = self.param("bias", bias_init, (self.parts * H * d,)) if self.use_bias else None
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
    `qkv.weight` of the official files, transposed. In training `attn_drop` drops attention weights,
    `drop` outputs.
    """
    num_heads: int
    head_width: int | None = None
    scale: float | None = None
    qkv_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    initializers: Callable = small_normal
    attn_drop: float = 0.0
    drop: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        D, H = x.shape[-1], self.num_heads
        d = self.head_width or D // H
        q, k, v = Fused(parts=3, num_heads=H, head_width=d, use_bias=self.qkv_bias,
                        dtype=self.dtype, initializers=self.initializers, name="qkv")(x)
        out = attend_dropping(q * (self.scale or d ** -0.5), k, v, self.attn_drop, train)
        out = out.reshape(*x.shape[:-1], H * d)
        kernel_init, bias_init = self.initializers(H * d)
        out = Dense(D, dtype=self.dtype, kernel_init=kernel_init, bias_init=bias_init,
                    name="proj")(out)
        return nn.Dropout(self.drop, deterministic=not train)(out)
