"""SViTE (NeurIPS 2021): DeiT with fewer heads and neurons, and with a learnt choice of tokens.

arXiv 2106.04533 and the authors' code, github.com/VITA-Group/SViTE. Unstructured sparsity is no
model of its own: masks stand beside the weights in the train state, and the masked model is the
DeiT of `papers/deit`.
"""
from functools import partial
from typing import ClassVar, Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.layers.attention import Fused, attend_dropping
from vit_efficient.layers.blocks import drop_path, linear_rates, run_blocks
from vit_efficient.layers.linear import product
from vit_efficient.layers.mlp import Mlp
from vit_efficient.layers.norm import LayerNorm
from vit_efficient.layers.patch import PatchEmbed
from vit_efficient.layers.pool import class_token
from vit_efficient.papers.deit.models import EPSILON, SIZES, check_patches
from vit_efficient.papers.svite.selector import Selector, gather
from vit_efficient.seams.model import Model
from vit_efficient.settings.values import Count, Rate


class Stream(NamedTuple):
    """What passes through the blocks: tokens `x` [B, N, D] and, where the blocks select, `noise`
    [L, B, N], the next block's in row 0, and the temperature `tau`."""
    x: jax.Array
    noise: jax.Array | None = None
    tau: jax.Array | None = None


class Projection(nn.Module):
    """The heads' outputs [B, N, A] -> [B, N, D] with a matrix [D, D], of which rows past A are
    dead: stored and counted, as the official compact models do, but not multiplied."""
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        D, A = self.width, x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(0.02), (D, D))
        bias = self.param("bias", nn.initializers.zeros, (D,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel[:A], bias, dtype=self.dtype)
        return product(x, kernel) + bias


class Attention(nn.Module):
    """Attention of `num_heads` heads of `head_width` channels, together A <= D: x [B, N, D] -> [B,
    N, D]. With a `token_number` it sees that many tokens, the others as zeros."""
    num_heads: int
    head_width: int
    qkv_bias: bool
    token_number: int | None
    drop: float
    attn_drop: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array | None, tau: jax.Array | None,
                 train: bool) -> jax.Array:
        B, N, D = x.shape
        H, d = self.num_heads, self.head_width
        if self.token_number:
            made = Selector(self.token_number, name="gumbel")(x, noise, tau)
            x = x * made.weights[..., None].astype(x.dtype)
        q, k, v = Fused(parts=3, num_heads=H, head_width=d, use_bias=self.qkv_bias,
                        dtype=self.dtype, name="qkv")(x)
        out = attend_dropping(q * d ** -0.5, k, v, self.attn_drop, train).reshape(B, N, H * d)
        out = Projection(D, self.dtype, name="proj")(out)
        return nn.Dropout(self.drop, deterministic=not train)(out)


class Block(nn.Module):
    """Pre-norm attention and MLP, on the tokens of a stream; the residual sees all of them."""
    num_heads: int
    head_width: int
    mlp_hidden: int
    qkv_bias: bool
    token_number: int | None
    drop: float
    attn_drop: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, stream: Stream, rate: float | jax.Array, train: bool) -> Stream:
        norm = partial(LayerNorm, EPSILON, dtype=self.dtype)
        attention = Attention(num_heads=self.num_heads, head_width=self.head_width,
                              qkv_bias=self.qkv_bias, token_number=self.token_number,
                              drop=self.drop, attn_drop=self.attn_drop, dtype=self.dtype,
                              name="attn")
        x, noise, tau = stream
        own = None if noise is None else noise[0]
        x = x + drop_path(self, attention(norm(name="norm1")(x), own, tau, train), rate, train)
        mlp = Mlp(self.mlp_hidden, self.dtype, drop=self.drop, name="mlp")
        x = x + drop_path(self, mlp(norm(name="norm2")(x), train), rate, train)
        return Stream(x, None if noise is None else jnp.roll(noise, -1, axis=0), tau)


class SViTE(Model, nn.Module):
    """Images [B, S, S, 3] -> logits float32 [B, K]; with `num_classes=0` the features [B, D].

    `token_number` of the tokens, the class token included, count in the blocks (`None`: all).
    `token_selection` says which: "first" takes the first ones; "input" has a learnt selector after
    the position table, "layers" another one in each block's attention. `token_mode`
    "zero" multiplies the others by zero, as the official code does; "gather" takes them out of the
    sequence, another function and a faster one.
    """
    width: int
    depth: int
    num_heads: int
    head_width: int
    mlp_hidden: int
    num_classes: int = 1000
    image_size: int = 224
    patch_size: int = 16
    qkv_bias: bool = True
    token_selection: str | None = None
    token_number: int | None = None
    token_mode: str = "zero"
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    no_decay: ClassVar[tuple[str, ...]] = ("cls_token", "pos_embed")
    order: ClassVar[tuple[str, ...]] = (
        "cls_token", "pos_embed", "patch_embed", "qkv", "gumbel", "proj", "blocks", "norm1", "attn",
        "norm2", "mlp", "fc1", "fc2", "norm", "head")
    optional: ClassVar[dict[str, str]] = {"gumbel": "token_number"}

    @property
    def draws(self) -> int:
        """Selectors, which each need noise: the input's and one in each block, or none."""
        if not self.token_number:
            return 0
        return {"input": 1, "layers": 1 + self.depth}.get(self.token_selection, 0)

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False,
                 tau: jax.Array | float | None = None, noise: jax.Array | None = None) -> dict:
        """`logits` [B, K]; `tokens_in` [B, N, D], the first block's input; `tokens` [B, N, D] after
        the last norm.

        `tau` is the selectors' temperature (default 1), `noise` [draws, B, N] their Gumbel noise:
        the input's, then each block's. Without `noise` it is drawn from the key `dropout`; an
        evaluation that is given none either takes the likeliest tokens (the authors' code
        draws noise there too).
        """
        (B, side, _, _), D, init = images.shape, self.width, nn.initializers.normal(0.02)
        if images.shape[1:3] != (self.image_size,) * 2:
            raise ValueError(f"images of {side} x {images.shape[2]} pixels: this model was made "
                             f"for image_size = {self.image_size}")
        x = PatchEmbed(D, self.patch_size, self.patch_size, dtype=self.dtype,
                       name="patch_embed")(images)
        token = self.param("cls_token", init, (1, 1, D)).astype(self.dtype)
        table = self.param("pos_embed", init, (1, 1 + x.shape[1], D)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (B, 1, D)), x], 1) + table
        x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
        noise, tau = self._noise(x, train, noise, tau)
        x = self._select(x, noise, tau)
        stream = Stream(x, noise[1:], tau) if self.draws > 1 else Stream(x)
        block = dict(num_heads=self.num_heads, head_width=self.head_width,
                     mlp_hidden=self.mlp_hidden, qkv_bias=self.qkv_bias,
                     token_number=self.token_number if self.draws > 1 else None,
                     drop=self.drop_rate, attn_drop=self.attn_drop_rate, dtype=self.dtype)
        last = run_blocks(self, Block, block, stream, linear_rates(self.drop_path, self.depth),
                          train, scan=self.scan, remat=self.remat).x
        last = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(last)
        logits = pooled = class_token(last)
        if self.num_classes:
            logits = nn.Dense(self.num_classes, kernel_init=init, name="head")(pooled)
        return {"logits": logits, "tokens_in": x, "tokens": last}

    def _noise(self, x: jax.Array, train: bool, noise: jax.Array | None,
               tau: jax.Array | float | None) -> tuple[jax.Array | None, jax.Array | None]:
        """Noise float32 [draws, B, N] and temperature of the selectors, None where there are
        none."""
        shape = (self.draws, *x.shape[:2])
        if not self.draws:
            if noise is not None or tau is not None:
                raise ValueError("tau and noise belong to a token selector, and this model has "
                                 "none: give it a model.token_number and model.token_selection = "
                                 "input")
            return None, None
        if noise is None:
            noise = jnp.zeros(shape)
            if train or self.has_rng("dropout"):
                noise = jax.random.gumbel(self.make_rng("dropout"), shape)
        if noise.shape != shape:
            raise ValueError(f"noise of shape {noise.shape}: must be {shape}, a row a selector")
        return noise, jnp.float32(1.0 if tau is None else tau)

    def _select(self, x: jax.Array, noise: jax.Array | None, tau: jax.Array | None) -> jax.Array:
        """The tokens that enter the first block: [B, N, D] -> [B, N, D], or fewer tokens."""
        if self.token_selection == "first":
            return x[:, :self.token_number]
        if not self.draws:
            return x
        shorter = self.token_mode == "gather"
        made = Selector(self.token_number, exact=shorter, name="gumbel")(x, noise[0], tau)
        x = x * made.weights[..., None].astype(x.dtype)
        return gather(x, made.mask, self.token_number) if shorter else x

    def macs(self) -> dict[str, int]:
        """Multiply-adds of one image by part: convolution, linear layers, both attention products
        and the dead rows of a compact model's `proj`, as in the official numbers; no selector."""
        D, A = self.width, self.num_heads * self.head_width
        P = (self.image_size // self.patch_size) ** 2
        shorter = self.token_selection == "first" or self.token_mode == "gather"
        N = self.token_number if shorter and self.token_number else P + 1
        block = N * D * 3 * A + 2 * N * N * A + N * D * D + 2 * N * D * self.mlp_hidden
        counts = {"patch_embed": P * D * 3 * self.patch_size ** 2}
        counts |= {f"blocks_{i}": block for i in range(self.depth)}
        return counts | {"head": D * self.num_classes}


def svite(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *,
          width: Count = 384, depth: Count = 12, num_heads: Count = 6,
          head_width: Count | None = None, mlp_hidden: Count | None = None, patch_size: Count = 16,
          qkv_bias: bool = True, token_selection: Literal["first", "input", "layers"] | None = None,
          token_number: Count | None = None, token_mode: Literal["zero", "gather"] = "zero",
          drop_rate: Rate = 0.0, attn_drop_rate: Rate = 0.0, drop_path: Rate = 0.1,
          scan: bool = False, remat: bool = False) -> SViTE:
    """A DeiT of any size, compact where heads of `head_width` (default `width / num_heads`) or the
    `mlp_hidden` neurons (default 4 `width`) are fewer than DeiT's.

    Raises ValueError where these do not fit together, with key, value and what is allowed.
    """
    if head_width is None and width % num_heads:
        raise ValueError(f"model.num_heads = {num_heads}: must divide model.width = {width}, or "
                         f"model.head_width says how wide a head is")
    d = head_width or width // num_heads
    if num_heads * d > width:
        raise ValueError(f"model.num_heads = {num_heads}: heads of {d} channels allow at most "
                         f"{width // d} in model.width = {width}")
    check_patches(image_size, patch_size)
    N = (image_size // patch_size) ** 2 + 1
    if token_number is not None and not token_selection:
        raise ValueError(f"model.token_number = {token_number}: this model has no token selector, "
                         f"model.token_selection may be input, layers or first")
    if token_number is not None and not 1 <= token_number <= N:
        raise ValueError(f"model.token_number = {token_number}: must be from 1 to {N}, the class "
                         f"token and {N - 1} patches")
    if token_mode == "gather" and (token_selection != "input" or token_number is None):
        raise ValueError("model.token_mode = gather: needs model.token_selection = input and a "
                         "model.token_number")
    return SViTE(width=width, depth=depth, num_heads=num_heads, head_width=d,
                 mlp_hidden=mlp_hidden or 4 * width, num_classes=num_classes, image_size=image_size,
                 patch_size=patch_size, qkv_bias=qkv_bias, token_selection=token_selection,
                 token_number=token_number, token_mode=token_mode, drop_rate=drop_rate,
                 attn_drop_rate=attn_drop_rate, drop_path=drop_path, scan=scan, remat=remat,
                 dtype=jnp.dtype(dtype))


# Heads of 64 channels by percent of a DeiT that is left, and the MLP's ratio: the authors' code.
_HEADS = {"tiny": {70: 2}, "small": {70: 4, 60: 4, 50: 3, 40: 2, 30: 2},
          "base": {70: 8, 60: 8, 50: 6, 40: 4, 30: 4}}
_RATIOS = {70: 2.8, 60: 2.4, 50: 2.0, 40: 1.6, 30: 1.2}


def _plain(size: str, selection: str = "input", **sizes) -> partial:
    width, heads = SIZES[size]
    return partial(svite, width=width, num_heads=heads, token_selection=selection, **sizes)


def _compact(size: str, percent: int, selection: str | None = None) -> partial:
    width, _ = SIZES[size]
    return partial(svite, width=width, num_heads=_HEADS[size][percent], head_width=64,
                   mlp_hidden=int(width * _RATIOS[percent]), token_selection=selection)


# The official names; `svite_*` are the official `deit_*` with a selector at the input, without one
# those names are DeiT's own.
VARIANTS = {
    "svite": svite,
    **{f"svite_{size}_patch16_224": _plain(size) for size in SIZES},
    "svite_base_patch16_384": _plain("base", image_size=384),
    **{f"deit_{size}_patch16_224_data": _plain(size, "layers") for size in SIZES},
    "deit_tiny_patch16_224_8layers": _plain("tiny", depth=8),
    "deit_tiny_patch16_224_half": _plain("tiny", depth=4),
    "deit_small_patch16_224_half": _plain("small", depth=6),
    "deit_base_patch16_224_half": _plain("base", depth=6),
    **{f"deit_{size}_patch16_224_{percent}": _compact(size, percent)
       for size, heads in _HEADS.items() for percent in heads},
    "deit_small_patch16_224_gumbel": _plain("small", "first"),
    "deit_small_patch16_224_60_gumbel": _compact("small", 60, "first"),
}
