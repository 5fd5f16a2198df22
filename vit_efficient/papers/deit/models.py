"""DeiT (ICML 2021, arXiv 2012.12877), plain and distilled: the ground of Scala, DVT and SViTE.

Scala cuts widths out of this module, SViTE masks its weights, and both take over its names, which
are those of the authors' state_dict. The maker `deit` checks what does not fit together, VARIANTS
gives the official names:

    model = create_model("deit_small_patch16_224", num_classes=10)
    model = create_model("deit", width=96, depth=4, num_heads=3, patch_size=8, image_size=32)
"""
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.layers.attention import Attention
from vit_efficient.layers.blocks import drop_path, linear_rates, run_blocks
from vit_efficient.layers.mlp import Mlp
from vit_efficient.layers.norm import LayerNorm
from vit_efficient.layers.patch import PatchEmbed
from vit_efficient.layers.pool import sum_tokens
from vit_efficient.seams.model import Model
from vit_efficient.settings.values import Count, Positive, Rate

EPSILON = 1e-6


class Block(nn.Module):
    """Pre-norm attention and MLP: tokens [B, N, D] -> [B, N, D]."""
    num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    epsilon: float
    drop: float
    attn_drop: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
        norm = partial(LayerNorm, self.epsilon, dtype=self.dtype)
        attention = Attention(self.num_heads, qkv_bias=self.qkv_bias, dtype=self.dtype,
                              attn_drop=self.attn_drop, drop=self.drop, name="attn")
        x = x + drop_path(self, attention(norm(name="norm1")(x), train), rate, train)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, drop=self.drop, name="mlp")
        return x + drop_path(self, mlp(norm(name="norm2")(x), train), rate, train)


class DeiT(Model, nn.Module):
    """Images [B, S, S, 3] -> logits float32 [B, K]; with `num_classes=0` the features [B, D].

    A distilled model has a second token and a second head: it returns the pair of logits (class,
    distillation) in training and their mean in evaluation. `global_pool` "avg" classifies the mean
    of the patch tokens, then `class_token` may be False; `no_embed_class` adds positions to the
    patch tokens alone. `cls_std` is the class token's initial deviation.
    """
    width: int
    depth: int
    num_heads: int
    num_classes: int = 1000
    image_size: int = 224
    patch_size: int = 16
    mlp_ratio: float = 4.0
    distilled: bool = False
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    qkv_bias: bool = True
    global_pool: str = "token"
    class_token: bool = True
    no_embed_class: bool = False
    epsilon: float = EPSILON
    cls_std: float = 0.02

    no_decay: ClassVar[tuple[str, ...]] = ("cls_token", "dist_token", "pos_embed")
    order: ClassVar[tuple[str, ...]] = (
        "cls_token", "pos_embed", "dist_token", "patch_embed", "blocks", "norm1", "attn", "qkv",
        "proj", "norm2", "mlp", "fc1", "fc2", "norm", "fc_norm", "head", "head_dist")
    optional: ClassVar[dict[str, str]] = {"dist_token": "distilled", "head_dist": "distilled"}

    @property
    def prefix(self) -> int:
        """Tokens before the patches': the class token and the distillation token."""
        return self.class_token + self.distilled

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False) -> dict:
        """`logits`, what the model returns; `heads`, each head's logits [B, K]; `patch_embed`
        [B, P, D]; `tokens_in` [B, N, D], the first block's input; `tokens` [B, N, D] after the
        last norm."""
        if images.shape[1:3] != (self.image_size,) * 2:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels: this model was made for "
                f"image_size = {self.image_size}; layers.position.resize_bicubic gives its "
                f"pos_embed another grid")
        patches = PatchEmbed(self.width, self.patch_size, self.patch_size, dtype=self.dtype,
                             name="patch_embed")(images)
        embedded = nn.Dropout(self.drop_rate, deterministic=not train)(self._embed(patches))
        block = dict(num_heads=self.num_heads, mlp_ratio=self.mlp_ratio, qkv_bias=self.qkv_bias,
                     epsilon=self.epsilon, drop=self.drop_rate, attn_drop=self.attn_drop_rate,
                     dtype=self.dtype)
        x = run_blocks(self, Block, block, embedded, linear_rates(self.drop_path, self.depth),
                       train, scan=self.scan, remat=self.remat)
        norm = lambda x: x
        if self.global_pool == "token":
            norm = LayerNorm(self.epsilon, dtype=self.dtype, name="norm")
        heads = self._heads(x, norm)
        logits = heads[0]
        if self.distilled:
            logits = heads if train else (heads[0] + heads[1]) / 2
        return {"logits": logits, "heads": heads, "patch_embed": patches, "tokens_in": embedded,
                "tokens": norm(x)}

    def _embed(self, patches: jax.Array) -> jax.Array:
        """Positions and prefix tokens: [B, P, D] -> [B, N, D]."""
        (B, P, D), normal = patches.shape, nn.initializers.normal
        tokens = {"cls_token": self.cls_std} if self.class_token else {}
        tokens |= {"dist_token": 0.02} if self.distilled else {}
        tokens = [jnp.broadcast_to(self.param(name, normal(std), (1, 1, D)), (B, 1, D))
                  for name, std in tokens.items()]
        length = P if self.no_embed_class else P + self.prefix
        table = self.param("pos_embed", normal(0.02), (1, length, D)).astype(self.dtype)
        if self.no_embed_class:
            patches = patches + table
        x = jnp.concatenate([*(token.astype(self.dtype) for token in tokens), patches], 1)
        return x if self.no_embed_class else x + table

    def _heads(self, x: jax.Array, norm: Callable) -> tuple[jax.Array, ...]:
        """Logits [B, K] in float32 of each head, from the tokens [B, N, D] before the last norm,
        which only those that a head reads need."""
        position, average, heads = jnp.arange(x.shape[1]), self.global_pool == "avg", []
        for i, name in enumerate(["head", "head_dist"][:1 + self.distilled]):
            chosen = position >= self.prefix if average else position == i
            pooled = norm(sum_tokens(x, chosen)).astype(jnp.float32)
            if average:
                pooled = LayerNorm(self.epsilon, name="fc_norm")(pooled / chosen.sum())
            if self.num_classes:
                init = nn.initializers.normal(0.02)
                pooled = nn.Dense(self.num_classes, kernel_init=init, name=name)(pooled)
            heads.append(pooled)
        return tuple(heads)

    def macs(self) -> dict[str, int]:
        """Multiply-adds of one image by part: convolution, linear layers, both attention
        products."""
        D, P = self.width, (self.image_size // self.patch_size) ** 2
        N, hidden = P + self.prefix, int(D * self.mlp_ratio)
        block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * hidden
        counts = {"patch_embed": P * D * 3 * self.patch_size ** 2}
        counts |= {f"blocks_{i}": block for i in range(self.depth)} | {"head": D * self.num_classes}
        return counts | ({"head_dist": D * self.num_classes} if self.distilled else {})


def check_heads(width: int, num_heads: int) -> None:
    """ValueError unless `num_heads` divides `width`."""
    if width % num_heads:
        raise ValueError(f"model.num_heads = {num_heads}: must divide model.width = {width}")


def check_patches(image_size: int, patch_size: int) -> None:
    """ValueError unless `patch_size` divides the image's side."""
    if image_size % patch_size:
        near = max(round(image_size / patch_size), 1) * patch_size
        raise ValueError(f"data.image_size = {image_size}: must be a multiple of model.patch_size "
                         f"= {patch_size}, the nearest is {near}")


def deit(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *,
         width: Count = 384, depth: Count = 12, num_heads: Count = 6, patch_size: Count = 16,
         mlp_ratio: Positive = 4.0, qkv_bias: bool = True, distilled: bool = False,
         drop_rate: Rate = 0.0, attn_drop_rate: Rate = 0.0, drop_path: Rate = 0.1,
         scan: bool = False, remat: bool = False) -> DeiT:
    """A DeiT of any size; `num_heads` divides `width` and `patch_size` the image's side, else
    ValueError."""
    check_heads(width, num_heads)
    check_patches(image_size, patch_size)
    return DeiT(width=width, depth=depth, num_heads=num_heads, num_classes=num_classes,
                image_size=image_size, patch_size=patch_size, mlp_ratio=mlp_ratio,
                distilled=distilled, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate,
                drop_path=drop_path, scan=scan, remat=remat, dtype=jnp.dtype(dtype),
                qkv_bias=qkv_bias)


# Width and heads.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
VARIANTS = {"deit": deit} | {
    f"deit_{size}{'_distilled' if distilled else ''}_patch16_{side}": partial(
        deit, image_size=side, width=width, num_heads=heads, distilled=distilled)
    for size, (width, heads) in SIZES.items() for distilled in (False, True)
    for side in ((224, 384) if size == "base" else (224,))}
