"""SReT (ECCV 2022): a three-stage pyramid whose blocks are applied twice in a row with the same
weights, with sliced self-attention.

arXiv 2111.05297 and the authors' code, github.com/szq0214/SReT. Parameters carry the official
names; slices do not show in them.
"""
from collections.abc import Sequence
from functools import partial
import math
import re
from typing import ClassVar, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.layers.init import torch_default
from vit_efficient.layers.norm import LayerNorm
from vit_efficient.layers.patch import tokens
from vit_efficient.layers.slimmable import Slimmable, check_widths
from vit_efficient.papers.sret.blocks import EPSILON, Drops, Pool, Stage, Stem
from vit_efficient.settings.values import Count, Fraction, Positive, Rate
from vit_efficient.weights import names


def grid_sides(image_size: int, stages: int) -> tuple[int, ...]:
    """Sides of the stages' token grids: ceil(R/8), then halved, rounded up."""
    sides = [-(-image_size // 8)]
    for _ in range(stages - 1):
        sides.append(-(-sides[-1] // 2))
    return tuple(sides)


def drop_path_rates(last: float, depth: Sequence[int],
                    recursive_num: Sequence[int]) -> list[tuple[float, ...]]:
    """Stochastic depth of each stage's distinct blocks: the index counts them, the offset all
    passes, so that `last` is never reached."""
    return [tuple(last * (sum(depth[:s]) + r) / sum(depth) for r in range(count))
            for s, count in enumerate(recursive_num)]


class SReT(Slimmable, nn.Module):
    """Images [B, S, S, 3] -> logits float32 [B, K]; with `num_classes=0` the features [B, C].

    `groups` holds each stage's number of slices in each pass. Passes after the first permute the
    tokens before they slice them, all images alike: `permutation` "random" draws that order anew in
    training and from `permutation_seed` in evaluation, "identity" leaves it out;
    `permutations` gives the orders themselves, int32 [N] each, in the order of the passes.

    At a width `ratio` below 1 it is the SReT with that share of `base_dims`. In training its stem
    then normalises by the batch's own statistics, in evaluation by slices of the full net's running
    ones: exact after the first convolution, whose inputs are the same, and known to be poor after
    the second and the third (slimmable networks keep statistics of each width).
    """
    base_dims: tuple[int, ...]
    heads: tuple[int, ...]
    depth: tuple[int, ...]
    recursive_num: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    mlp_ratio: float
    np_mlp_ratio: float
    num_classes: int = 1000
    image_size: int = 224
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    smallest_ratio: float = 0.25
    granularity: float | None = None

    knobs: ClassVar[tuple[str, ...]] = ("permutation", "permutation_seed", "ratio")
    no_decay: ClassVar[tuple[str, ...]] = ("pos_embed",)
    order: ClassVar[tuple[str, ...]] = (
        "pos_embed", "patch_embed", "conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "transformers",
        "blocks", "norm1", "attn", "qkv", "proj", "norm2", "mlp", "fc1", "fc2", "coefficient1",
        "coefficient2", "coefficient3", "coefficient4", "pools", "conv", "norm", "head")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return tuple(dim * heads for dim, heads in zip(self.base_dims, self.heads))

    @property
    def parts(self) -> int:
        """Those of the heads that leave the stem's first convolution, of half the channels, whole
        ones too."""
        return math.gcd(self.widths[0] // 2, *self.base_dims)

    def narrowed(self, ratio: float) -> "SReT":
        """The SReT with this share of the channels in every head."""
        dims = tuple(round(ratio * dim) for dim in self.base_dims)
        return self.clone(base_dims=dims, granularity=None, parent=None, name=None)

    def narrow_options(self, ratio: float) -> dict[str, str | tuple[int, ...]]:
        """By which name and options the zoo makes that narrow model."""
        return {"name": "sret", "base_dims": self.narrowed(ratio).base_dims}

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False,
                 permutation: Literal["random", "identity"] = "random",
                 permutation_seed: int | jax.Array = 0,
                 permutations: Sequence[jax.Array] | None = None,
                 ratio: float | None = None) -> dict:
        """`logits` [B, K]; `pooled` [B, C], the head's input; `embedded` [B, g, g, C], stage 0's
        input; `grids`, the stages' outputs [B, g, g, C]."""
        if self.width_ratio(ratio) < 1:
            return self.narrow_features(images, ratio, train, permutation=permutation,
                                        permutation_seed=permutation_seed,
                                        permutations=permutations)
        if images.shape[1:3] != (self.image_size,) * 2:
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels: this model was made for "
                f"image_size = {self.image_size}; layers.position.bicubic gives its pos_embed "
                f"another grid")
        x = Stem(self.widths[0], self.dtype, name="patch_embed")(images.astype(self.dtype), train)
        table = self.param("pos_embed", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = embedded = nn.Dropout(self.drop_rate, deterministic=not train)(
            x + table.astype(self.dtype))
        orders = self._orders(train, permutation, permutation_seed, permutations)
        rates, grids = drop_path_rates(self.drop_path, self.depth, self.recursive_num), []
        for s, groups in enumerate(self.groups):
            if s:
                x = Pool(self.widths[s], self.dtype, name=f"pools_{s - 1}")(x)
            stage = Stage(num_heads=self.heads[s], mlp_ratio=self.mlp_ratio,
                          np_mlp_ratio=self.np_mlp_ratio, groups=groups, rates=rates[s],
                          drops=Drops(self.drop_rate, self.attn_drop_rate), scan=self.scan,
                          remat=self.remat, dtype=self.dtype, name=f"transformers_{s}")
            x = stage(tokens(x), orders[s], train).reshape(x.shape)
            grids.append(x)
        # mean over tokens and the classifier in float32; the mean comes before the norm
        pooled = LayerNorm(EPSILON, name="norm")(x.astype(jnp.float32).mean((1, 2)))
        logits = pooled
        if self.num_classes:
            kernel_init, bias_init = torch_default(self.widths[-1])
            logits = nn.Dense(self.num_classes, kernel_init=kernel_init, bias_init=bias_init,
                              name="head")(pooled)
        return {"logits": logits, "pooled": pooled, "embedded": embedded, "grids": tuple(grids)}

    def permuted(self) -> list[tuple[str, int]]:
        """Official name and number of tokens of each pass that permutes, in their order."""
        sides = grid_sides(self.image_size, len(self.groups))
        return [(f"transformers.{s}.blocks.{2 * (r * len(groups) + i)}", sides[s] ** 2)
                for s, groups in enumerate(self.groups) for r in range(self.recursive_num[s])
                for i, count in enumerate(groups) if i and count > 1]

    def _orders(self, train: bool, permutation: str, seed: int | jax.Array,
                given: Sequence[jax.Array] | None) -> list[jax.Array | None]:
        """Each stage's permutations int32 [distinct blocks, passes that permute, N], or `None`."""
        needed = self.permuted()
        if permutation not in ("random", "identity"):
            raise ValueError(f"permutation = {permutation}: allowed: identity, random")
        if given is not None and [len(order) for order in given] != [N for _, N in needed]:
            raise ValueError(f"permutations of {[len(order) for order in given]} tokens: must be "
                             f"of {[N for _, N in needed]}")
        if not needed or given is None and permutation == "identity":
            return [None] * len(self.groups)
        key = None if given else self.make_rng("dropout") if train else jax.random.key(seed)
        orders, rest = [], list(given or ())
        for s, side in enumerate(grid_sides(self.image_size, len(self.groups))):
            passes = sum(count > 1 for count in self.groups[s][1:])
            shape = (self.recursive_num[s], passes, side ** 2)
            if not passes:
                orders.append(None)
            elif given:
                count = shape[0] * passes
                orders.append(jnp.stack(rest[:count]).reshape(shape))
                rest = rest[count:]
            else:
                orders.append(jax.random.permutation(
                    jax.random.fold_in(key, s), jnp.broadcast_to(jnp.arange(shape[2]), shape),
                    axis=2, independent=True))
        return orders

    def official_names(self, path: tuple[str, ...]) -> tuple[str, ...]:
        """Names in the official state_dict of the array at `path` (without its collection): a
        shared block is listed once a pass."""
        name = names.official(path)
        found = re.fullmatch(r"(transformers\.(\d+)\.blocks\.)(\d+)(\..+)", name)
        if not found or int(found[3]) % 2:
            return (name,)
        first = int(found[3])
        return tuple(f"{found[1]}{first + 2 * i}{found[4]}"
                     for i in range(len(self.groups[int(found[2])])))

    def macs(self, *, ratio: float | None = None, **knobs) -> dict[str, int]:
        """Multiply-adds of one image by part: convolutions, linear layers, both attention
        products."""
        widths, sides = self.subnet(ratio).widths, grid_sides(self.image_size, len(self.groups))
        pixels = [(-(-self.image_size // stride)) ** 2 for stride in (2, 4, 8)]
        outputs = (widths[0] // 2, widths[0], widths[0])
        counts = {"patch_embed": sum(n * 9 * into * out for n, into, out in
                                     zip(pixels, (3, *outputs), outputs))}
        for s, (C, side) in enumerate(zip(widths, sides)):
            N = side ** 2
            hidden = int(C * self.mlp_ratio) + int(C * self.np_mlp_ratio)
            counts[f"transformers_{s}"] = self.recursive_num[s] * sum(
                N * C * (4 * C + 2 * hidden + 2 * (N // count)) for count in self.groups[s])
            if s:
                counts[f"pools_{s - 1}"] = N * 9 * C
        return counts | {"head": widths[-1] * self.num_classes}


def sret(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *,
         base_dims: tuple[Count, ...] = (32, 32, 32), heads: tuple[Count, ...] = (2, 4, 8),
         depth: tuple[Count, ...] = (4, 10, 6), recursive_num: tuple[Count, ...] = (2, 5, 3),
         groups1: tuple[Count, ...] | None = None,
         groups2: tuple[Count | tuple[Count, ...], ...] | None = None,
         mlp_ratio: Positive = 3.6, np_mlp_ratio: Positive = 1.0, drop_rate: Rate = 0.0,
         attn_drop_rate: Rate = 0.0, drop_path: Rate = 0.1, scan: bool = False,
         remat: bool = False, smallest_ratio: Fraction = 0.25,
         granularity: Positive | None = None) -> SReT:
    """SReT of any size; the options are the official constructor's, each with one entry a stage,
    but for the last two: at which widths objective "scala" trains it.

    `groups1` cuts the tokens in the first pass of a block, `groups2` in all later ones (or an entry
    lists one number a later pass); `None` cuts nothing. ValueError for sizes that do not fit.
    """
    groups1, groups2 = groups1 or (1,) * len(depth), groups2 or (1,) * len(depth)
    lists = dict(base_dims=base_dims, heads=heads, recursive_num=recursive_num, groups1=groups1,
                 groups2=groups2)
    for key, value in lists.items():
        if len(value) != len(depth):
            raise ValueError(f"model.{key} = {value}: must have one entry a stage, as model.depth "
                             f"= {depth} has {len(depth)}")
    groups = tuple(_passes(s, *sizes) for s, sizes in enumerate(
        zip(depth, recursive_num, groups1, groups2)))
    widths = [dim * count for dim, count in zip(base_dims, heads)]
    _check(image_size, widths, groups)
    for key, ratio in (("mlp_ratio", mlp_ratio), ("np_mlp_ratio", np_mlp_ratio)):
        if int(min(widths) * ratio) < 1:
            raise ValueError(f"model.{key} = {ratio}: a stage of {min(widths)} channels needs at "
                             f"least {1 / min(widths):g}")
    made = SReT(base_dims=tuple(base_dims), heads=tuple(heads), depth=tuple(depth),
                recursive_num=tuple(recursive_num), groups=groups, mlp_ratio=mlp_ratio,
                np_mlp_ratio=np_mlp_ratio, num_classes=num_classes, image_size=image_size,
                drop_rate=drop_rate, attn_drop_rate=attn_drop_rate, drop_path=drop_path, scan=scan,
                remat=remat, dtype=jnp.dtype(dtype), smallest_ratio=smallest_ratio,
                granularity=granularity)
    if granularity:
        check_widths(made)
    return made


def _passes(stage: int, depth: int, blocks: int, first: int,
            later: int | Sequence[int]) -> tuple[int, ...]:
    """The number of slices in each pass of a block of this stage."""
    if depth % blocks:
        near = max(round(depth / blocks), 1) * blocks
        raise ValueError(f"model.depth = {depth} in stage {stage}: must be a multiple of "
                         f"model.recursive_num = {blocks}, the nearest is {near}")
    loops = depth // blocks
    later = (later,) * (loops - 1) if isinstance(later, int) else tuple(later)
    if len(later) != loops - 1:
        raise ValueError(f"model.groups2 = {later} in stage {stage}: its blocks have {loops} "
                         f"passes, so it must be one number or list {loops - 1}")
    return (first, *later)


def _check(image_size: int, widths: Sequence[int], groups: Sequence[Sequence[int]]) -> None:
    """Raises ValueError for sizes that do not fit one another."""
    if image_size % 8:
        raise ValueError(f"data.image_size = {image_size}: must be a multiple of 8, the nearest is "
                         f"{max(round(image_size / 8), 1) * 8}")
    if widths[0] % 2:
        raise ValueError(f"model.base_dims, model.heads = {widths[0]} channels in stage 0: the "
                         f"stem needs an even number")
    for s, (before, after) in enumerate(zip(widths, widths[1:]), 1):
        if after % before:
            raise ValueError(f"model.base_dims, model.heads = {after} channels in stage {s}: must "
                             f"be a multiple of stage {s - 1}'s {before}")
    for s, side in enumerate(grid_sides(image_size, len(widths))):
        for i, count in enumerate(groups[s]):
            if side ** 2 % count:
                near = min((n for n in range(1, side ** 2 + 1) if side ** 2 % n == 0),
                           key=lambda n: abs(n - count))
                raise ValueError(
                    f"model.groups{min(i, 1) + 1} = {count} in stage {s}: must divide its "
                    f"{side ** 2} tokens at image_size = {image_size}, the nearest is {near}")


_SLICES = dict(groups1=(8, 4, 1), groups2=(2, 1, 1))
_SIZES = {
    "t": partial(sret, mlp_ratio=3.6),
    "lt": partial(sret, mlp_ratio=4.0),
    # 0.2: an earlier revision of the official constructors
    "s": partial(sret, base_dims=(42, 42, 42), heads=(3, 6, 12), mlp_ratio=3.0, np_mlp_ratio=2.0,
                 drop_path=0.2),
}
# "distill" is another way to train the same network
VARIANTS = {"sret": sret} | {
    f"sret_{size}{suffix}": partial(make, **options)
    for size, make in _SIZES.items() for suffix, options in {
        "": _SLICES, "_distill": _SLICES, "_wo_slice": {}, "_wo_slice_distill": {},
        "_wo_slice_distill_384": dict(image_size=384),
        "_wo_slice_distill_512": dict(image_size=512),
    }.items()
} | {
    "sret_lt_16_14_1": partial(_SIZES["lt"], groups1=(16, 14, 1), groups2=(1, 1, 1)),
    "sret_s_wo_slice_finetune_384": partial(_SIZES["s"], image_size=384),
}
