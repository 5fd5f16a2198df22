"""Config group `augment`: what happens to an image on the host and on the device."""
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax

from vit_efficient.data import device as on, host
from vit_efficient.limits import Fraction, Range

_Portion = Annotated[float, Range(0, 1, above=True)]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Augment(NamedTuple):
    """`train(image, size, rng)` and `evaluate(image, size)` on the host: uint8 [h, w, 3] -> uint8
    [size, size, 3]; `on_device(batch, key)` at the start of a training step, `normalize(batch)` at
    that of an evaluation."""
    train: Callable
    evaluate: Callable
    on_device: Callable
    normalize: Callable


def make_augment(*, crop: Literal["random_resized", "resize"] = "random_resized",
                 scale: tuple[float, float] = (0.08, 1.0),
                 ratio: tuple[float, float] = (3 / 4, 4 / 3), flip: Fraction = 0.5,
                 interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic",
                 eval_crop: _Portion = 0.875, mean: tuple[float, float, float] = IMAGENET_MEAN,
                 std: tuple[float, float, float] = IMAGENET_STD,
                 device: tuple[str, ...] = ("normalize",)) -> Augment:
    """Random resized crop and flip as torchvision, resize and centre crop for evaluation (bicubic
    if "random").

    Args:
      crop: "resize" trains on the whole image, squeezed to the square; `scale` and `ratio` are
        not read then.
      scale: least and largest share of the image's area that a crop has.
      ratio: least and largest width/height of a crop.
      flip: probability of mirroring.
      eval_crop: side of the evaluated centre, as a share of the resized short side.
      mean, std: of the pixels scaled to 0..1, red, green, blue.
      device: the transforms of a training batch in their order, which belongs to the recipe.
    Raises:
      ValueError: a range that is empty or not positive, an unknown device transform, images left
        unnormalised.
    """
    _check_range("scale", scale, most=1)
    _check_range("ratio", ratio)
    if min(std) <= 0:
        raise ValueError(f"augment.std = {tuple(std)}: above 0")
    normalize = partial(on.normalize, mean=tuple(mean), std=tuple(std))
    transforms = on.TRANSFORMS | {"normalize": normalize}
    if unknown := [name for name in device if name not in transforms]:
        raise ValueError(f"augment.device = {tuple(device)}: {unknown[0]!r} is none of "
                         f"{', '.join(transforms)}")
    if device.count("normalize") != 1:
        raise ValueError(f"augment.device = {tuple(device)}: must hold 'normalize' once, the "
                         "model reads normalised images")
    chain = [transforms[name] for name in device]

    def on_device(batch: dict, key: jax.Array) -> dict:
        for i, transform in enumerate(chain):
            batch = transform(batch, jax.random.fold_in(key, i))
        return batch

    train = partial(host.train, crop=crop, scale=tuple(scale), ratio=tuple(ratio), flip=flip,
                    interpolation=interpolation)
    evaluate = partial(host.evaluate, eval_crop=eval_crop,
                       interpolation="bicubic" if interpolation == "random" else interpolation)
    return Augment(train, evaluate, on_device, lambda batch: normalize(batch, None))


def _check_range(key: str, pair: tuple[float, float], most: float = float("inf")) -> None:
    low, high = pair
    if not 0 < low <= high <= most:
        limit = f" and at most {most:g}" if most < float("inf") else ""
        raise ValueError(f"augment.{key} = {tuple(pair)}: least and largest, above 0{limit}")
