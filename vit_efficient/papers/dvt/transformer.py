"""One transformer of DVT's cascade (NeurIPS 2021), which may reuse the features and the attention
of the one before; alone it is T2T-ViT.

As in the authors' code (see models.py). Parameters carry the official names, `feature_resuse_mlp`
among them; what no training moves is collection `constants`.
"""
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.layers.attention import Fused, mix, softmax
from vit_efficient.layers.blocks import drop_path, linear_rates, run_blocks
from vit_efficient.layers.linear import Dense
from vit_efficient.layers.mlp import Mlp, gelu
from vit_efficient.layers.norm import LayerNorm
from vit_efficient.layers.patch import PatchEmbed
from vit_efficient.layers.pool import class_token
from vit_efficient.papers.dvt.reuse import (
    Pointwise,
    token_matrix,
    upsample_relations,
    upsample_tokens,
)
from vit_efficient.papers.dvt.t2t import (
    FEATURES,
    TOKEN_WIDTH,
    Split,
    TokensToToken,
    map_sides,
    sinusoid,
)
from vit_efficient.seams.model import Model

CONTEXT = 48                # channels that a block takes from reused features
CONTEXT_HIDDEN = 128
ORDER = (
    "cls_token", "pos_embed", "tokens_to_token", "patch_embed", "attention1", "attention2", "w",
    "kqv", "qkv", "proj", "project", "blocks", "norm1", "attn", "norm2", "mlp", "fc1", "fc2",
    "feature_resuse_mlp", "norm", "relation_reuse_conv", "head")


class Attention(nn.Module):
    """x [B, N, D] -> [B, N, D], and the attention's logits [B, H, N, N] with the `reused` ones
    [B, H, N, N] in them."""
    num_heads: int
    qkv_bias: bool
    drop: float
    attn_drop: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, reused: jax.Array | None,
                 train: bool) -> tuple[jax.Array, jax.Array]:
        D = x.shape[-1]
        d = D // self.num_heads
        q, k, v = Fused(parts=3, num_heads=self.num_heads, head_width=d, use_bias=self.qkv_bias,
                        dtype=self.dtype, name="qkv")(x)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * d ** -0.5, k)
        if reused is not None:
            scores = scores + reused
        weights = nn.Dropout(self.attn_drop, deterministic=not train, name="attn_drop")(
            softmax(scores))
        out = mix(weights, v).reshape(x.shape)
        out = Dense(D, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02),
                    name="proj")(out)
        return nn.Dropout(self.drop, deterministic=not train, name="proj_drop")(out), scores


class Block(nn.Module):
    """Tokens [B, N, D] -> (tokens, attention logits [B, H, N, N]), with what is reused.

    `shared` may hold `features` [B, N_up, D] and `matrix` [N, N_up], which brings them to this
    grid; `relation` [B, H, N_up, N_up] is this layer's share of the relations or None.
    """
    num_heads: int
    hidden: int
    t2t: bool
    epsilon: float
    drop: float
    attn_drop: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, train: bool, shared: dict,
                 relation: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        D, norm = x.shape[-1], partial(LayerNorm, self.epsilon, dtype=self.dtype)
        mlp = partial(Mlp, dtype=self.dtype, drop=self.drop)
        if relation is not None:
            # Upsampled layer by layer: all of them at once are C N^2 numbers an image.
            relation = upsample_relations(relation, shared["matrix"])
        attention = Attention(num_heads=self.num_heads, qkv_bias=not self.t2t, drop=self.drop,
                              attn_drop=self.attn_drop, dtype=self.dtype, name="attn")
        out, scores = attention(norm(name="norm1")(x), relation, train)
        x = z = x + drop_path(self, out, rate, train)
        if "features" in shared:
            context = norm(name="feature_resuse_mlp_0")(shared["features"])
            context = mlp(CONTEXT_HIDDEN, out=CONTEXT, name="feature_resuse_mlp_1")(context, train)
            z = jnp.concatenate([x, upsample_tokens(context, shared["matrix"])], -1)
        out = mlp(self.hidden, out=D, name="mlp")(norm(name="norm2")(z), train)
        return x + drop_path(self, out, rate, train), scores


class Transformer(Model, nn.Module):
    """Images [B, S, S, 3] -> logits float32 [B, K] (with `num_classes=0` features [B, D]): one
    stage of a cascade, alone T2T-ViT.

    `t2t` is T2T-ViT's tokenizer, fixed positions and norms; else DeiT's. `upstream` is the side of
    the token grid whose features and relations are reused, 0 where there is none before.
    """
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    t2t: bool
    split: Split
    num_classes: int = 1000
    image_size: int = 224
    upstream: int = 0
    feature_reuse: bool = False
    relation_reuse: bool = False
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    performer_drop: float = 0.1
    drop_path: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    # The authors' optimiser factory finds no list in a cascade: class tokens and positions decay.
    no_decay: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[tuple[str, ...]] = ORDER

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the maps of tokens, the last that of the grid."""
        size = self.image_size
        return map_sides(self.split, size) if self.t2t else (self.split.side(size),)

    @property
    def epsilon(self) -> float:
        """Of every layer norm."""
        return 1e-5 if self.t2t else 1e-6

    @nn.compact
    def features(self, images: jax.Array, features: jax.Array | None = None,
                 relations: jax.Array | None = None, *, train: bool = False) -> dict:
        """`logits` [B, K]; `tokens` [B, n * n, D], the tokenizer's; `features` [B, N, D], the last
        block's output before the norm; `relations` [L, B, H, N, N], every layer's attention logits;
        `mixed` [L, B, H, N_up, N_up], the relations to add before they are upsampled, or None.

        The arguments are `features` and `relations` of the transformer before.
        """
        patches = self._tokenize(images, train)
        shared, mixed = {}, None
        if self.upstream:
            shared["matrix"] = jnp.asarray(token_matrix(self.upstream, self.sides[-1]))
            if self.feature_reuse:
                shared["features"] = features
            if self.relation_reuse:
                mixed = self._mix(relations)
        block = dict(num_heads=self.num_heads, hidden=int(self.width * self.mlp_ratio),
                     t2t=self.t2t, epsilon=self.epsilon, drop=self.drop_rate,
                     attn_drop=self.attn_drop_rate, dtype=self.dtype)
        x, relations = run_blocks(
            self, Block, block, self._embed(patches, train),
            linear_rates(self.drop_path, self.depth), train, shared=shared, own=mixed,
            scan=self.scan, remat=self.remat)
        logits = token = LayerNorm(self.epsilon, name="norm")(class_token(x))
        if self.num_classes:
            logits = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.02),
                              name="head")(token)
        return {"logits": logits, "tokens": patches, "features": x, "relations": relations,
                "mixed": mixed}

    def _tokenize(self, images: jax.Array, train: bool) -> jax.Array:
        if images.shape[1:] != (self.image_size, self.image_size, 3):
            raise ValueError(f"images {images.shape[1:]}: this model was made for image_size = "
                             f"{self.image_size} and 3 channels")
        images = images.astype(self.dtype)
        if self.t2t:
            return TokensToToken(width=self.width, split=self.split, dropout=self.performer_drop,
                                 dtype=self.dtype, name="tokens_to_token")(images, train)
        return PatchEmbed(self.width, *self.split, dtype=self.dtype, name="patch_embed")(images)

    def _embed(self, patches: jax.Array, train: bool) -> jax.Array:
        """Class token and positions: [B, n * n, D] -> [B, N, D]."""
        (B, count, D), init = patches.shape, nn.initializers.normal(0.02)
        cls_token = self.param("cls_token", init, (1, 1, D)).astype(self.dtype)
        if self.t2t:
            table = self.variable("constants", "pos_embed",
                                  lambda: jnp.asarray(sinusoid(count + 1, D))).value
        else:
            table = self.param("pos_embed", init, (1, count + 1, D))
        x = jnp.concatenate([jnp.broadcast_to(cls_token, (B, 1, D)), patches], 1)
        return nn.Dropout(self.drop_rate, deterministic=not train, name="pos_drop")(
            x + table.astype(self.dtype))

    def _mix(self, relations: jax.Array) -> jax.Array:
        """The MLP over all layers' and heads' maps, at the resolution that they come in: [L, B, H,
        q, k] -> the same."""
        L, B, H, *sides = relations.shape
        maps = relations.swapaxes(0, 1).reshape(B, L * H, *sides)
        maps = gelu(Pointwise(3 * L * H, self.dtype, name="relation_reuse_conv_0")(maps))
        maps = Pointwise(L * H, self.dtype, name="relation_reuse_conv_2")(maps)
        return maps.reshape(B, L, H, *sides).swapaxes(0, 1)

    def counts(self) -> Counter:
        """Operations of one image by (part, operator), as fvcore names and counts them: a
        multiply-add is one, a layer norm five an element."""
        D, L, H, h = self.width, self.depth, self.num_heads, int(self.width * self.mlp_ratio)
        n, up = self.sides[-1], self.upstream
        N, N_up, C, total = n * n + 1, up * up + 1, L * H, Counter()
        if self.t2t:
            part, widths = "tokens_to_token", (3 * self.split.kernel ** 2, 9 * TOKEN_WIDTH)
            for side, c in zip(self.sides, widths):
                T, d = side * side, TOKEN_WIDTH
                total[part, "linear"] += T * (3 * c * d + 3 * d * d)
                total[part, "einsum"] += T * (4 * d * FEATURES + FEATURES)
                total[part, "layer_norm"] += 5 * T * (c + d)
            total[part, "linear"] += n * n * widths[1] * D
        else:
            total["patch_embed", "conv"] = n * n * 3 * self.split.kernel ** 2 * D
        context = CONTEXT if up and self.feature_reuse else 0
        for part in (f"blocks_{i}" for i in range(L)):
            total[part, "linear"] = N * (4 * D * D + (D + context) * h + h * D)
            total[part, "matmul"] = 2 * N * N * D
            total[part, "layer_norm"] = 5 * N * (2 * D + context)
            if context:
                total[part, "linear"] += N_up * CONTEXT_HIDDEN * (D + CONTEXT)
                total[part, "layer_norm"] += 5 * N_up * D
                total[part, "upsample_nearest2d"] = CONTEXT * 4 * up * up
        if up and self.relation_reuse:
            total["relation_reuse_conv", "conv"] = N_up * N_up * 6 * C * C
            total["relation_reuse_conv", "upsample_nearest2d"] = C * (N_up + N) * 4 * up * up
        for part, operator in [key for key in total if key[1] == "upsample_nearest2d"]:
            # one an output of the first step, and one an input of the second
            total[part, "adaptive_avg_pool2d"] = total[part, operator]
        total["norm", "layer_norm"] = 5 * N * D
        total["head", "linear"] = D * self.num_classes
        return total

    def macs(self) -> dict[str, int]:
        """`counts` by part."""
        return sums((part, count) for (part, _), count in self.counts().items())


def sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Name -> the sum of its counts."""
    total = Counter()
    for name, count in pairs:
        total[name] += count
    return dict(total)
