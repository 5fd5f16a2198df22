"""Scala (NeurIPS 2024): one DeiT, of which every uniform slice is a classifier too.

arXiv 2412.04786 and the authors' code, github.com/BeSpontaneous/Scala-pytorch. The weights are one
DeiT's; `ratio` cuts the first or the last channels of every tensor (layers/slimmable.py), and the
cut tensors are a narrow DeiT.
"""
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from vit_efficient.layers import slimmable
from vit_efficient.layers.slimmable import TOLERANCE, Slimmable
from vit_efficient.papers.deit.models import SIZES, DeiT, check_heads, check_patches
from vit_efficient.settings.values import Count, Fraction, Positive, Rate

EPSILON = 1e-5      # of the norms, also at ratio 1, as in the authors' forward pass


class Scala(Slimmable, DeiT):
    """Images [B, S, S, 3] -> logits float32 [B, K] of the sub-net of width `ratio`, as DeiT's.

    The widths run from `smallest_ratio` to `largest_ratio` (the default of `ratio`) in steps of
    `granularity`; `None` allows every ratio up to 1 that leaves each head whole channels, trained
    or not. `sides` "consistent" drops the official distilled model's literal 0.25 and 1.0,
    "first" cuts all sub-nets from the same end; `qkv_slice` "each" cuts queries, keys and values
    apart.
    """
    epsilon: float = EPSILON
    cls_std: float = 1e-6
    smallest_ratio: float = 0.25
    largest_ratio: float = 1.0
    granularity: float | None = 0.0625
    sides: str = "official"
    qkv_slice: str = "flat"

    knobs: ClassVar[tuple[str, ...]] = ("ratio",)

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of the stages, of which a DeiT has one."""
        return (self.num_heads,)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return (self.width,)

    def narrowed(self, ratio: float) -> DeiT:
        """The DeiT with this share of the channels and norms of epsilon 1e-5."""
        options = {field.name: getattr(self, field.name) for field in fields(DeiT)
                   if field.name not in ("parent", "name")}
        return DeiT(**options | dict(width=round(ratio * self.width)), parent=None, name=None)

    def narrow_options(self, ratio: float) -> dict[str, str | int | bool]:
        """By which name and options the zoo makes that DeiT, but for its epsilon."""
        return {"name": "deit", "width": round(ratio * self.width), "depth": self.depth,
                "num_heads": self.num_heads, "patch_size": self.patch_size,
                "distilled": self.distilled}

    def takes_first(self, part: str, ratio: float) -> bool:
        """Which end of the channels `part` of the model keeps at width `ratio`."""
        if self.sides == "official" and self.distilled:
            if part != "patch_embed" and not part.startswith("blocks_"):
                return any(abs(ratio - end) <= TOLERANCE for end in (0.25, 1.0))
        return self.sides == "first" or super().takes_first(part, ratio)

    @property
    def cut_qkv(self) -> Callable:
        """How queries, keys and values are cut."""
        return partial(slimmable.cut_qkv, each=self.qkv_slice == "each")

    def features(self, images: jax.Array, *, train: bool = False,
                 ratio: float | None = None) -> dict:
        """DeiT's features, of the sub-net of width `ratio`."""
        if self.is_initializing() or self.width_ratio(ratio) == 1:
            return super().features(images, train=train)
        return self.narrow_features(images, ratio, train)

    def macs(self, *, ratio: float | None = None) -> dict[str, int]:
        """Multiply-adds of one image by part at width `ratio`."""
        return self.subnet(ratio).macs()

    def flops(self, *, ratio: float | None = None) -> int:
        """The paper's GFLOPs axis times 1e9: the multiply-adds, and 5 operations for each element
        that a layer norm sees."""
        net = self.subnet(ratio)
        tokens = (self.image_size // self.patch_size) ** 2 + self.prefix
        norms = 2 * self.depth * tokens + (1 if self.global_pool == "avg" else tokens)
        return sum(net.macs().values()) + 5 * norms * net.width


def predictor(model: Scala, variables: dict) -> Callable:
    """`predict(images, ratio=None) -> probabilities` float32 [B, K] of images [B, S, S, 3],
    normalised: one set of weights, at whatever width of `model.ratios` is asked for, by default the
    widest. Each width is compiled once."""
    @partial(jax.jit, static_argnames="ratio")
    def at(variables: dict, images: jax.Array, ratio: float) -> jax.Array:
        return jax.nn.softmax(model.apply(variables, images, ratio=ratio))

    def predict(images: jax.Array, ratio: float | None = None) -> jax.Array:
        return at(variables, images, model.width_ratio(ratio))
    return predict


def scala(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *,
          width: Count = 384, depth: Count = 12, num_heads: Count = 6, patch_size: Count = 16,
          mlp_ratio: Positive = 4.0, qkv_bias: bool = True, distilled: bool = False,
          global_pool: Literal["token", "avg"] = "token", class_token: bool = True,
          no_embed_class: bool = False, smallest_ratio: Fraction = 0.25,
          largest_ratio: Fraction = 1.0, granularity: Positive | None = 0.0625,
          sides: Literal["official", "consistent", "first"] = "official",
          qkv_slice: Literal["flat", "each"] = "flat", drop_rate: Rate = 0.0,
          attn_drop_rate: Rate = 0.0, drop_path: Rate = 0.1, scan: bool = False,
          remat: bool = False) -> Scala:
    """A Scala of any size; ValueError for sizes or widths that do not fit together."""
    check_heads(width, num_heads)
    check_patches(image_size, patch_size)
    for key, value, usual in (("global_pool", global_pool, "token"),
                              ("class_token", class_token, True),
                              ("no_embed_class", no_embed_class, False)):
        if distilled and value != usual:
            raise ValueError(f"model.{key} = {value}: a distilled model has only {usual}")
    if not class_token and global_pool == "token":
        raise ValueError("model.class_token = False: needs model.global_pool = avg")
    made = Scala(width=width, depth=depth, num_heads=num_heads, num_classes=num_classes,
                 image_size=image_size, patch_size=patch_size, mlp_ratio=mlp_ratio,
                 distilled=distilled, drop_rate=drop_rate, attn_drop_rate=attn_drop_rate,
                 drop_path=drop_path, scan=scan, remat=remat, dtype=jnp.dtype(dtype),
                 qkv_bias=qkv_bias, global_pool=global_pool, class_token=class_token,
                 no_embed_class=no_embed_class, smallest_ratio=smallest_ratio,
                 largest_ratio=largest_ratio, granularity=granularity, sides=sides,
                 qkv_slice=qkv_slice)
    slimmable.check_widths(made)
    return made


VARIANTS = {"scala": scala} | {
    f"deit_{size}{'_distilled' if distilled else ''}_patch16_{side}_scala": partial(
        scala, image_size=side, width=width, num_heads=heads, distilled=distilled)
    for size, (width, heads) in {"so_tiny": (96, 3), **SIZES}.items()
    for distilled in ((False,) if size == "so_tiny" else (False, True))
    for side in ((224, 384) if size == "base" else (224,))}
