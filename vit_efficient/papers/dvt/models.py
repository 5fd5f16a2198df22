"""DVT (NeurIPS 2021): a cascade of transformers over the same image, with more tokens each, of
which every one reuses the features and the attention of the one before; and T2T-ViT, one of them
alone.

arXiv 2105.15075 and the authors' code, github.com/blackfeather-wang/Dynamic-Vision-Transformer.
"""
from collections import Counter
from functools import partial
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from vit_efficient.papers.deit.models import check_heads
from vit_efficient.papers.dvt.t2t import Split, map_sides
from vit_efficient.papers.dvt.transformer import ORDER, Transformer, sums
from vit_efficient.seams.model import Model
from vit_efficient.settings.values import Count, Positive, Rate, Whole

T2T_SPLITS = (Split(14, 8, 3), Split(11, 6, 5), Split(7, 4, 2))
DEIT_PATCHES = (Split(32, 32, 0), Split(23, 23, 3), Split(16, 16, 0))
SAME = (                    # of a cascade and its transformers
    "width", "depth", "num_heads", "mlp_ratio", "t2t", "num_classes", "image_size",
    "feature_reuse", "relation_reuse", "drop_rate", "attn_drop_rate", "performer_drop",
    "drop_path", "scan", "remat", "dtype")


class DVT(Model, nn.Module):
    """Images [B, S, S, 3] -> one float32 [B, K] of logits for each exit, a tuple.

    `splits` are the tokenizers of the stages, coarse to fine. With the knob `exit` (1, 2, ...) the
    stages behind that exit do not run. No gradient stops between the stages.
    """
    width: int
    depth: int
    num_heads: int
    mlp_ratio: float
    t2t: bool
    splits: tuple[Split, ...]
    num_classes: int = 1000
    image_size: int = 224
    feature_reuse: bool = True
    relation_reuse: bool = True
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    performer_drop: float = 0.1
    drop_path: float = 0.1
    scan: bool = False
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    knobs: ClassVar[tuple[str, ...]] = ("exit",)
    no_decay: ClassVar[tuple[str, ...]] = Transformer.no_decay
    optional: ClassVar[dict[str, str]] = {"feature_resuse_mlp": "feature_reuse",
                                          "relation_reuse_conv": "relation_reuse"}
    container: ClassVar[str] = "model_state_dict"   # where the official inference script looks

    def extras(self) -> dict[str, list[float]]:
        """What an official file has beside the weights and is known of a model that was not
        evaluated: `flops`, the giga-operations up to each exit."""
        exits = range(1, 1 + len(self.splits))
        return {"flops": [sum(self.macs(exit=exit).values()) / 1e9 for exit in exits]}

    def stages(self, exit: int | None = None) -> dict[str, dict]:
        """Official name -> fields of its `Transformer`, up to `exit`; ValueError if there is none
        such."""
        count = len(self.splits)
        exit = count if exit is None else exit
        if not 1 <= exit <= count:
            raise ValueError(f"exit = {exit}: this model has the exits 1 to {count}")
        same = {field: getattr(self, field) for field in SAME}
        found, side = {}, 0
        for behind, split in zip(range(count - 1, count - 1 - exit, -1), self.splits):
            name = "less_" * behind + "token" if behind else "normal_token"
            found[name] = {**same, "split": split, "upstream": side}
            side = Transformer(**found[name], parent=None).sides[-1]
        return found

    @property
    def order(self) -> tuple[str, ...]:
        """Components of the official names, in the order of the official constructors."""
        return (*self.stages(), *ORDER)

    @nn.compact
    def features(self, images: jax.Array, *, train: bool = False, exit: int | None = None) -> dict:
        """`logits`, of every exit, and under each stage's official name what its `Transformer`
        returns."""
        found, last = {}, {}
        for name, fields in self.stages(exit).items():
            last = Transformer(**fields, name=name).features(
                images, last.get("features"), last.get("relations"), train=train)
            found[name] = last
        return {"logits": tuple(out["logits"] for out in found.values())} | found

    def counts(self, exit: int | None = None) -> Counter:
        """Operations of one image up to `exit` by (stage, operator), see `Transformer.counts`."""
        total = Counter()
        for name, fields in self.stages(exit).items():
            for (_, operator), count in Transformer(**fields, parent=None).counts().items():
                total[name, operator] += count
        return total

    def macs(self, *, exit: int | None = None) -> dict[str, int]:
        """Operations of one image by stage, as the paper counts them (Table 6), with fvcore."""
        return sums((name, count) for (name, _), count in self.counts(exit).items())


def _checked(splits: tuple[tuple[int, int, int], ...], grids: list[int], width: int, num_heads: int,
             image_size: int) -> tuple[Split, ...]:
    """The splits; ValueError unless the grids that they give increase and the heads fit."""
    check_heads(width, num_heads)
    for kernel, stride, padding in splits:
        if kernel > image_size or padding >= kernel:
            raise ValueError(f"model.splits = {splits}: a window of {kernel} pixels must fit the "
                             f"image's {image_size} and be wider than its padding")
    if not grids or any(fine <= coarse for coarse, fine in zip([0, *grids], grids)):
        raise ValueError(
            f"model.splits = {splits}: on images of {image_size} pixels they give token grids of "
            f"sides {grids}, which must increase from stage to stage; the authors' splits, for 224 "
            f"pixels, are {tuple(map(tuple, T2T_SPLITS))} for a T2T-ViT, giving 7, 10 and 14, and "
            f"{tuple(map(tuple, DEIT_PATCHES))} for a DeiT")
    return tuple(Split(*split) for split in splits)


def dvt_t2t(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *,
            width: Count, depth: Count, num_heads: Count, mlp_ratio: Positive,
            splits: tuple[tuple[Count, Count, Whole], ...] = T2T_SPLITS,
            feature_reuse: bool = True, relation_reuse: bool = True, drop_rate: Rate = 0.0,
            attn_drop_rate: Rate = 0.0, performer_drop: Rate = 0.1, drop_path: Rate = 0.1,
            scan: bool = False, remat: bool = False) -> DVT:
    """A cascade of T2T-ViTs of any size. `splits` are (kernel, stride, padding) of each stage's
    first soft split; the grid has a quarter of its windows along an axis, rounded up."""
    grids = [map_sides(Split(*split), image_size)[-1] for split in splits]
    splits = _checked(splits, grids, width, num_heads, image_size)
    return DVT(width=width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, t2t=True,
               splits=splits, num_classes=num_classes, image_size=image_size,
               feature_reuse=feature_reuse, relation_reuse=relation_reuse, drop_rate=drop_rate,
               attn_drop_rate=attn_drop_rate, performer_drop=performer_drop, drop_path=drop_path,
               scan=scan, remat=remat, dtype=jnp.dtype(dtype))


def dvt_deit(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *,
             width: Count, depth: Count, num_heads: Count, mlp_ratio: Positive = 4.0,
             splits: tuple[tuple[Count, Count, Whole], ...] = DEIT_PATCHES,
             feature_reuse: bool = True, relation_reuse: bool = True, drop_rate: Rate = 0.0,
             attn_drop_rate: Rate = 0.0, drop_path: Rate = 0.1, scan: bool = False,
             remat: bool = False) -> DVT:
    """A cascade of DeiTs of any size. `splits` are (kernel, stride, padding) of each stage's patch
    convolution."""
    grids = [Split(*split).side(image_size) for split in splits]
    splits = _checked(splits, grids, width, num_heads, image_size)
    return DVT(width=width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, t2t=False,
               splits=splits, num_classes=num_classes, image_size=image_size,
               feature_reuse=feature_reuse, relation_reuse=relation_reuse, drop_rate=drop_rate,
               attn_drop_rate=attn_drop_rate, performer_drop=0.0, drop_path=drop_path, scan=scan,
               remat=remat, dtype=jnp.dtype(dtype))


def t2t_vit(num_classes: int = 1000, image_size: int = 224, dtype: str = "float32", *,
            width: Count, depth: Count, num_heads: Count, mlp_ratio: Positive,
            split: tuple[Count, Count, Whole] = T2T_SPLITS[-1], drop_rate: Rate = 0.0,
            attn_drop_rate: Rate = 0.0, performer_drop: Rate = 0.1, drop_path: Rate = 0.1,
            scan: bool = False, remat: bool = False) -> Transformer:
    """A single T2T-ViT (performer): the last stage of a cascade without reuse."""
    grids = [map_sides(Split(*split), image_size)[-1]]
    split, = _checked((split,), grids, width, num_heads, image_size)
    return Transformer(width=width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, t2t=True,
                       split=split, num_classes=num_classes, image_size=image_size,
                       drop_rate=drop_rate, attn_drop_rate=attn_drop_rate,
                       performer_drop=performer_drop, drop_path=drop_path, scan=scan, remat=remat,
                       dtype=jnp.dtype(dtype))


_T2T_12 = dict(width=256, depth=12, num_heads=4, mlp_ratio=2.0)
_T2T_14 = dict(width=384, depth=14, num_heads=6, mlp_ratio=3.0)
VARIANTS = {
    "dvt_t2t": dvt_t2t,
    "dvt_deit": dvt_deit,
    "t2t_vit": t2t_vit,
    "DVT_T2t_vit_12": partial(dvt_t2t, **_T2T_12),
    "DVT_T2t_vit_14": partial(dvt_t2t, **_T2T_14),
    "DVT_Deit_small": partial(dvt_deit, width=384, depth=12, num_heads=6),
    "t2t_vit_12": partial(t2t_vit, **_T2T_12),
    "t2t_vit_14": partial(t2t_vit, **_T2T_14),
}
