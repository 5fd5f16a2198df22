"""As-ViT (ICLR 2022): a searched four-stage ViT; the stem's stride sets the number of tokens.

arXiv 2202.11921 and the authors' PyTorch code, which has stride 4 alone: how the other strides pad
and cut windows is ours. Parameters carry the official names; every tokenization shares them.
"""
from functools import partial
import math
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.layers.attention import Attention
from vit_efficient.layers.blocks import drop_path, linear_rates, run_blocks
from vit_efficient.layers.linear import Dense
from vit_efficient.layers.mlp import Mlp
from vit_efficient.layers.norm import LayerNorm
from vit_efficient.layers.patch import conv, tokens
from vit_efficient.layers.position import resize_table
from vit_efficient.layers.slimmable import Slimmable, check_widths
from vit_efficient.papers.asvit import topology
from vit_efficient.papers.asvit.topology import Topology
from vit_efficient.settings.values import Count, Fraction, Positive, Rate

EPSILON = 1e-5


def auto_dilation(kernel: int, stride: int) -> int:
    """The dilation at which the stem's kernel spans as many strides as at stride 4 (a
    kernel of 4, as in the figure of the authors' README: 5 at stride 16, 2 at stride 8)."""
    return max(1, (kernel * stride // 4 - 1) // (kernel - 1))


def same_padding(side: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after an axis so that `ceil(side / stride)` outputs fit (XLA's SAME)."""
    extent = (kernel - 1) * dilation + 1
    total = max((-(-side // stride) - 1) * stride + extent - side, 0)
    return total // 2, total - total // 2


def grid_sides(side: int, stride: int) -> tuple[int, ...]:
    """Sides of the four token grids of an image of `side` pixels, when the stem has that stride."""
    sides = [-(-side // stride)]
    for _ in range(3):
        sides.append(-(-sides[-1] // 2))
    return tuple(sides)


def largest_split(split: int, side: int) -> int:
    """The windows a side that a coarser grid has: the largest divisor of `side` up to `split`."""
    return next(n for n in range(min(split, side), 0, -1) if side % n == 0)


def patches(grid: jax.Array, kernel: int) -> jax.Array:
    """Patches at stride 2, zero-padded, their values pixel by pixel:
    [B, r, r, d] -> [B, ceil(r/2)^2, kernel^2 * d]."""
    r = grid.shape[1]
    pad, out = same_padding(r, kernel, 2), -(-r // 2)
    grid = jnp.pad(grid, ((0, 0), pad, pad, (0, 0)))
    end = 2 * out - 1
    parts = [grid[:, i:i + end:2, j:j + end:2] for i in range(kernel) for j in range(kernel)]
    return jnp.concatenate(parts, -1).reshape(grid.shape[0], out * out, -1)


def pixel_first(params: dict, kernel: int) -> dict:
    """Stored parameters, whose first axis is a patch's values channel by channel, in the order of
    `patches`: [d * kernel^2, ...] -> [kernel^2 * d, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, kernel ** 2, *leaf.shape[1:])
                        .swapaxes(0, 1).reshape(leaf.shape), params)


class Stem(nn.Module):
    """Images [B, S, S, 3] -> tokens [B, N, C]: a convolution, then a norm."""
    width: int
    kernel: int
    norm: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array, stride: int, dilation: int) -> jax.Array:
        pad = same_padding(images.shape[1], self.kernel, stride, dilation)
        images = jnp.pad(images, ((0, 0), pad, pad, (0, 0)))
        # Only every `step`-th pixel is read: on these alone the convolution is small and, mostly,
        # without the dilation that compilers are slow at.
        step = math.gcd(stride, dilation)
        x = conv(self.width, self.kernel, stride // step, dilation=dilation // step,
                 dtype=self.dtype)(images[:, ::step, ::step])
        x = tokens(x)
        return LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x) if self.norm else x


class Block(nn.Module):
    """Windowed attention and its MLPs: tokens [B, N, D] -> [B, N, D]."""
    num_heads: int
    split: int
    mlp_ratio: int
    num_mlps: int
    qkv_bias: bool
    qk_scale: float | None
    drop: float
    attn_drop: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, rate: float | jax.Array, train: bool) -> jax.Array:
        B, N, D = x.shape
        side = round(N ** 0.5)
        split = largest_split(self.split, side)
        w = side // split
        windows = LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        if split > 1:
            windows = windows.reshape(B, split, w, split, w, D).swapaxes(2, 3)
            windows = windows.reshape(B, split ** 2, w * w, D)
        out = Attention(num_heads=self.num_heads, head_width=D // self.num_heads,
                        scale=self.qk_scale, qkv_bias=self.qkv_bias, dtype=self.dtype,
                        attn_drop=self.attn_drop, drop=self.drop, name="attn")(windows, train)
        if split > 1:
            out = out.reshape(B, split, split, w, w, D).swapaxes(2, 3).reshape(B, N, D)
        x = x + drop_path(self, out, rate, train)
        for m in range(self.num_mlps):
            out = LayerNorm(EPSILON, dtype=self.dtype, name=f"mlps_{m}_0")(x)
            out = Mlp(D * self.mlp_ratio, self.dtype, drop=self.drop, name=f"mlps_{m}_1")(
                out, train)
            x = x + drop_path(self, out, rate, train)
        return x


class Merge(nn.Module):
    """Token merging between stages: [B, r^2, d] -> [B, ceil(r/2)^2, width].

    The norm sees the padding's zeros, so the layer is no ordinary convolution. The weights are
    reordered, not the patches: 0.6 of the time on a TPU, by its compiler's estimate.
    """
    width: int
    kernel: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        side = round(x.shape[1] ** 0.5)
        x = patches(x.reshape(x.shape[0], side, side, -1), self.kernel)

        def reduce(merge: Merge, x: jax.Array) -> jax.Array:
            x = LayerNorm(EPSILON, dtype=self.dtype, name="norm")(x)
            init = nn.initializers.normal(0.02)
            return Dense(self.width, use_bias=False, dtype=self.dtype, kernel_init=init,
                         name="reduction")(x)
        # Initialising is said only then: else it is taken for one where any collection may change.
        return nn.map_variables(reduce, "params", partial(pixel_first, kernel=self.kernel),
                                init=self.is_initializing())(self, x)


class Stage(nn.Module):
    """Equal blocks on one grid, then (`merge = (width, kernel)`) the way into the next."""
    block: dict
    rates: tuple[float, ...]
    merge: tuple[int, int] | None
    scan: bool
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Tokens -> (tokens of this grid, tokens for the next stage)."""
        x = run_blocks(self, Block, dict(self.block), x, list(self.rates), train,
                       scan=self.scan, remat=self.remat)
        return x, Merge(*self.merge, self.dtype, name="downsample")(x) if self.merge else x


class AsViT(Slimmable, nn.Module):
    """Images [B, S, S, 3] -> logits float32 [B, K]; with `num_classes=0` the tanh vector [B, D].

    `stride` and `dilation` (`None`: the auto rule) are the tokenization; (4, 1) is the official
    model. The position table is stored once, for the grid at stride 4 and `image_size`, and
    averaged or resized for others. At a width `ratio` below 1 it is the As-ViT of the same topology
    whose first stage has that share of the channels.
    """
    arch: Topology
    num_classes: int = 1000
    image_size: int = 224
    ape: bool = False
    patch_norm: bool = True
    qkv_bias: bool = True
    qk_scale: float | None = None
    num_mlps: tuple[int, ...] = (1, 1, 1, 1)
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32
    smallest_ratio: float = 0.25
    granularity: float | None = None

    knobs: ClassVar[tuple[str, ...]] = ("stride", "dilation", "ratio")
    no_decay: ClassVar[tuple[str, ...]] = ("absolute_pos_embed",)
    order: ClassVar[tuple[str, ...]] = (
        "absolute_pos_embed", "patch_embed", "layers", "blocks", "norm1", "attn", "qkv", "proj",
        "mlps", "fc1", "fc2", "downsample", "reduction", "norm", "head")
    optional: ClassVar[dict[str, str]] = {"absolute_pos_embed": "ape"}
    container: ClassVar[str] = ""           # official files are bare state_dicts

    @property
    def heads(self) -> tuple[int, ...]:
        """Heads of the stages."""
        return self.arch.num_heads

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the stages."""
        return self.arch.widths

    @property
    def parts(self) -> int:
        """Those of the first stage: the others double its channels, but for MAX_WIDTH."""
        heads, width = self.heads[0], self.widths[0]
        return 1 if width % heads else width // heads

    def narrowed(self, ratio: float) -> "AsViT":
        """The As-ViT with this share of the channels in its first stage."""
        arch = self.arch._replace(width=round(ratio * self.arch.width))
        return self.clone(arch=arch, granularity=None, parent=None, name=None)

    def narrow_options(self, ratio: float) -> dict[str, str]:
        """By which name and options the zoo makes that narrow model."""
        return {"name": "asvit", "arch": str(self.narrowed(ratio).arch)}

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False, stride: int = 4,
                 dilation: int | None = None, ratio: float | None = None) -> dict:
        """`logits` [B, K]; `pooled_norm` [B, D], the head's input; `pooled_raw` [B, D], without the
        last norm (for the training-free measurements); `grids`, each stage's [B, r, r, d]."""
        if self.width_ratio(ratio) < 1:
            return self.narrow_features(images, ratio, train, stride=stride, dilation=dilation)
        arch, init = self.arch, nn.initializers.normal(0.02)
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"images of {images.shape[1]} x {images.shape[2]} pixels: "
                             "As-ViT takes square images")
        stem = Stem(width=arch.width, kernel=arch.kernels[0], norm=self.patch_norm,
                    dtype=self.dtype, name="patch_embed")
        x = stem(images.astype(self.dtype), stride,
                 dilation or auto_dilation(arch.kernels[0], stride))
        if self.ape:
            shape = (1, (self.image_size // 4) ** 2, arch.width)
            table = self.param("absolute_pos_embed", init, shape)
            x = x + resize_table(table, round(x.shape[1] ** 0.5)).astype(self.dtype)
        x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
        rates, grids = linear_rates(self.drop_path, sum(arch.depths)), []
        for i, depth in enumerate(arch.depths):
            block = dict(num_heads=arch.num_heads[i], split=arch.splits[i],
                         mlp_ratio=arch.mlp_ratios[i], num_mlps=self.num_mlps[i],
                         qkv_bias=self.qkv_bias, qk_scale=self.qk_scale, drop=self.drop_rate,
                         attn_drop=self.attn_drop_rate, dtype=self.dtype)
            merge = (arch.widths[i + 1], arch.kernels[i + 1]) if i < 3 else None
            first = sum(arch.depths[:i])
            grid, x = Stage(block=block, rates=tuple(rates[first:first + depth]), merge=merge,
                            scan=self.scan, remat=self.remat, dtype=self.dtype,
                            name=f"layers_{i}")(x, train)
            side = round(grid.shape[1] ** 0.5)
            grids.append(grid.reshape(-1, side, side, grid.shape[-1]))
        # means over tokens and the classifier in float32
        x = x.astype(jnp.float32)
        pooled = LayerNorm(EPSILON, name="norm")(x).mean(1)
        out = jnp.tanh(nn.Dense(arch.widths[3], kernel_init=init, name="head_0")(pooled))
        if self.num_classes:
            out = nn.Dense(self.num_classes, kernel_init=init, name="head_2")(out)
        return {"logits": out, "pooled_norm": pooled, "pooled_raw": x.mean(1),
                "grids": tuple(grids)}

    @staticmethod
    def resize(table: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The position table for a model of another image size: as for other strides."""
        square = table.ndim == len(shape) == 3 and all(
            round(n ** 0.5) ** 2 == n for n in (table.shape[1], shape[1]))
        if not square:
            raise ValueError(f"{table.shape} and {shape} are no position tables on square grids")
        return resize_table(table, round(shape[1] ** 0.5))

    def macs(self, *, stride: int = 4, dilation: int | None = None,
             ratio: float | None = None) -> dict[str, int]:
        """Multiply-adds of one image by part, as the official counter counts them."""
        arch = self.subnet(ratio).arch
        sides = grid_sides(self.image_size, stride)
        counts = {"patch_embed": sides[0] ** 2 * arch.width * (3 * arch.kernels[0] ** 2 + 1)}
        for i, (r, d, h, depth) in enumerate(zip(sides, arch.widths, arch.num_heads, arch.depths)):
            n, inner, window = r * r, d // h * h, r // largest_split(arch.splits[i], r)
            block = (n * d * 3 * inner + 2 * n * window ** 2 * inner + n * inner * d
                     + self.num_mlps[i] * 2 * n * d * d * arch.mlp_ratios[i])
            counts[f"layers_{i}"] = depth * block
            if i < 3:
                patch = arch.kernels[i + 1] ** 2 * d
                counts[f"layers_{i}"] += sides[i + 1] ** 2 * patch * arch.widths[i + 1]
        D = arch.widths[3]
        # The official counter sees two average poolings, one for each of the pooled vectors.
        return counts | {"pool": 2 * (sides[3] ** 2 + 1) * D,
                         "head_0": D * D, "head_2": D * self.num_classes}


def asvit(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *, arch: str,
          ape: bool = False, patch_norm: bool = True, qkv_bias: bool = True,
          qk_scale: Positive | None = None,
          num_mlps: tuple[Count, Count, Count, Count] = (1, 1, 1, 1), drop_rate: Rate = 0.0,
          attn_drop_rate: Rate = 0.0, drop_path: Rate = 0.1, scan: bool = False,
          remat: bool = False, smallest_ratio: Fraction = 0.25,
          granularity: Positive | None = None) -> AsViT:
    """As-ViT of any architecture string; the options are the official constructor's, but for the
    last two: at which widths objective "scala" trains it.

    `ape` adds the position table that the published models very probably had (their numbers of
    parameters fit with it alone); search and growth go without.
    """
    parsed = topology.parse(arch)
    topology.check_grid(arch, parsed.splits, image_size)
    made = AsViT(arch=parsed, num_classes=num_classes, image_size=image_size, ape=ape,
                 patch_norm=patch_norm, qkv_bias=qkv_bias, qk_scale=qk_scale,
                 num_mlps=tuple(num_mlps), drop_rate=drop_rate, attn_drop_rate=attn_drop_rate,
                 drop_path=drop_path, scan=scan, remat=remat, dtype=jnp.dtype(dtype),
                 smallest_ratio=smallest_ratio, granularity=granularity)
    if granularity:
        check_widths(made)
    return made


VARIANTS = {
    "asvit": asvit,
    # for 32 x 32 images
    "asvit_tiny": partial(asvit, arch="4,2,2,1|2,1,2,1|2,1,2,2|2,1,2,1|32,32", ape=True),
    "asvit_small": partial(asvit, arch="8,2,3,3|4,1,2,1|4,1,4,4|4,1,6,2|32,88", ape=True),
    "asvit_base": partial(asvit, arch="8,2,3,3|4,1,2,1|4,1,4,5|4,1,6,2|32,116", ape=True),
    "asvit_large": partial(asvit, arch="8,2,3,5|4,1,2,2|4,1,4,5|4,1,6,2|32,180", ape=True),
}
