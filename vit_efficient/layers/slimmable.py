"""One set of weights, many widths: every uniform slice of a model's channels is a narrower model.

Scala (NeurIPS 2024, arXiv 2412.04786) and its authors' code. A model declares what it is with fewer
channels; the shapes of that model's variables cut those of the full one, so that no layer knows of
widths, and what training, evaluation and export run is the narrow model itself.
"""
from collections.abc import Callable
from functools import partial
import math
from typing import Any, ClassVar

from flax import linen as nn, traverse_util
import jax
import numpy as np

from vit_efficient.seams.model import Model, shapes

TOLERANCE = 1e-6    # a ratio this near to a width means that width


def cut(array: jax.Array, shape: tuple[int, ...], first: bool) -> jax.Array:
    """The first or else the last entries of every axis of `array`, as many as `shape` says."""
    return array[tuple(slice(0, n) if first else slice(have - n, have)
                       for have, n in zip(array.shape, shape, strict=True))]


def cut_qkv(array: jax.Array, shape: tuple[int, ...], first: bool, *, each: bool = False,
            scaled: bool = True) -> jax.Array:
    """The cut of stacked queries, keys and values [..., 3 n]: as in the authors' code as many
    consecutive rows of the stack, so that keys may become queries, or with `each` the three apart.

    With `scaled` the new queries are multiplied by sqrt(narrow / full head width): the ordinary
    scale of the narrow heads, head width ** -0.5, then comes to that of the full ones, which every
    width of the authors' model has.
    """
    if each:
        parts = array.reshape(*array.shape[:-1], 3, array.shape[-1] // 3)
        part = cut(parts, (*shape[:-1], 3, shape[-1] // 3), first).reshape(shape)
    else:
        part = cut(array, shape, first)
    factors = np.float32([(shape[-1] / array.shape[-1]) ** 0.5, 1, 1])
    return part * np.repeat(factors, shape[-1] // 3) if scaled else part


def cut_tree(variables: dict, shapes: dict, takes_first: Callable[[str], bool],
             qkv: Callable = cut_qkv) -> dict:
    """The slices of `variables`, jax or numpy arrays by collection, that have these `shapes`.

    `takes_first` says of a part of the model (`patch_embed`, `blocks_0`) whether it keeps its first
    entries or its last ones; `qkv` cuts the stacked queries, keys and values. What has no width
    axis, as the classes or a scalar, stays whole.
    """
    have, slices = traverse_util.flatten_dict(variables), {}
    for path, like in traverse_util.flatten_dict(shapes).items():
        slices[path] = (qkv if "qkv" in path else cut)(have[path], like.shape, takes_first(path[1]))
    return traverse_util.unflatten_dict(slices)


class Slimmable(Model):
    """What a model of many widths has; its pass takes the knob `ratio`, the share of the channels.

    A model has the fields `smallest_ratio` and `granularity`, which say at which widths it is
    trained (`None`: any may be asked for), declares `heads` and `widths` of its stages, `narrowed`
    and `narrow_options`, and sends other widths than 1 to `narrow_features`. The smallest and the
    widest net take the first channels, those between the last ones (isolated activation).
    """
    largest_ratio: ClassVar[float] = 1.0
    qk_scale: ClassVar[float | None] = None     # of the queries; None: head width ** -0.5

    @property
    def parts(self) -> int:
        """Into how many equal parts the channels can be cut, each with whole channels in every
        head: the widths are multiples of 1 / `parts`."""
        return math.gcd(*(width // heads for heads, width in zip(self.heads, self.widths)))

    def narrowed(self, ratio: float) -> nn.Module:
        """The model with this share of the channels in every layer, a multiple of 1 / `parts`, and
        as many heads."""
        raise NotImplementedError

    def narrow_options(self, ratio: float) -> dict[str, Any]:
        """By which name and options, beside this model's own, the zoo makes that narrow model."""
        raise NotImplementedError

    @property
    def ratios(self) -> tuple[float, ...]:
        """Every width that `ratio` may be, smallest first."""
        low, high, step = 1, self.parts, 1
        if self.granularity:
            low, high, step = (round(ratio * self.parts) for ratio in
                               (self.smallest_ratio, self.largest_ratio, self.granularity))
        return tuple(count / self.parts for count in range(low, high + 1, step))

    def width_ratio(self, ratio: float | None) -> float:
        """The member of `ratios` that `ratio` means, by default the largest; ValueError names the
        members if there is none."""
        ratio = self.largest_ratio if ratio is None else ratio
        near = min(self.ratios, key=lambda width: abs(width - ratio))
        if not abs(near - ratio) <= TOLERANCE:
            allowed = (f"{self._allowed()} multiples of 1/{self.parts}" if self.granularity is None
                       else f"the widths are {', '.join(f'{width:g}' for width in self.ratios)}; "
                       f"with model.granularity = None {self._allowed()} every multiple of "
                       f"1/{self.parts}")
            raise ValueError(f"ratio = {ratio}: {allowed}; the nearest is {near:g}")
        return near

    def subnet(self, ratio: float | None = None) -> nn.Module:
        """The narrow model whose variables are `sliced(variables, ratio)`."""
        return self.narrowed(self.width_ratio(ratio))

    def sliced(self, variables: dict, ratio: float | None = None) -> dict:
        """The cut of width `ratio` through every array of `variables`, parameters and other
        collections, jax or numpy."""
        ratio = self.width_ratio(ratio)
        return cut_tree(variables, shapes(self.subnet(ratio)),
                        partial(self.takes_first, ratio=ratio), self.cut_qkv)

    def takes_first(self, part: str, ratio: float) -> bool:
        """Which end of the channels `part` of the model keeps at width `ratio`."""
        return any(abs(ratio - end) <= TOLERANCE
                   for end in (self.smallest_ratio, self.largest_ratio))

    @property
    def cut_qkv(self) -> Callable:
        """How queries, keys and values are cut; a fixed scale is that of every width."""
        return partial(cut_qkv, scaled=self.qk_scale is None)

    def narrow_features(self, images: jax.Array, ratio: float | None, train: bool,
                        **options) -> dict:
        """`features` of the sub-net of width `ratio`, from inside a pass of the full model. It
        changes no collection: batch norms follow the full net alone."""
        random = train and self.has_rng("dropout")
        rngs = {"dropout": self.make_rng("dropout")} if random else {}
        return self.subnet(ratio).apply(self.sliced(self.variables, ratio), images, train=train,
                                        rngs=rngs, method="features", **options)

    def _allowed(self) -> str:
        heads, widths = (", ".join(map(str, each)) for each in (self.heads, self.widths))
        return f"the {heads} heads of width {widths} allow"


def check_widths(model: Any) -> None:
    """Raises ValueError unless the widths that a Slimmable is to be trained at leave each of its
    heads whole channels, and are multiples of the granularity."""
    smallest, largest, granularity = model.smallest_ratio, model.largest_ratio, model.granularity
    if not 0 < smallest < largest <= 1:
        raise ValueError(f"model.smallest_ratio = {smallest}: must be above 0 and below "
                         f"model.largest_ratio = {largest}")
    ratios = {"smallest_ratio": smallest, "largest_ratio": largest}
    if granularity:
        ratios = {"granularity": granularity} | ratios
    for key, ratio in ratios.items():
        count = ratio * model.parts
        if round(count) < 1 or abs(count - round(count)) > TOLERANCE * model.parts:
            raise ValueError(
                f"model.{key} = {ratio}: {model._allowed()} multiples of 1/{model.parts}, the "
                f"nearest is {max(round(count), 1) / model.parts:g}")
        if granularity and round(count) % round(granularity * model.parts):
            near = max(round(ratio / granularity), 1) * granularity
            raise ValueError(f"model.{key} = {ratio}: must be a multiple of model.granularity = "
                             f"{granularity}, the nearest is {near:g}")
