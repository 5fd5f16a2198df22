"""DeiT, plain and distilled: the ground of Scala, DVT and SViTE.

Spec svite.md section 2, scala.md section 2 at ratio 1.
"""
from functools import partial
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.layers.attention import Attention
from vit_efficient.layers.blocks import drop_path, linear_rates, run_blocks
from vit_efficient.layers.mlp import Mlp
from vit_efficient.layers.norm import LayerNorm
from vit_efficient.layers.patch import conv, tokens
from vit_efficient.limits import Count, Rate

EPSILON = 1e-6


class PatchEmbed(nn.Module):
    """Image [B, H, W, 3] -> tokens [B, N, D] of square patches, row by row."""
    width: int
    patch_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        return tokens(conv(self.width, self.patch_size, self.patch_size, dtype=self.dtype)(images))


class Block(nn.Module):
    """Pre-norm attention and MLP: tokens [B, N, D] -> [B, N, D]."""
    num_heads: int
    mlp_ratio: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
        norm = partial(LayerNorm, EPSILON, dtype=self.dtype)
        attention = Attention(self.num_heads, dtype=self.dtype, name="attn")
        x = x + drop_path(self, attention(norm(name="norm1")(x)), rate, train)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        return x + drop_path(self, mlp(norm(name="norm2")(x)), rate, train)


class DeiT(nn.Module):
    """Images [B, S, S, 3] -> logits float32 [B, K].

    A distilled model has a second token and a second head: it returns the pair of logits (class,
    distillation) in training and their mean in evaluation.
    """
    width: int
    depth: int
    num_heads: int
    num_classes: int = 1000
    image_size: int = 224
    patch_size: int = 16
    mlp_ratio: float = 4.0
    distilled: bool = False
    drop_path: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    knobs: ClassVar[tuple[str, ...]] = ()
    no_decay: ClassVar[tuple[str, ...]] = ("cls_token", "dist_token", "pos_embed")
    order: ClassVar[tuple[str, ...]] = (
        "cls_token", "pos_embed", "dist_token", "patch_embed", "blocks", "norm1", "attn", "qkv",
        "proj", "norm2", "mlp", "fc1", "fc2", "norm", "fc_norm", "head", "head_dist")
    optional: ClassVar[dict[str, str]] = {"dist_token": "distilled", "head_dist": "distilled"}

    @nn.compact
    def __call__(self, images: jax.Array, *,
                 train: bool = False) -> jax.Array | tuple[jax.Array, jax.Array]:
        B, D, init = images.shape[0], self.width, nn.initializers.normal(0.02)
        if images.shape[1:3] != (self.image_size,) * 2:
            raise ValueError(f"images of {images.shape[1]} x {images.shape[2]} pixels: this model "
                             f"was made for image_size = {self.image_size}")
        embed = PatchEmbed(D, self.patch_size, self.dtype, name="patch_embed")
        x = embed(images.astype(self.dtype))
        names = ["cls_token", "dist_token"] if self.distilled else ["cls_token"]
        prefix = [self.param(name, init, (1, 1, D)).astype(self.dtype) for name in names]
        table = self.param("pos_embed", init, (1, x.shape[1] + len(prefix), D))
        x = jnp.concatenate([*(jnp.broadcast_to(token, (B, 1, D)) for token in prefix), x], 1)
        x = x + table.astype(self.dtype)
        block = dict(num_heads=self.num_heads, mlp_ratio=self.mlp_ratio, dtype=self.dtype)
        x = run_blocks(self, Block, block, x, linear_rates(self.drop_path, self.depth), train,
                       scan=self.scan, remat=self.remat)
        x = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        heads = []
        for i, name in enumerate(["head", "head_dist"][:len(prefix)]):
            # A masked sum, not `x[:, i]`: the gradient of a slice costs a TPU step a fifth.
            chosen = (jnp.arange(x.shape[1]) == i).astype(x.dtype)
            token = jnp.einsum("bnd,n->bd", x, chosen).astype(jnp.float32)
            heads.append(nn.Dense(self.num_classes, kernel_init=init, name=name)(token))
        if len(heads) == 1:
            return heads[0]
        return tuple(heads) if train else (heads[0] + heads[1]) / 2

    def macs(self) -> dict[str, int]:
        """Multiply-adds of one image by part, attention products included (spec scala.md 3)."""
        D, heads = self.width, 2 if self.distilled else 1
        P = (self.image_size // self.patch_size) ** 2
        N, hidden = P + heads, int(D * self.mlp_ratio)
        block = N * D * 3 * D + 2 * N * N * D + N * D * D + 2 * N * D * hidden
        counts = {"patch_embed": P * D * 3 * self.patch_size ** 2}
        counts |= {f"blocks_{i}": block for i in range(self.depth)} | {"head": D * self.num_classes}
        return counts | ({"head_dist": D * self.num_classes} if self.distilled else {})


def deit(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *,
         width: Count = 384, depth: Count = 12, num_heads: Count = 6, patch_size: Count = 16,
         distilled: bool = False, drop_path: Rate = 0.1, scan: bool = False,
         remat: bool = False) -> DeiT:
    """A DeiT of any size.

    Raises ValueError unless `num_heads` divides `width` and `patch_size` the image's side.
    """
    if width % num_heads:
        raise ValueError(f"model.num_heads = {num_heads}: must divide model.width = {width}")
    if image_size % patch_size:
        near = max(round(image_size / patch_size), 1) * patch_size
        raise ValueError(f"data.image_size = {image_size}: must be a multiple of "
                         f"model.patch_size = {patch_size}, the nearest is {near}")
    return DeiT(width, depth, num_heads, num_classes, image_size, patch_size, distilled=distilled,
                drop_path=drop_path, scan=scan, remat=remat, dtype=jnp.dtype(dtype))


_SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}
VARIANTS = {"deit": deit} | {
    f"deit_{size}{'_distilled' if distilled else ''}_patch16_{side}": partial(
        deit, image_size=side, width=width, num_heads=heads, distilled=distilled)
    for size, (width, heads) in _SIZES.items() for distilled in (False, True)
    for side in ((224, 384) if size == "base" else (224,))}
