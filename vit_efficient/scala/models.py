"""Scala (NeurIPS 2024): one DeiT, of which every uniform slice is a classifier too.

arXiv 2412.04786 and the authors' code, github.com/BeSpontaneous/Scala-pytorch. The weights are one
DeiT's; `ratio` cuts the first or the last channels of every tensor, and the cut tensors are a
narrow DeiT.
"""
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import ClassVar, Literal

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from vit_efficient import interop
from vit_efficient.deit.models import SIZES, DeiT, check_heads, check_patches
from vit_efficient.limits import Count, Fraction, Positive, Rate

EPSILON = 1e-5      # of the norms, also at ratio 1, as in the authors' forward pass
TOLERANCE = 1e-6    # a ratio this near to a width means that width


def cut(array: jax.Array, shape: tuple[int, ...], first: bool) -> jax.Array:
    """The first or else the last entries of every axis of `array`, as many as `shape` says."""
    return array[tuple(slice(0, n) if first else slice(have - n, have)
                       for have, n in zip(array.shape, shape, strict=True))]


class Scala(DeiT):
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
    def head_width(self) -> int:
        """Channels of a head of the full model."""
        return self.width // self.num_heads

    @property
    def ratios(self) -> tuple[float, ...]:
        """Every width that `ratio` may be, smallest first."""
        low, high, step = 1, self.head_width, 1
        if self.granularity:
            low, high, step = (round(ratio * self.head_width) for ratio in
                               (self.smallest_ratio, self.largest_ratio, self.granularity))
        return tuple(channels / self.head_width for channels in range(low, high + 1, step))

    def width_ratio(self, ratio: float | None) -> float:
        """The member of `ratios` that `ratio` means; ValueError names the members if there is
        none."""
        ratio = self.largest_ratio if ratio is None else ratio
        near = min(self.ratios, key=lambda width: abs(width - ratio))
        if not abs(near - ratio) <= TOLERANCE:
            heads = f"the {self.num_heads} heads of width {self.width} allow"
            allowed = (f"{heads} multiples of 1/{self.head_width}" if self.granularity is None else
                       f"the widths are {', '.join(f'{width:g}' for width in self.ratios)}; with "
                       f"model.granularity = None {heads} every multiple of 1/{self.head_width}")
            raise ValueError(f"ratio = {ratio}: {allowed}; the nearest is {near:g}")
        return near

    def subnet(self, ratio: float | None = None) -> DeiT:
        """The narrow DeiT whose weights are `sliced(params, ratio)`: as many heads, and the
        attention scale of the full head width."""
        options = {field.name: getattr(self, field.name) for field in fields(DeiT)
                   if field.name not in ("parent", "name")}
        channels = round(self.width_ratio(ratio) * self.head_width)
        return DeiT(**options | dict(width=channels * self.num_heads, scale=self.head_width ** -0.5,
                                     parent=None, name=None))

    def sliced(self, params: dict, ratio: float | None = None) -> dict:
        """The cut of width `ratio` through every array of `params`, jax or numpy."""
        ratio = self.width_ratio(ratio)
        shapes = traverse_util.flatten_dict(interop.shapes(self.subnet(ratio))["params"])
        slices = {}
        for path, array in traverse_util.flatten_dict(params).items():
            first, shape = self._takes_first(path[0], ratio), shapes[path].shape
            if "qkv" in path and self.qkv_slice == "each":
                parts = array.reshape(*array.shape[:-1], 3, array.shape[-1] // 3)
                slices[path] = cut(parts, (*shape[:-1], 3, shape[-1] // 3), first).reshape(shape)
            else:
                # Flat: as many consecutive rows of the stacked queries, keys and values.
                slices[path] = cut(array, shape, first)
        return traverse_util.unflatten_dict(slices)

    def _takes_first(self, part: str, ratio: float) -> bool:
        """Which end of the channels `part` of the model keeps."""
        ends = (self.smallest_ratio, self.largest_ratio)
        if self.sides == "official" and self.distilled:
            if part != "patch_embed" and not part.startswith("blocks_"):
                ends = (0.25, 1.0)
        return self.sides == "first" or any(abs(ratio - end) <= TOLERANCE for end in ends)

    def __call__(self, images: jax.Array, *, train: bool = False,
                 ratio: float | None = None) -> jax.Array | tuple[jax.Array, jax.Array]:
        return self.features(images, train=train, ratio=ratio)["logits"]

    def features(self, images: jax.Array, *, train: bool = False,
                 ratio: float | None = None) -> dict:
        """DeiT's features, of the sub-net of width `ratio`."""
        if self.is_initializing() or self.width_ratio(ratio) == 1:
            return super().features(images, train=train)
        drops = self.drop_rate or self.attn_drop_rate or self.drop_path
        rngs = {"dropout": self.make_rng("dropout")} if train and drops else {}
        return self.subnet(ratio).apply({"params": self.sliced(self.variables["params"], ratio)},
                                        images, train=train, rngs=rngs, method="features")

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


def standalone(model: Scala, variables: dict, ratio: float) -> tuple[DeiT, dict]:
    """The sub-net of width `ratio` as a DeiT of its own, whose queries have the ordinary scale
    (head width ** -0.5): `(net, its variables as numpy arrays)`.

    It has the heads of the full model and epsilon 1e-5: what stores its weights stores
    `net.num_heads` and `net.epsilon` beside them.
    """
    net = model.subnet(ratio)
    params = traverse_util.flatten_dict(jax.tree.map(np.asarray, model.sliced(
        variables["params"], ratio)))
    scales = np.ones(3 * net.width, np.float32)
    scales[:net.width] = (net.width / model.width) ** 0.5
    params = {path: array * scales if "qkv" in path else array for path, array in params.items()}
    return net.clone(scale=None), {"params": traverse_util.unflatten_dict(params)}


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
    _check_widths(smallest_ratio, largest_ratio, granularity, width // num_heads)
    for key, value, usual in (("global_pool", global_pool, "token"),
                              ("class_token", class_token, True),
                              ("no_embed_class", no_embed_class, False)):
        if distilled and value != usual:
            raise ValueError(f"model.{key} = {value}: a distilled model has only {usual}")
    if not class_token and global_pool == "token":
        raise ValueError("model.class_token = False: needs model.global_pool = avg")
    return Scala(width, depth, num_heads, num_classes, image_size, patch_size, mlp_ratio, distilled,
                 drop_rate, attn_drop_rate, drop_path, scan, remat, jnp.dtype(dtype), qkv_bias,
                 global_pool, class_token, no_embed_class, smallest_ratio=smallest_ratio,
                 largest_ratio=largest_ratio, granularity=granularity, sides=sides,
                 qkv_slice=qkv_slice)


def _check_widths(smallest: float, largest: float, granularity: float | None,
                  head_width: int) -> None:
    if not 0 < smallest < largest <= 1:
        raise ValueError(f"model.smallest_ratio = {smallest}: must be above 0 and below "
                         f"model.largest_ratio = {largest}")
    ratios = {"smallest_ratio": smallest, "largest_ratio": largest}
    if granularity:
        ratios = {"granularity": granularity} | ratios
    for key, ratio in ratios.items():
        channels = ratio * head_width
        if round(channels) < 1 or abs(channels - round(channels)) > TOLERANCE * head_width:
            raise ValueError(
                f"model.{key} = {ratio}: heads of {head_width} channels allow multiples of "
                f"1/{head_width}, the nearest is {max(round(channels), 1) / head_width:g}")
        if granularity and round(channels) % round(granularity * head_width):
            near = max(round(ratio / granularity), 1) * granularity
            raise ValueError(f"model.{key} = {ratio}: must be a multiple of model.granularity = "
                             f"{granularity}, the nearest is {near:g}")


VARIANTS = {"scala": scala} | {
    f"deit_{size}{'_distilled' if distilled else ''}_patch16_{side}_scala": partial(
        scala, image_size=side, width=width, num_heads=heads, distilled=distilled)
    for size, (width, heads) in {"so_tiny": (96, 3), **SIZES}.items()
    for distilled in ((False,) if size == "so_tiny" else (False, True))
    for side in ((224, 384) if size == "base" else (224,))}
